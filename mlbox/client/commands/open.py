"""mlbox open: a session in an editor on this machine, over `ssh NAME`; or in the browser, through its tunnels."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from mlbox import errors
from mlbox.client import options, output, sessions, ssh_config, ssh_include, state
from mlbox.client.commands import attach
from mlbox.client.remote import Host
from mlbox.core.services import TITLES

# Words of a command; {name} is what ssh calls the session, {folder} where its work is.
EDITORS = {
    "vscode": ("code", "--remote", "ssh-remote+{name}", "{folder}"),
    "cursor": ("cursor", "--remote", "ssh-remote+{name}", "{folder}"),
    "windsurf": ("windsurf", "--remote", "ssh-remote+{name}", "{folder}"),
    "zed": ("zed", "ssh://{name}{folder}"),
}
# What `open` takes on macOS, where an editor's command is seldom on the PATH.
ADDRESSES = {
    **{name: name + "://vscode-remote/ssh-remote+{name}{folder}" for name in ("vscode", "cursor", "windsurf")},
    "zed": "zed://ssh/{name}{folder}",
}
PAGES = {"browser": "vscode", "jupyter": "jupyter"}  # the service whose page it is


def parser(make: Any) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = make(
        epilog="examples:\n  mlbox open kind-otter\n  mlbox open kind-otter --in jupyter",
        description="Open a session in a program of this machine's.",
    )
    made.add_argument("session", nargs="?", default="", metavar="NAME|ID", help="needed where you have more than one")
    made.add_argument(
        "--in", dest="tool", choices=(*EDITORS, *PAGES), default="vscode",
        help="an editor, VS Code's page (browser) or Jupyter's (default: vscode)",
    )  # fmt: skip
    options.place(made, options.WHERE)
    return made


def main(arguments: argparse.Namespace) -> int:
    config, wanted, tool = options.config(arguments), arguments.session, arguments.tool
    if tool in PAGES:
        return sessions.at_session(wanted, arguments.host, config, lambda there: _page(there, wanted, tool, config))
    return sessions.at_session(wanted, arguments.host, config, lambda there: _editor(there, wanted, tool))


# ---- editors -------------------------------------------------------------------------------------------


def _editor(host: Host, wanted: str, tool: str) -> int:
    session = sessions.reveal(host, wanted)
    sessions.enter(host, session)
    known, folder = ssh_config.shortened(session["id"]), session["services"].get("ssh", {}).get("folder", "")
    if not known or not folder.startswith("/"):
        hint = f"mlbox open {session['name']} --in browser"
        raise errors.Refused(f"{session['name']} has no SSH server that {tool} could use", hint)
    ssh_include.offer(yes=False)
    if not ssh_config.included():
        message = f"{tool} finds {known} by your SSH configuration, which does not include mlbox's"
        raise errors.Refused(message, "mlbox ssh-config install")
    words = tuple(word.format(name=known, folder=folder) for word in EDITORS[tool])
    if _has_display() and shutil.which(words[0]):
        return _start(*words)
    if sys.platform == "darwin":
        return _start("open", ADDRESSES[tool].format(name=known, folder=folder))
    print(shlex.join(words))
    why = f"there is no program {words[0]} here" if _has_display() else "there is no display here"
    output.note(f"{why}; this is the command, and the address: {ADDRESSES[tool].format(name=known, folder=folder)}")
    return 0


def _start(*argv: str) -> int:
    code = subprocess.run(argv, stdin=subprocess.DEVNULL).returncode
    if code != 0:
        raise errors.MlboxError(f"{shlex.join(argv)} ended with exit code {code}", "what it says is above")
    return 0


def _has_display() -> bool:
    names = ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME")
    return sys.platform == "darwin" or any(os.environ.get(name) for name in names)


# ---- pages ---------------------------------------------------------------------------------------------


def _page(host: Host, wanted: str, tool: str, config: state.Config) -> int:
    """Attached, as by `session attach`, with the page opened: it lives as long as its tunnels."""
    path = state.runtime() / f"page.{os.getpid()}.html"

    def show(urls: Mapping[str, str]) -> None:
        url = urls.get(PAGES[tool])
        program = "open" if sys.platform == "darwin" else "xdg-open"
        if url is None:
            raise errors.Refused(f"there is no {TITLES[PAGES[tool]]} in it", f"mlbox session info {wanted}".strip())
        if not _has_display() or not shutil.which(program):
            why = f"there is no {program} here" if _has_display() else "there is no display here"
            output.note(f"{why}; open the address above yourself")
        else:
            address = url.replace("&", "&amp;")
            state.write(path, f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={address}">\n')
            subprocess.run((program, str(path)), stdin=subprocess.DEVNULL)  # not the URL: its token would show in `ps`
            if program == "xdg-open":
                output.note("a browser that is a snap or a flatpak may not see that file: open the address above")

    try:
        return attach.join(host, wanted, config, (), attach.Manner(), show)
    finally:
        path.unlink(missing_ok=True)
