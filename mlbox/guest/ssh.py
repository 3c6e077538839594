"""SSH into the session: a unix socket whose every connection gets its own `sshd -i`.

    laptop ssh -> tunnel -> <run>/s/ssh.sock -> sshd -i (stdin and stdout are the connection) -> login script

No daemon, no port, no password; works as any uid. The host key belongs to this session alone. sshd would
start a login shell with a fresh environment, and /etc/profile would reset PATH; the login script gives every
shell, command and file transfer the session's own environment instead.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from mlbox.guest import control, logs

Json = dict[str, Any]
_BANNER_TIMEOUT = 10.0  # s

_CONFIG = """\
HostKey {key}
AuthorizedKeysFile {run}/conf/authorized_keys {run}/conf/shared_keys {run}/conf/via_keys
StrictModes no
UsePAM no
AuthenticationMethods publickey
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
PrintMotd no
X11Forwarding no
AllowAgentForwarding yes
AllowTcpForwarding yes
MaxSessions 100
ClientAliveInterval 60
ClientAliveCountMax 60
AcceptEnv LANG LC_* COLORTERM
{subsystem}
ForceCommand /bin/sh {run}/guest/login
"""
_LOGIN = """\
#!/bin/sh
# Keeps what sshd itself sets (the terminal, the agent), gives the rest as the session has it.
[ "${{LC_CTYPE-}}" = UTF-8 ] && unset LC_CTYPE  # a Mac's terminal sends it, and Linux has no such locale
{exports}
cd {folder} 2>/dev/null
set -- "${{SSH_ORIGINAL_COMMAND-}}"
unset SSH_ORIGINAL_COMMAND  # nobody asked for a forced command's variable
case "$1" in
"") exec {shell} ;;
{sftp}*) exec {shell} -c "$1" ;;
esac
"""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # what a POSIX shell can export
_OWN = ("TERM", "SHLVL", "PWD", "OLDPWD", "_", "LS_COLORS")


def serve(
    config: Json, environment: Mapping[str, str], owner: tuple[int, int], say: Callable[[str, Json], None]
) -> None:
    made, sockets = Path(config["run"]) / "guest", Path(config["run"]) / "s"
    log = Path(config["run"]) / "log/ssh.log"
    try:
        key = _host_key(made, owner)
        _write_files(config, environment, made)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        if config["ssh"].get("unlock"):
            unlock(Path("/etc/shadow"))
        log.touch()
        control.give(log, owner)
        listener = control.listen(sockets / "ssh.sock", owner)
    except OSError as error:
        say("ssh", {"state": "failed", "why": str(error), "log": ""})
        return
    command = [config["ssh"]["sshd"], "-i", "-e", "-f", str(made / "sshd_config")]
    threading.Thread(target=_accept, args=(listener, command, log), daemon=True).start()
    why = _check_banner(sockets / "ssh.sock")
    if why:
        say(
            "ssh",
            {"state": "failed", "why": why, "log": log.read_text(errors="replace")[-2000:] if log.exists() else ""},
        )
    else:
        say("ssh", {"state": "ready", "host_key": key})


def unlock(shadow: Path) -> None:
    """Of a container's own root, whose password is locked in Red Hat's images: then sshd, without PAM, lets no key in.
    A `*` is as good as no password, and is no lock."""
    with contextlib.suppress(OSError):  # there is none, or it is read-only
        content = shadow.read_text()
        free = re.sub(r"^root:![^:]*", "root:*", content, flags=re.M)
        if free != content:
            shadow.write_text(free)


def _host_key(made: Path, owner: tuple[int, int]) -> str:
    """The public half of this session's own key, made on its first start. Raises OSError with what ssh-keygen says."""
    path = made / "ssh_host_ed25519_key"
    if not path.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mlbox session", "-f", str(path)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise OSError(f"ssh-keygen: {done.stderr.strip() or done.returncode}")
    for file in (path, path.with_suffix(".pub")):
        control.give(file, owner)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def _write_files(config: Json, environment: Mapping[str, str], made: Path) -> None:
    sftp = config["ssh"]["sftp_server"]
    exports = "\n".join(
        f"export {name}={shlex.quote(value)}"
        for name, value in sorted(environment.items())
        if name not in _OWN and _NAME.fullmatch(name)
    )
    case = f"{shlex.quote(sftp)}) exec {shlex.quote(sftp)} ;;\n" if sftp else ""
    login = _LOGIN.format(
        exports=exports, folder=shlex.quote(config["folder"]), shell=shlex.quote(config["shell"]), sftp=case
    )
    (made / "login").write_bytes(os.fsencode(login))  # an environment may hold bytes that are no text
    subsystem = f"Subsystem sftp {sftp}" if sftp else ""
    settings = _CONFIG.format(key=made / "ssh_host_ed25519_key", run=config["run"], subsystem=subsystem)
    (made / "sshd_config").write_text(settings)


def _accept(listener: socket.socket, command: list[str], log: Path) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_connection, args=(connection, command, log), daemon=True).start()


def _connection(connection: socket.socket, command: list[str], log: Path) -> None:
    logs.shorten(log)
    with connection, log.open("ab") as errors:
        process = subprocess.Popen(
            command, stdin=connection.fileno(), stdout=connection.fileno(), stderr=errors, start_new_session=True
        )
    process.wait()


def _check_banner(path: Path) -> str:
    """Why sshd does not answer; empty when it does."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_BANNER_TIMEOUT)
            probe.connect(str(path))
            answer = probe.recv(64)
    except OSError as error:
        return f"sshd does not answer: {error}"
    return "" if answer.startswith(b"SSH-2.0-") else "sshd ended without an answer"
