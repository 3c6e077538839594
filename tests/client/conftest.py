from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import homes
import pytest

from tests.client.kit import Host, Sshd


@pytest.fixture
def host() -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="mb", dir="/tmp"))  # short: the names of sockets are
    host = Host(folder)
    yield host
    host.answering.set()
    host.over.set()
    for server in host.servers.values():
        if server._path.exists():
            server.close()
    homes.remove(folder)


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    folder = Path(tempfile.mkdtemp(prefix="mb", dir="/tmp"))
    sshd = Sshd(folder)
    if not sshd.ready():
        pytest.skip("NO SSHD: it does not start here")
    login = ["ssh", "-F", str(sshd.config), "-o", "BatchMode=yes", "gpu1", "true"]
    refused = subprocess.run(login, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if refused.returncode:  # a locked account, or one whose shell is nologin
        sshd.close()
        pytest.skip(f"NO SSHD: this account can't log in to itself: {refused.stderr.strip()}")
    yield sshd
    sshd.close()
    homes.remove(folder)
