"""What a session's guest is told (which services to start, how, and on which sockets), and its clients. Pure.

No secret is in an argument: tokens go into files (`files`), which only the session's owner can read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who only asks for a title need not load them
    from mlbox.core.facts import Facts
    from mlbox.core.session import Spec

Json = dict[str, Any]
TITLES = {"jupyter": "Jupyter", "vscode": "VS Code", "ssh": "SSH"}


@dataclass(frozen=True)
class Plan:
    guest: Json
    files: Mapping[str, str]  # name in conf/ -> content
    services: Mapping[str, Json]  # name -> {"socket": file name, "token": …, …}: what a client needs


def plan(
    spec: Spec, facts: Facts, *, session: str, login: str,
    run: str, folder: str, home: str, prefix: str, tokens: Mapping[str, str], env: Mapping[str, str],
) -> Plan:  # fmt: skip
    """`run`, `folder`, `home` and `prefix` are paths as the guest sees them; `login` is the user inside."""
    from mlbox.core.session import ENGINES

    jupyter = _jupyter(spec, facts, run)
    vscode = _vscode(spec, facts, run, prefix)
    ssh: Json | None = {"sshd": facts.sshd, "sftp_server": facts.sftp_server} if facts.sshd else None
    if ssh and spec.runtime in ENGINES and login == "root":
        ssh["unlock"] = True
    files, services = {}, {}
    if jupyter:
        files["jupyter_server_config.json"] = _jupyter_config(run, folder, facts, tokens["jupyter"])
        services["jupyter"] = {"socket": "jupyter.sock", "token": tokens["jupyter"]}
        env = {**env, "JUPYTER_RUNTIME_DIR": f"{run}/kernels"}
    if vscode:
        services["vscode"] = {"socket": "vscode.sock", "token": tokens["vscode"], "folder": folder}
    if ssh:
        files["authorized_keys"] = "".join(f"{key}\n" for key in spec.authorized_keys)
        services["ssh"] = {"socket": "ssh.sock", "user": login, "folder": folder}
    guest = {
        "session": session, "key": tokens["guest"], "run": run, "folder": folder,
        "home": home, "shell": facts.shell, "path": facts.path, "env": {**spec.env, **env},
        "timeout": spec.start_timeout, "jupyter": jupyter, "vscode": vscode, "ssh": ssh,
    }  # fmt: skip
    return Plan(guest, files, services)


def reachable(plan: Plan, sockets: str, met: Json | None) -> Json:
    """The sockets that a tunnel leads to, in this folder of the host's, with what opens each; enough to dial while the
    guest starts. `met`: the rendezvous where a reverse tunnel brings them (core/reverse.py)."""
    found = {name: {**facts, "socket": f"{sockets}/{facts['socket']}"} for name, facts in plan.services.items()}
    guest = {"guest_socket": f"{sockets}/guest.sock", "guest_key": plan.guest["key"]}
    return {"services": found, **guest, **({"via": met} if met else {})}


def described(
    reached: Json, spec: Spec, *, absent: Mapping[str, str], gpus: tuple[str, ...], host_key: str,
    now: float, limit: int,
) -> Json:  # fmt: skip
    """All that a client needs to know of a session that is there; `limit`: s from now, 0 for none."""
    services = {
        name: {**facts, "host_key": host_key} if name == "ssh" else facts for name, facts in reached["services"].items()
    }
    return {
        "name": spec.name, **reached, "services": services, "absent": dict(absent), "gpus": list(gpus),
        "image": spec.image, "runtime": spec.runtime, "since": now, "ends": now + limit if limit else 0,
    }  # fmt: skip


def _jupyter(spec: Spec, facts: Facts, run: str) -> list[str] | None:
    if spec.jupyter == "no" or not (facts.jupyter_module or facts.jupyter):
        return None
    start = [facts.python, "-m", "jupyterlab"] if facts.jupyter_module else [facts.jupyter]
    return [*start, "--no-browser", f"--config={run}/conf/jupyter_server_config.json"]


def _jupyter_config(run: str, folder: str, facts: Facts, token: str) -> str:
    """Both the old and the new place of the token: jupyter-server 1 and 2 read different ones. Never both servers'
    settings: JupyterLab 3 and later take what is in NotebookApp for the user's, and drop its own.

    Kernels listen on sockets too, in JUPYTER_RUNTIME_DIR: on 127.0.0.1 any user of the host could subscribe to what
    they print, for only what is sent to a kernel is signed."""
    server = {
        "sock": f"{run}/s/jupyter.sock", "sock_mode": "0600", "token": token,
        "allow_root": True, "allow_remote_access": False, "open_browser": False,
        "terminado_settings": {"shell_command": [facts.shell]},
    }  # fmt: skip
    if facts.jupyter_classic:
        servers: Json = {"NotebookApp": {**server, "notebook_dir": folder}}
    else:
        servers = {"ServerApp": {**server, "root_dir": folder}, "IdentityProvider": {"token": token}}
    return json.dumps({**servers, "KernelManager": {"transport": "ipc"}})


def _vscode(spec: Spec, facts: Facts, run: str, prefix: str) -> list[str] | None:
    """Without a password of its own: its socket is the owner's alone, and mlbox asks for the token at the laptop."""
    if spec.vscode == "no" or not facts.code_server:
        return None
    argv = [facts.code_server, "--socket", f"{run}/s/vscode.sock", "--socket-mode", "600", "--auth", "none"]
    argv += ["--disable-telemetry", "--disable-update-check", "--disable-workspace-trust"]
    if spec.vscode_extensions or spec.extension_files:
        argv += ["--extensions-dir", f"{prefix}/extensions"]
    return argv


def passwd(existing: str, login: str, uid: int, gid: int, home: str, shell: str) -> str:
    """The image's accounts and the user's own, without which sshd, `whoami` and `~` would not know them."""
    kept = [line for line in existing.splitlines() if not _clashes(line, login, uid)]
    return "\n".join([*kept, f"{login}:x:{uid}:{gid}:{login}:{home}:{shell}"]) + "\n"


def _clashes(line: str, name: str, number: int) -> bool:
    fields = line.split(":")
    return len(fields) > 2 and (fields[0] == name or fields[2] == str(number))


def group(existing: str, login: str, gid: int) -> str:
    kept = [line for line in existing.splitlines() if not _clashes(line, login, gid)]
    return "\n".join([*kept, f"{login}:x:{gid}:"]) + "\n"
