"""A queue on this machine: a ROOT of its own, ticks in this process, and real keepers, runners and commands.

The runner is a real program (`sys.argv[0]` of a host is its single file): here a small zip that imports this tree.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlbox.core import ids
from mlbox.core.hints import waiting
from mlbox.core.job import JobSpec
from mlbox.core.log import State
from mlbox.core.resources import Resources
from mlbox.core.schedule import After
from mlbox.core.session import Spec
from mlbox.host import archive, files, keeping, lab, processes, ready, runner, store, tick, view
from mlbox.host.handlers import cancel, submit
from mlbox.host.job import Job

Json = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 20.0  # s; two cores, and other work on them
_MAIN = """
import os, sys
sys.path[:0] = [{repository!r}]
sys.path += {packages!r}
if "TEST_BOX_LEASES" in os.environ:
    from pathlib import Path
    from mlbox.host import lease
    lease.FOLDER = Path(os.environ["TEST_BOX_LEASES"])
from mlbox.entry import main
sys.exit(main())
"""


def program(folder: Path) -> Path:
    """The host's file, as a laptop would have planted it."""
    path = folder / "mlbox-host.pyz"
    packages = [entry for entry in sys.path if entry.endswith("site-packages")]
    with zipfile.ZipFile(path, "w") as archive_:
        archive_.writestr("__main__.py", _MAIN.format(repository=str(REPOSITORY), packages=packages))
    return path


class Call:
    """A request, without a laptop."""

    def __init__(self, root: Path | None, **arguments: Any) -> None:
        self.root, self.args, self.said = root, arguments, list[Json]()
        self.dry = bool(arguments.get("dry_run"))

    def progress(self, **facts: Any) -> None:
        self.said.append(facts)

    def send(self, message: Json) -> None:
        self.said.append(message)


def until(true: Callable[[], object], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


class Box:
    def __init__(self, root: Path) -> None:
        self.root = root
        lab.make_root(root)
        self.found = store.Store(root)
        self.jobs: list[Job] = []

    # ---- a person's words

    def call(self, handler: Any, **arguments: Any) -> Json:
        reply: Json = handler.run(Call(self.root, **arguments))
        return reply

    def submit(self, *command: str, array: int = 0, code: str = "", **fields: Any) -> Job:
        return self.submit_all(*command, array=array, code=code, **fields)[0]

    def submit_all(self, *command: str, array: int = 0, code: str = "", **fields: Any) -> list[Job]:
        work = Spec(runtime="process", env=fields.pop("env", {}), name=fields.pop("name", ""))
        resources = Resources(**{"gpus": "0", "cpus": 0, **fields.pop("resources", {})})
        spec = JobSpec(command=command, work=work, resources=resources, **fields).to_wire()
        reply = self.call(submit, spec=json.loads(json.dumps(spec)), array=array, code=code)
        made = [self.found.job(job["id"]) for job in reply["jobs"]]
        self.jobs += made
        return made

    def sh(self, script: str, **fields: Any) -> Job:
        return self.submit("/bin/sh", "-c", script, **fields)

    def submit_after(self, after: list[Json]) -> Job:
        """`true`, after these."""
        return self.submit("true", after=tuple(After(a["job"], a.get("end", "ok")) for a in after))

    def cancel(self, job: Job) -> Json:
        return self.call(cancel, job=job.id)

    def tick(self) -> tick.Report:
        """One whole pass: where another is at work (a job has ended), behind it."""
        while (report := tick.run(self.found)).busy:  # each of these leaves it word to look once more
            until(lambda: not keeping.is_held(self.found.of_ticks("lock")))
        return report

    def lab(self, text: str) -> None:
        (self.root / "lab.yaml").write_text(text)

    # ---- what became of it

    def wait(self, job: Job, *names: str, patience: float = PATIENCE) -> State:
        """Until the job is in one of these states, and its hints have followed."""
        deadline = time.monotonic() + patience
        while (state := job.state()).name not in names or (not state.running and self.is_live(job)):
            assert time.monotonic() < deadline, (job.id, state, self.keeper_log(job))
            time.sleep(0.01)
        return state

    def is_live(self, job: Job) -> bool:
        return (self.found.live / job.id).exists()

    def end(self, job: Job, patience: float = PATIENCE) -> State:
        return self.wait(job, "finished", "failed", "cancelled", patience=patience)

    def output(self, job: Job, attempt: int = 1) -> str:
        path = job.attempt(attempt) / "output.log"
        return path.read_text() if path.exists() else ""

    def keeper_log(self, job: Job) -> str:
        logs = sorted((job.folder / "attempts").glob("*/keeper.log"))
        return "\n".join(path.read_text(errors="replace") for path in logs)

    def hints(self) -> list[str]:
        """Jobs of this user that are in line."""
        return sorted(path.name for path in (self.found.own() / "ready").rglob("*") if ids.is_ulid(path.name))

    def archived(self) -> dict[str, str]:
        return {row["id"]: row["state"] for row in archive.latest(self.found, self.found.user, 10_000)}

    def claims(self, job: Job) -> list[int]:
        return [event["attempt"] for event in job.events() if event["event"] == "claimed"]

    def running(self) -> list[str]:
        return [run.id for run in view.running_of(self.found, self.found.user)]

    def keepers(self) -> list[int]:
        """Of jobs in this ROOT, by what they write to: also of one that has ended, at its last act, which is a tick."""
        return [pid for pid in processes._pids() if _output(pid).startswith(f"{self.root}/")]

    # ---- violence

    def keeper(self, job: Job) -> int:
        return _signed(job.keeper_pid)

    def runner(self, job: Job) -> int:
        return _signed(job.boot_folder / runner.PID)

    def kill_keeper(self, job: Job) -> None:
        kill(self.keeper(job))
        until(lambda: not keeping.lives(job))

    def kill_runner(self, job: Job) -> None:
        kill(self.runner(job))
        until(lambda: not keeping.is_held(job.boot_folder / runner.LOCK))

    def started(self, job: Job, word: str = "") -> None:
        """Until the job's command runs, and has said this."""
        self.wait(job, "started")
        until(lambda: word in self.output(job, job.state().attempt) and processes.marked(job.id))

    def close(self) -> None:
        """Nothing of these jobs is left on this machine."""
        for job in self.jobs:
            signed = (files.read_json(path) for path in (job.keeper_pid, job.boot_folder / runner.PID))
            for pid in (*(known["pid"] for known in signed if isinstance(known, dict)), *processes.marked(job.id)):
                kill(pid)
            shutil.rmtree(job.boot_folder, ignore_errors=True)

    def assert_nothing_leaks(self) -> None:
        """All jobs have ended: no hint, no folder of this boot, no torn file is left of them."""
        until(lambda: not self.keepers())
        for job in self.jobs:
            assert not job.boot_folder.exists(), (job.id, os.listdir(job.boot_folder), self.keeper_log(job))
            assert not processes.marked(job.id)
            # Of a slot that is complete it is in nobody's way: its writer could not remove it.
            complete = {f"{n:06}" for n, slot in enumerate(job.log().read().slots, 1) if slot}
            intents = [name for name in os.listdir(job.folder / "ev") if name[0] == "."]
            assert not [name for name in intents if name[1:7] not in complete], (job.id, intents)
        on = self.found.on()
        left = [p for folder in (self.found.live, self.found.making, self.found.parts) for p in inside(folder)]
        left += [p for p in inside(on) if p.name[0] == "."]
        assert not left, left
        assert not list((self.found.own() / "ready").glob("*/*"))


def inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def hint(found: store.Store, spec: JobSpec, job: str = "", **facts: Any) -> Job:
    """A job's place in line, and no job."""
    made = found.job(job or ids.ulid(int(time.time() * 1000), secrets.token_bytes(10)))
    ready.publish(found, waiting(made.id, found.user, spec, State("submitted", facts)))
    return made


def kill(pid: int) -> None:
    """Until it is gone; a zombie (of a parent that does not look) is."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _output(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/1")
    except OSError:
        return ""


def _signed(path: Path) -> int:
    """Who that is, once it has said so; one that was killed before it may have signed there, too."""

    def living() -> bool:
        known = files.read_json(path)
        return isinstance(known, dict) and processes.started(known["pid"]) == known["started"]

    until(living)
    return int(files.read_json(path)["pid"])


@contextlib.contextmanager
def box(root: Path) -> Iterator[Box]:
    made = Box(root)
    try:
        yield made
    finally:
        made.close()


def far_session(box: Box) -> Job:
    """Of this user's, running on ws, as this host sees it by the share."""
    job = box.found.job(ids.ulid(int(time.time() * 1000), os.urandom(10)))
    box.found.create(job, JobSpec(work=Spec(name="far", runtime="process")), queued=True)
    job.append("submitted", {"at": 1.0, "queue": "default"})
    job.append("claimed", {"at": 1.0, "host": "ws", "boot": "b", "gpus": ["GPU-1"], "attempt": 1})
    job.append("started", {"at": 1.0})
    job.attempt(1).mkdir(parents=True)
    ws = box.found.on("ws")
    (ws / "live").mkdir(parents=True)
    record = {"gpus": ["GPU-1"], "started": 1.0, "kind": "session", "queue": "default"}
    files.write_whole(ws / "live" / job.id, json.dumps(record).encode(), 0o644)
    return job
