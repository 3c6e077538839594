"""Why an image could not be pulled, by what the engine printed, and what its user can do about it."""

from __future__ import annotations

import re
from typing import Callable

from mlbox import errors
from mlbox.host import here

_LOGIN = re.compile(r"unauthorized|authentication required|no basic auth|denied|invalid username/password", re.I)
_UNREACHED = re.compile(r"no such host|dial tcp|i/o timeout|connection refused|TLS handshake|x509", re.I)


def of_pull(program: str, image: str, printed: str, login: Callable[[str], str], user: str) -> errors.Refused:
    """`login`: the command by which `user` logs in to a registry (empty: the engine's own)."""
    said = "\n".join(line for line in printed.splitlines() if "rror" in line or _LOGIN.search(line))
    hint = f"check the name and the tag; `{program} images` there lists what is at hand"
    if _UNREACHED.search(said):
        hint = f"{here.host_name()} does not reach the registry; {hint}"
    elif _LOGIN.search(said):
        hint = f"a private image? log in on {here.host_name()} as {user}: {login(_registry(image))}"
    return errors.Refused(f"image {image} is not on this host and can't be pulled:\n{said or printed}", hint)


def _registry(image: str) -> str:
    host = image.partition("/")[0]
    return host if "." in host or ":" in host else ""
