"""A virtual environment on top of any Python that sees all of its packages.

Made on top of another environment, one is of that one's base by itself, and would see nothing of an image whose Python
is in one (uv's and Poetry's are).
"""

from __future__ import annotations

# Run by the Python below; the argument is the new one's folder. -I: a venv.py in the current folder is not the module
# that is meant, and this very script by that name would start itself for ever.
NAME = "on-top.py"
SCRIPT = """\
import site, subprocess, sys

inside = sys.prefix != getattr(sys, "base_prefix", sys.prefix)
more = [] if inside else ["--system-site-packages"]
subprocess.check_call([sys.executable, "-I", "-m", "venv"] + more + [sys.argv[1]])
if inside:
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = subprocess.check_output([sys.argv[1] + "/bin/python", "-c", ask]).decode().strip()
    with open(place + "/below.pth", "w") as file:
        file.write("".join("import site; site.addsitedir(%r)\\n" % folder for folder in site.getsitepackages()))
"""
