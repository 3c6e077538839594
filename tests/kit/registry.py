"""A registry on a host of the lab, reached there through a narrow line: real pulls that take their time.

localhost:5000   the line; what it lets through per second is in a file, and 0 holds everything up
localhost:5001   the registry behind it (Debian's docker-registry)
localhost:5002   another one, which wants a login
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from labbox import as_root, ssh

OPEN, PRIVATE = "localhost:5000", "localhost:5002"
USER, PASSWORD = "reader", "pull-me"
_ACCOUNT = f"{USER}:$2b$05$CW1oRMQ3xHmsTyV.tAR82.HV6MCncPgofPsdk5olXOFMDxIcgXiUK"
_FOLDER = "/tmp/lab-registry"
_LINE = f"""
import socket, threading, time
def rate():
    return int(open("{_FOLDER}/rate").read())
def carry(source, target, narrow):
    try:
        while data := source.recv(65536):
            while narrow and rate() == 0:
                time.sleep(0.05)
            target.sendall(data)
            if narrow:
                time.sleep(len(data) / rate())
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
front = socket.create_server(("127.0.0.1", 5000))
while True:
    here, _ = front.accept()
    there = socket.create_connection(("127.0.0.1", 5001))
    threading.Thread(target=carry, args=(here, there, False), daemon=True).start()
    threading.Thread(target=carry, args=(there, here, True), daemon=True).start()
"""
_CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/{port}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
_LOGIN = "auth: {{htpasswd: {{realm: lab, path: {folder}/htpasswd}}}}\n"


class Registry:
    def __init__(self, host: str) -> None:
        self.host = host

    def rate(self, bytes_per_second: int) -> None:
        as_root(self.host, "sh", "-c", f"echo {bytes_per_second} >{_FOLDER}/new; mv {_FOLDER}/new {_FOLDER}/rate")

    def push(self, registry: str, name: str) -> str:
        """An image with a shell and two layers of 6 MB that can't be packed, and that no engine has."""
        image = f"{registry}/{name}"
        self.rate(1 << 30)
        as_root(self.host, "sh", "-ec", _MAKE.format(image=image))
        return image


_MAKE = """
base=mlbox-lab/busybox:1
for n in 1 2; do
  docker run --name lab-pulled $base dd if=/dev/urandom of=/data-$n bs=1M count=6
  docker commit lab-pulled {image}
  docker rm lab-pulled
  base={image}
done
docker push -q {image}
docker rmi {image}
"""


@contextmanager
def registry(host: str) -> Iterator[Registry]:
    make = (
        f"mkdir -p {_FOLDER}; echo $((1 << 30)) >{_FOLDER}/rate; chmod 755 {_FOLDER}\n"
        f"cat >{_FOLDER}/5001.yml <<'END'\n{_CONFIG.format(folder=_FOLDER, port=5001)}END\n"
        f"cat >{_FOLDER}/5002.yml <<'END'\n{(_CONFIG + _LOGIN).format(folder=_FOLDER, port=5002)}END\n"
        f"cat >{_FOLDER}/htpasswd <<'END'\n{_ACCOUNT}\nEND\n"
        f"cat >{_FOLDER}/line.py <<'END'\n{_LINE}\nEND\n"
        f"cd {_FOLDER}; : >pids\n"
        "for port in 5001 5002; do docker-registry serve $port.yml >$port.log 2>&1 & echo $! >>pids; done\n"
        "python3 line.py >line.log 2>&1 & echo $! >>pids\n"
    )
    as_root(host, "sh", "-c", make)
    try:
        deadline = time.monotonic() + 60
        while "ready" not in ssh(host, "curl -sf localhost:5000/v2/ >/dev/null && echo ready; true"):
            assert time.monotonic() < deadline, as_root(host, "sh", "-c", f"cat {_FOLDER}/*.log")
            time.sleep(0.2)
        yield Registry(host)
    finally:
        as_root(host, "sh", "-c", f"kill $(cat {_FOLDER}/pids); rm -rf {_FOLDER}; "
                "docker images --format '{{.Repository}}:{{.Tag}}' | grep -E '^localhost:' "
                "| xargs -r docker rmi -f >/dev/null; true", check=False)  # fmt: skip
