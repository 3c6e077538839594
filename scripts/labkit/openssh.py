"""A newer OpenSSH client than this machine's: that of a lab host with Debian 13, with the libraries that it needs."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path

HOST = "gpu3"
PACK = """
d=$(mktemp -d) && cp /usr/bin/ssh "$d" && ldd /usr/bin/ssh | grep -o '/[^ ]*' | xargs -I{} cp -L {} "$d" &&
tar -C "$d" -c . | base64 && rm -r "$d"
"""


def install(packed: str, folder: Path) -> Path:
    """`packed`: what PACK prints on HOST. The folder to have first in PATH."""
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed))) as files:
        files.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else files.extractall(folder)
    (loader,) = folder.glob("ld-linux*")
    program = folder / "bin/ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {loader} --library-path {folder} {folder}/ssh "$@"\n')
    program.chmod(0o755)
    return program.parent
