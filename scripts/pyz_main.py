# The __main__.py of both single files; scripts/build_pyz.py fills in the words between @ signs.
#
# It must PARSE on Python 2.7 and 3.6, so that those are told what is wrong instead of a syntax error. It is
# compiled anew at every start (a zip holds no .pyc), so it stays short: what only the first start needs is
# in mlbox_unpack.py. `--version` imports nothing but sys.
import sys

NAME = "@NAME@"  # "mlbox" or "mlbox-host"
VERSION = "@VERSION@"
PAYLOAD = "@PAYLOAD@"  # sha256 of all that is in this file but __main__.py
ENTRY = "@ENTRY@"  # the module whose main() is the program
NEEDS = (3, 9)
EXIT_PYTHON_TOO_OLD = 95  # the client tells it from the host's own exit codes


def refuse_old_python():
    # type: () -> int
    found = "%d.%d" % sys.version_info[:2]
    words = (found, sys.executable, NEEDS[0], NEEDS[1])
    sys.stderr.write("mlbox: this python is %s (%s); mlbox needs %d.%d or newer\n" % words)
    if NAME != "mlbox-host":
        return 2
    sys.stdout.write("mlbox-host-python %s %s\n" % (found, sys.executable))
    return EXIT_PYTHON_TOO_OLD


def cache_folder():
    # type: () -> str
    # The machine is in the name because a home may be shared by machines of different kinds.
    import os

    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.expanduser("~/.cache")
    if not os.path.isabs(home):
        return ""
    machine = "%s-%s" % (sys.platform, os.uname().machine)
    return os.path.join(home, "mlbox", "%s-%s-%s" % (NAME, PAYLOAD[:16], machine))


def is_private(folder):
    # type: (str) -> bool
    # A real folder of ours that nobody else can write to: code is run from it.
    import os
    import stat

    try:
        seen = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid() and not seen.st_mode & 0o022


def mark_used(folder):
    # type: (str) -> None
    # Once a day: old versions are removed by the age of this mark, never while something still starts them.
    import os
    import time

    try:
        if os.stat(folder).st_mtime < time.time() - 86400:
            os.utime(folder, None)
    except OSError:
        pass


def unpacked():
    # type: () -> str
    # The folder to import from; empty where nothing can be kept, and then the zip itself has to do.
    import os

    folder = cache_folder()
    if not folder:
        return ""
    if is_private(folder) and is_private(os.path.dirname(folder)):
        mark_used(folder)
        return folder
    from mlbox_unpack import unpack

    return folder if unpack(sys.path[0], folder, is_private) else ""


def main():
    # type: () -> int
    if sys.version_info < NEEDS:
        return refuse_old_python()
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write("mlbox " + VERSION + "\n")
        return 0
    import os

    # Children are started from this name (cron lines, keepers), perhaps from another folder.
    sys.argv[0] = os.path.abspath(sys.argv[0])
    folder = unpacked()
    sys.path[0] = folder or os.path.abspath(sys.path[0])
    if folder:  # ours to keep .pyc files in: PYTHONDONTWRITEBYTECODE would have all compiled at every start
        sys.dont_write_bytecode = False
    from importlib import import_module

    code = import_module(ENTRY).main()  # type: int
    return code


if __name__ == "__main__":
    sys.exit(main())
