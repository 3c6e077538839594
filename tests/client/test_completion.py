"""What a shell may complete: by the real parsers, from what this laptop remembers, in the real shells."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest

from mlbox import cli
from mlbox.client import completion, state
from mlbox.client.commands import completion as script

ULID = "01ARYZ6S41TSV4RRFFQ69G5FAV"
REPOSITORY = Path(cli.__file__).parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A laptop that knows a host, a session, a job and two queues."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.delenv("MLBOX_SSH_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host box *.example.com !odd\n  User me\n")
    state.update("hosts.json", "gpu1", {"planted": "x"})
    state.remember_session(ULID, "kind-otter", "gpu1", "")
    state.write(state.home() / f"ssh.d/{ULID}.conf", f"Host kind-otter mlbox-{ULID.lower()}\n")
    state.remember_seen([{"id": ULID, "name": "train"}], ["default", "night"])
    (tmp_path / "settings.yaml").touch()
    return tmp_path


@pytest.fixture
def completed(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def ask(*words: str, shell: str = "zsh") -> list[str]:
        assert cli.main(["completion", "words", shell, *words]) == 0
        return [line if line[:1] == "\t" else line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()]

    return ask


FILES = ["\tfiles"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["que"], ["queue"]),
        (["session", ""], [*cli.SESSION_VERBS, "gpu1", "box", "local"]),
        (["submit", "-f", ""], FILES),
        (["run", "--file", "s"], FILES),
        (["session", "shu"], ["shutdown"]),
        (["session", "gpu1", "--runt"], ["--runtime"]),
        (["session", "gpu1", "--runtime", ""], ["auto", "docker", "podman", "process"]),
        (["session", "--gpus", "A100:2", "--queue", "ni"], ["night"]),
        (["session", "--queue=ni"], ["--queue=night"]),
        (["session", "-f", ""], FILES),
        (["session", "--name", ""], []),
        (["session", "attach", ""], ["kind-otter"]),
        (["session", "attach", "--host", ""], ["gpu1", "box", "local"]),
        (["session", "attach", "kind-otter", ""], []),
        (["ssh", ""], ["kind-otter"]),
        (["ssh", "kind-otter", "--j"], FILES),
        (["open", "--in", "vs"], ["vscode"]),
        (["port", "add", ""], ["kind-otter"]),
        (["jobs", ""], ["prune"]),
        (["jobs", "prune", "--ol"], ["--older-than"]),
        (["queue", ""], ["list", "create", "pause", "resume", "process"]),
        (["queue", "pause", ""], ["default", "night"]),
        (["host", "drain", ""], ["gpu1", "box", "local"]),
        (["cron", "in"], ["install"]),
        (["show", "01A"], [ULID]),
        (["show", ""], ["train"]),
        (["cancel", ULID, "tr"], ["train"]),
        (["submit", "--after", ""], ["train"]),
        (["submit", "--after", "0"], [ULID]),
        (["submit", "--code", ""], FILES),
        (["submit", "--root", ""], []),  # a folder of the host's, not of this machine
        (["submit", "--", "python", "--js"], FILES),
        (["submit", "--dry-run", "--js"], ["--json"]),
        (["queue", "pause", "night", "--dr"], ["--dry-run"]),
        (["tunnels", "stop", "--dr"], ["--dry-run"]),
        (["completion", "f"], ["fish"]),
        (["nonsense", ""], []),
        (["queue", "nonsense", ""], []),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_what_may_stand_there(words: list[str], found: list[str], completed: Callable[..., list[str]]) -> None:
    assert completed(*words) == found


def test_every_option_of_every_command_is_offered(completed: Callable[..., list[str]]) -> None:
    for words in [*([verb] for verb in cli.VERBS), *([verb, one] for verb in cli.BELOW for one in cli.BELOW[verb])]:
        options = {o for o in cli.parser_of(words)._option_string_actions if o.startswith("--")}
        assert set(completed(*words, "--")) == options


@pytest.mark.parametrize(
    ("words", "typed", "fixed"),
    [
        (["session", "--queue", "=", "ni"], ["session", "--queue=ni"], "--queue="),
        (["session", "--queue", "="], ["session", "--queue="], "--queue="),
        (["session", "--gpus", "A100", ":", "2", ""], ["session", "--gpus", "A100:2", ""], ""),
        ([""], [""], ""),
    ],
)
def test_bash_breaks_words_at_more_than_blanks(words: list[str], typed: list[str], fixed: str) -> None:
    assert completion.rejoined(words) == (typed, fixed)


def test_what_a_shell_would_take_for_more_than_a_word_is_never_offered(completed: Callable[..., list[str]]) -> None:
    for name in ("$(reboot)", "a b", "x;y", "`z`"):
        state.update("hosts.json", name, {})
    assert completed("status", "") == ["gpu1", "box", "local"]


def test_no_damage_to_what_is_remembered_is_fatal(completed: Callable[..., list[str]]) -> None:
    state.write(state.home() / "seen.json", "[")
    assert completed("show", "") == []
    assert completed("queue", "pause", "") == ["default"]


def test_the_newest_jobs_are_remembered() -> None:
    jobs = [{"id": f"{ULID[:-3]}{number:03}", "name": "x"} for number in range(150)]
    state.remember_seen(jobs)
    kept = state.load("seen.json")
    assert sorted(kept["jobs"]) == sorted([ULID, *(job["id"] for job in jobs)])[-100:]
    assert kept["queues"] == ["default", "night"]


# ---- in the shells -----------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / "bin/mlbox"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m mlbox "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ "}


def at_prompt(argv: list[str], environment: dict[str, str], *typed: tuple[str, str]) -> None:
    """Each is typed, and then the text that must come."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, environment)
    said = ""
    try:
        for keys, awaited in typed:
            os.write(fd, keys.encode())
            said, deadline = "", time.monotonic() + 60
            while awaited not in said:
                ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
                assert ready, f"after {keys!r} came {said!r}, and never {awaited!r}"
                said += os.read(fd, 4096).decode(errors="replace")
    finally:
        os.close(fd)
        os.waitpid(pid, 0)


needs = {shell: pytest.mark.skipif(not shutil.which(shell), reason=f"NO {shell} here") for shell in ("zsh", "fish")}


def test_bash(environment: dict[str, str]) -> None:
    """As --help says it. In macOS's bash `source <(...)` does nothing."""
    _, _, told = script._EPILOG.rpartition("bash: ")
    assert told.startswith("eval ")
    at_prompt(
        ["bash", "--norc", "--noprofile", "-i"], environment,
        (f"{told}; echo rea''dy\r", "ready"),
        ("mlbox que\t", "queue "), ("pau\t", "pause "), ("nig\t", "night "), ("\x15", ""),
        ("mlbox submit --queue=ni\t", "night "), ("-- cat setti\t", "settings.yaml"), ("\x15", ""),
        ("~/bin/mlbox open --in win\t", "windsurf"), ("\x15exit\r", "exit"),
    )  # fmt: skip


@needs["zsh"]
def test_zsh(environment: dict[str, str]) -> None:
    at_prompt(
        ["zsh", "-f", "-i"], environment,
        ("autoload -U compinit; compinit -u -D; source <(mlbox completion zsh); echo rea''dy\r", "ready"),
        ("mlbox que\t", "queue "), ("pau\t", "pause "), ("nig\t", "night "), ("\x15", ""),
        ("mlbox submit --queue=ni\t", "night "), ("-- cat setti\t", "ngs.yaml"), ("\x15exit\r", "exit"),
    )  # fmt: skip


@needs["fish"]
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("mlbox que", "queue\tlist, create, pause, resume, process"),
        ("mlbox queue pause ni", "night\tqueue"),
        ("mlbox submit --queue=ni", "--queue=night\tqueue"),
        ("mlbox submit -- cat setti", "settings.yaml"),
        ("~/bin/mlbox session att", "attach\tjoin a session"),
    ],
)
def test_fish(line: str, found: str, environment: dict[str, str]) -> None:
    words = ("fish", "-N", "-c", f"mlbox completion fish | source; complete -C '{line}'")
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (found + "\n", "")


def test_a_key_press_waits_for_nothing_heavy() -> None:
    code = "import sys; from mlbox.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    for words in (["submit", "--queue", ""], ["show", ""], ["session", ""]):
        argv = (sys.executable, "-S", "-c", code, "completion", "words", "bash", *words)
        done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
        loaded = set(done.stderr.split())
        assert "mlbox.client.completion" in loaded
        assert not loaded & {"yaml", "fabric", "asyncio", "http", "ssl", "psutil", "pynvml", "concurrent.futures"}


def test_remembered_is_what_json_can_hold() -> None:
    assert json.loads((state.home() / "seen.json").read_text())["jobs"] == {ULID: "train"}
