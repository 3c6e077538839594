"""A virtual environment on top of any Python that sees all of its packages, and whose Jupyter has that one's parts.

Made on top of another environment, one is of that one's base by itself, and would see nothing of an image whose Python
is in one (uv's and Poetry's are). And Jupyter looks for its pages, its extensions, their settings and its kernels in
its own environment: without these links an image's JupyterLab, started from here, has none of them.
"""

from __future__ import annotations

# Run by the Python below; the argument is the new one's folder. -I: a venv.py in the current folder is not the module
# that is meant, and this very script by that name would start itself for ever.
NAME = "on-top.py"
SCRIPT = """\
import os, site, subprocess, sys, sysconfig

top = sys.argv[1]
inside = sys.prefix != getattr(sys, "base_prefix", sys.prefix)
more = [] if inside else ["--system-site-packages"]
subprocess.check_call([sys.executable, "-I", "-m", "venv"] + more + [top])
if inside:
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = subprocess.check_output([top + "/bin/python", "-I", "-c", ask]).decode().strip()
    with open(place + "/below.pth", "w") as file:
        file.write("".join("import site; site.addsitedir(%r)\\n" % folder for folder in site.getsitepackages()))

# File by file: what pip adds later is written beside them, and replaces none of the image's.
for below in (sysconfig.get_path("data"), sys.prefix):
    for part in ("share/jupyter", "etc/jupyter"):
        for folder, folders, names in os.walk(os.path.join(below, part)):
            # The kernel python3 may name the image's own Python, which lacks what is added; staging is to build pages.
            unwanted = {"kernels": "python3", "lab": "staging"}.get(os.path.basename(folder))
            folders[:] = [name for name in folders if name != unwanted]
            names += [name for name in folders if os.path.islink(os.path.join(folder, name))]  # are not walked into
            here = os.path.join(top, os.path.relpath(folder, below))
            if os.path.realpath(here) != os.path.join(os.path.realpath(top), os.path.relpath(folder, below)):
                continue  # it is one of those
            try:
                os.makedirs(here, exist_ok=True)
                for name in names:
                    if not os.path.lexists(os.path.join(here, name)):
                        os.symlink(os.path.join(folder, name), os.path.join(here, name))
            except OSError as error:
                print("not linked:", error)
"""
