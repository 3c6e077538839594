"""What is typed by habit, or nearly right: the hints of wrong usage. Imported only where something was mistyped."""

from __future__ import annotations

from collections.abc import Iterable

from mlbox.core import text

_ASKED = {
    "--docker": "--image", "--container-image": "--image", "-v": "--mount", "--volume": "--mount",
    "--gres": "--gpus", "-G": "--gpus", "-c": "--cpus", "--cpus-per-task": "--cpus", "--mem": "--memory",
    "-t": "--time-limit", "--time": "--time-limit", "-w": "--on", "--nodelist": "--on", "-C": "--label",
    "--constraint": "--label", "-J": "--name", "--job-name": "--name", "-p": "--queue", "--partition": "--queue",
    "--nice": "--priority",
}  # fmt: skip
_SUBMITTED = {**_ASKED, "-a": "--array", "-d": "--after", "--dependency": "--after", "-D": "--folder",
              "--chdir": "--folder", "--requeue": "--retries"}  # fmt: skip
# What Slurm, task-spooler, dstack, ClearML and Docker call it, by where it is typed.
ELSEWHERE = {
    "mlbox": {
        "sbatch": "submit", "add": "submit", "enqueue": "submit", "srun": "run", "apply": "run",
        "squeue": "jobs", "sacct": "jobs", "ps": "jobs", "ls": "jobs", "list": "jobs", "history": "jobs",
        "scontrol": "show", "inspect": "show", "tail": "logs -f", "wait": "logs -f", "cat": "logs",
        "scancel": "cancel", "kill": "cancel", "stop": "cancel", "rm": "cancel", "delete": "cancel",
        "requeue": "retry", "sinfo": "status", "nodes": "status", "hosts": "status",
        "gpus": "status", "salloc": "session", "start": "session", "up": "session", "create": "session",
        "clearml-session": "session", "down": "session shutdown", "shutdown": "session shutdown",
        "info": "session info", "share": "session share", "exec": "ssh", "shell": "ssh", "login": "ssh",
        "connect": "attach", "code": "open", "version": "--version", "-V": "--version", "-v": "--version",
    },
    "mlbox session": {
        **_ASKED, "ls": "list", "ps": "list", "join": "attach", "connect": "attach", "status": "info",
        **dict.fromkeys(("stop", "end", "kill", "rm", "down", "delete"), "shutdown"),
    },
    "mlbox submit": _SUBMITTED,
    "mlbox run": _SUBMITTED,
    "mlbox jobs": {"-u": "--all", "--user": "--all", "-a": "--all", "-p": "--queue", "--partition": "--queue"},
    "mlbox logs": {"--lines": "--tail", "-t": "--tail"},
    "mlbox host": dict.fromkeys(("list", "ls", "show", "status", "info"), "mlbox status"),
    "mlbox queue": {"stop": "pause", "start": "resume", "show": "list", "status": "list", "watch": "process --watch"},
    "mlbox cron": {"list": "show", "ls": "show", "status": "show", "add": "install", "uninstall": "remove"},
    "mlbox tunnels": {"status": "list", "show": "list", "start": "mlbox attach"},
}  # fmt: skip
_SHOWN_BY = {"ID|NAME": "mlbox jobs", "NAME|ID": "mlbox session list", "QUEUE": "mlbox queue list"}


def meant(prog: str, word: str, known: Iterable[str]) -> str:
    """A line for a hint, where this one is another program's for a word that is known, or near to it; else nothing.
    `prog`: behind which it was typed."""
    bare = {name.lstrip("-"): name for name in known}
    stem = word.lstrip("-")
    near = ELSEWHERE.get(prog, {}).get(word) or bare.get(text.nearest(stem, bare) if len(stem) > 1 else "")
    if prog == "mlbox jobs" and not near and not word.startswith("-"):
        near = f"mlbox show {word}"  # of one job
    return f"did you mean {near}?\n" if near else ""


def shown(missing: str) -> str:
    """Lines for a hint: what shows those of which one was left out, by their names in --help."""
    return "".join(f"{by} shows them\n" for name, by in _SHOWN_BY.items() if name in missing.split(", "))
