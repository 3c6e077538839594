"""Running commands, saying what goes on, and the one kind of error that is meant for the reader."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Optional

_lock = threading.Lock()
_start = time.monotonic()


class LabError(Exception):
    """Expected trouble: one sentence for the reader."""


def say(text: str) -> None:
    """One line of progress on stderr, with the seconds since the start."""
    with _lock:
        print(f"lab {time.monotonic() - _start:5.0f}s  {text}", file=sys.stderr, flush=True)


def run(
    argv: Sequence[str],
    check: bool = True,
    input: Optional[str] = None,
    env: Optional[Mapping[str, str]] = None,
) -> "subprocess.CompletedProcess[str]":
    """Run to the end and keep the output; raise LabError on failure when `check`."""
    done = subprocess.run(
        list(argv),
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        env={**os.environ, **(env or {})},
        text=True,
        errors="replace",
    )
    if check and done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no output"]
        raise LabError(f"{' '.join(argv[:6])} failed ({done.returncode}): {last[0]}")
    return done


def run_logged(argv: Sequence[str], log: Path, env: Optional[Mapping[str, str]] = None) -> None:
    """Run with all output in `log`; raise LabError with its last lines on failure."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        code = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        ).returncode
    if code != 0:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        raise LabError(f"{' '.join(argv[:4])}… failed ({code}); {log} ends:\n" + "\n".join(tail))


def pipe(first: Sequence[str], second: Sequence[str], env: Mapping[str, str]) -> str:
    """`first | second`; the output of `second`. Raises LabError when either fails."""
    full = {**os.environ, **env}
    source = subprocess.Popen(list(first), stdout=subprocess.PIPE, env=full)
    sink = subprocess.run(list(second), stdin=source.stdout, stdout=subprocess.PIPE, env=full, text=True)
    assert source.stdout
    source.stdout.close()
    if source.wait() != 0 or sink.returncode != 0:
        raise LabError(f"{' '.join(first[:4])}… | {' '.join(second[:4])}… failed")
    return sink.stdout


def wait_for(what: str, ready: Callable[[], bool], seconds: float, every: float = 0.1) -> None:
    """Wait until `ready`; say so once when it takes more than two seconds."""
    begin, said = time.monotonic(), False
    while not ready():
        waited = time.monotonic() - begin
        if waited > seconds:
            raise LabError(f"{what} did not come in {seconds:.0f} s")
        if waited > 2 and not said:
            said = True
            say(f"waiting for {what} (up to {seconds:.0f} s)")
        time.sleep(every)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file whole: temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    partial.write_text(text)
    partial.chmod(mode)
    partial.replace(path)
