"""--dry-run, from the command line to ROOT: what would be done is said as it is then done, and nothing is changed."""

from __future__ import annotations

import importlib
import json
import os
import pwd
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crontabs
import pytest
from queuebox import Box, until

from mlbox import cli, errors
from mlbox.client import lab as client_lab
from mlbox.client import output
from mlbox.client.commands import host as host_command
from mlbox.client.commands import init as init_command
from mlbox.client.remote import Host
from mlbox.core import ids, wire
from mlbox.core.job import JobSpec
from mlbox.core.session import Spec
from mlbox.host import colleague, files, keeping, processes, reverse
from mlbox.host.handlers import init, prune
from mlbox.host.job import Job
from mlbox.host.serve import HANDLERS, Call

Json = dict[str, Any]
Tree = dict[str, tuple[int, bytes]]
KEY = "ssh-ed25519 " + "A" * 68


class Quiet(Call):
    def send(self, message: Json) -> None:
        pass


@pytest.fixture(autouse=True)
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls are answered in this process; the host's crontab is a file."""

    def answered(self: Host, verb: str, args: Json, on_progress: object) -> Json:
        handler = importlib.import_module(f"mlbox.host.handlers.{HANDLERS[verb]}")
        reply: Json = handler.run(Quiet(wire.Request(verb, args)))
        return reply

    monkeypatch.setattr(Host, "_call", answered)
    monkeypatch.setattr(prune, "pause", lambda seconds: None)  # it is there until it has its answer
    crontabs.fresh(tmp_path, monkeypatch)
    monkeypatch.delenv("MLBOX_SSH_CONFIG", raising=False)


class Lab:
    """`box`'s, where nothing starts by itself, and the command line before it."""

    def __init__(self, box: Box, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.box, self.folder, self._capsys = box, folder, capsys
        box.lab("queues:\n  default: {}\n  night: {}\n  shut: {}\n")
        self.say("queue", "pause", "shut")

    def waiting(self, name: str) -> Job:
        job = self.box.submit("true", name=name, queue="shut")
        assert job.state().waiting
        return job

    def elsewhere(self, name: str, **spec: Any) -> Job:
        """On gpu9, which is silent."""
        return _running(self.box, "gpu9", JobSpec(command=("true",), work=Spec(name=name, runtime="process"), **spec))

    def session(self, name: str) -> Job:
        """On this host. Its keeper is this test: it listens, and would hear."""
        job = _running(self.box, self.box.found.host, JobSpec(work=Spec(name=name, runtime="process")))
        self.box.found.reserve(job)
        (job.conf / "session.json").write_text("{}")
        self.box.jobs.append(job)
        return job

    def say(self, *words: str, root: Path | None = None) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = cli.main([*words, "--root", str(root or self.box.root)])
        return (code, *self._capsys.readouterr())

    def facts(self, *words: str) -> Any:
        code, out, err = self.say(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    def tree(self) -> Tree:
        """All that is in this test's folder: ROOT, HOME with the laptop's state, the crontab, the leases; and what jobs
        have in this boot's."""
        boot = self.box.found.boot_folder()
        names = {job.boot_folder.name for job in self.box.jobs}
        more = [path for path in boot.iterdir() if path.name.partition(".")[0] in names]
        below = [path for top in (self.folder, *more) for path in (top, *top.rglob("*"))]
        return {str(path): _content(path) for path in below}


def _content(path: Path) -> tuple[int, bytes]:
    found = path.lstat()
    return found.st_mode, path.read_bytes() if stat.S_ISREG(found.st_mode) else b""


def _running(box: Box, host: str, spec: JobSpec) -> Job:
    job = box.found.job(ids.ulid(int(time.time() * 1000), os.urandom(10)))
    box.found.create(job, spec, queued=True)
    job.append("submitted", {"at": 1.0, "queue": "default"})
    job.append("claimed", {"at": 1.0, "host": host, "boot": processes.boot_id(), "gpus": ["GPU-1"], "attempt": 1})
    job.append("started", {"at": 1.0})
    live = box.found.on(host) / "live"
    live.mkdir(parents=True, exist_ok=True)
    record = {"gpus": ["GPU-1"], "started": 1.0, "kind": "session" if spec.session else "job", "queue": "default"}
    files.write_whole(live / job.id, json.dumps(record).encode(), 0o644)
    return job


@pytest.fixture
def at(box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Lab:
    return Lab(box, tmp_path, capsys)


def sleeper(at: Lab) -> Job:
    job = at.box.sh("sleep 600", name="sleeper")
    at.box.started(job)
    return job


def ended(at: Lab) -> Job:
    job = at.box.submit("true", name="ended")
    at.box.end(job)
    until(lambda: not at.box.keepers())
    return job


def somebody() -> str:
    return next(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid != os.getuid())


def shared(at: Lab, *uids: int) -> Job:
    job = at.session("otter")
    colleague.record(job, [colleague.Colleague(uid) for uid in uids])
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(job.control))
    return job


def newcomer(at: Lab) -> None:
    """A host that has shown its key."""
    at.box.found.on("desk7").mkdir(parents=True)
    files.write_whole(at.box.found.on("desk7") / "reverse.json", json.dumps({"public_key": KEY}).encode(), 0o644)


def behind_nat(at: Lab) -> None:
    """It is in lab.yaml, newer than what is remembered of that, and has met `local`."""
    newcomer(at)
    at.box.lab('hosts:\n  desk7: {"tunnel": "reverse", "via": "local"}\n')
    path = reverse.meeting_file(at.box.found, "desk7")
    path.parent.mkdir(parents=True)
    path.write_text("{}")


def startable(at: Lab) -> Job:
    job = at.waiting("a")
    (at.box.root / "paused/shut").unlink()
    return job


def hopeless(at: Lab) -> Job:
    """It waits for a job that was cancelled, and no tick has seen that."""
    first = at.waiting("first")
    job = at.box.submit_after([{"job": first.id}])
    assert first.append("cancelled", {"at": 1.0, "why": "x"})
    return job


def lawless(at: Lab) -> Job:
    """lab.yaml is broken, and no good one is known."""
    job = at.waiting("a")
    (at.box.found.on() / "lab.json").unlink()
    at.box.lab("queues: [")
    return job


def drained(at: Lab) -> None:
    at.say("host", "drain", at.box.found.host)


def nothing(at: Lab) -> None:
    pass


def of(make: Callable[..., Job], *arguments: Any, **named: Any) -> Callable[[Lab], object]:
    return lambda at: make(at, *arguments, **named)


HERE = os.uname().nodename.split(".")[0]
# What is there before, the words, and what the dry run says on stdout (a part of it; {root}, {id}: of the newest job).
CASES: dict[str, tuple[Callable[[Lab], object], str, str]] = {
    "cancel, waiting": (of(Lab.waiting, "a"), "cancel a", "a  {id}  would be cancelled\n"),
    "cancel, running": (sleeper, "cancel sleeper", f"sleeper  {{id}}  would be ended on {HERE}\n"),
    "cancel, elsewhere": (of(Lab.elsewhere, "a"), "cancel a", "a  {id}  would be ended on gpu9\n"),
    "cancel, ended": (ended, "cancel ended", "ended  {id}  had ended already: finished\n"),
    "retry": (ended, "retry ended", "ended  would be in line again, as a new job like {id}\n"),
    "move": (of(Lab.waiting, "a"), "move a --queue night --priority -3", "would be in queue night, priority -3\n"),
    "move, top": (of(Lab.waiting, "a"), "move a --top", "would be in queue shut, priority 0, before your others\n"),
    "jobs prune": (ended, "jobs prune --older-than 0h", " would be freed\n"),
    "jobs prune, none": (ended, "jobs prune", "0 jobs, 0 B would be freed\n"),
    "queue create": (nothing, "queue create day", "would create day:\nQUEUE"),
    "queue pause": (nothing, "queue pause night --why x", "would pause night:\nQUEUE"),
    "queue resume": (nothing, "queue resume shut", "would resume shut:\nQUEUE"),
    "queue process": (of(Lab.waiting, "a"), "queue process", "local: {id}  in line: queue shut is paused"),
    "queue process, free": (startable, "queue process", "local: {id}  would be started\n"),
    "queue process, hopeless": (hopeless, "queue process", "local: {id}  would be failed\n"),
    "queue process, lawless": (lawless, "queue process", "local: {id}  in line: {root}/lab.yaml: line 1"),
    "queue process, nothing": (nothing, "queue process", "local: nothing to do\n"),
    "cron install": (nothing, "cron install", "local: would have * * * * * sleep "),
    "cron remove": (lambda at: at.say("cron", "install"), "cron remove", "local: would have no line of mlbox's\n"),
    "cron remove, none": (nothing, "cron remove", "local: no line of mlbox's\n"),
    "host drain": (nothing, f"host drain {HERE}", f"{HERE} would start nothing new; 0 jobs running there\n"),
    "host resume": (drained, f"host resume {HERE}", f"{HERE} would start jobs; 0 jobs running there\n"),
    "host fence": (of(Lab.elsewhere, "a"), "host fence gpu9", "gpu9 would be fenced; 1 job of yours in line again; "
                   "it would start nothing until mlbox host resume gpu9\n"),
    "host fence, held": (of(Lab.elsewhere, "a", on_host_loss="hold"), "host fence gpu9", "gpu9 would be fenced; 0"),
    "host add": (behind_nat, "host add desk7 --tunnel reverse --via local", "would bring all its sessions to local\n"),
    "host add, new": (newcomer, "host add desk7 --via local", "would bring sessions with --tunnel reverse to local\n"),
    "host add, silent": (nothing, "host add desk7 --via local", "would bring sessions with --tunnel reverse"),
    "host remove": (behind_nat, "host remove desk7", "desk7 would be removed\n"),
    "init, again": (nothing, "init local", "{root} is a lab already ("),
    "session shutdown": (of(Lab.session, "otter"), "session shutdown otter", "otter would end; 1 GPU free again\n"),
    "session share": (shared, f"session share otter {somebody()}", f"otter would be shared with {somebody()}\n"),
    "session unshare": (
        of(shared, pwd.getpwnam(somebody()).pw_uid), f"session unshare otter {somebody()}",
        f"otter would no longer be shared with {somebody()}\n",
    ),
    "session unshare, unknown": (shared, f"session unshare otter {somebody()}", "otter was not shared with"),
}  # fmt: skip


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"address": "10.0.0.1", "port": 22, "user": "ada", "host_keys": [KEY]}
    monkeypatch.setattr(host_command, "_address", lambda via, wanted: place)


def never(*_: object) -> str:
    raise AssertionError("a dry run does not do that")


@pytest.mark.usefixtures("meeting")
@pytest.mark.parametrize("case", CASES)
def test_it_says_what_it_would_do_and_changes_nothing(case: str, at: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    make, words, said = CASES[case]
    monkeypatch.setattr(output, "may_ask", lambda: True)
    for module, act in (output, "ask"), (keeping, "tell"), (init, "_try"), (client_lab, "nudge"):
        monkeypatch.setattr(module, act, never)
    made = make(at)
    until(lambda: not [*at.box.root.rglob("ev/.*")])  # a keeper withdraws its word behind what it told
    before = at.tree()
    code, out, err = at.say(*words.split(), "--dry-run")
    assert (code, said.format(id=made.id if isinstance(made, Job) else "", root=at.box.root) in out) == (0, True), (
        code, out, err,
    )  # fmt: skip
    facts = at.facts(*words.split(), "--dry-run")
    each = facts if isinstance(facts, list) else facts.values() if words.startswith("cron") else [facts]
    assert each and all(one["dry_run"] is True for one in each)
    assert at.tree() == before


# Of the others the facts are not known before: an id, what an end makes room for, what a keeper says.
ALSO_DONE = [
    case for case in CASES if not case.startswith(("retry", "session", "cancel, running", "queue process, free"))
    and case not in ("move", "host add, silent")
]  # fmt: skip


@pytest.mark.usefixtures("meeting")
@pytest.mark.parametrize("case", ALSO_DONE)
def test_and_that_is_done_without_it(case: str, at: Lab) -> None:
    make, words, _ = CASES[case]
    make(at)
    dry = at.facts(*words.split(), "--dry-run")
    yes = ["-y"] if words.startswith(("host fence", "host add", "host remove", "jobs prune", "image prune")) else []
    assert without(dry) == at.facts(*words.split(), *yes)


def without(facts: Any) -> Any:
    """`dry_run`, wherever it stands."""
    if isinstance(facts, list):
        return [without(one) for one in facts]
    return {key: without(one) for key, one in facts.items() if key != "dry_run"} if isinstance(facts, dict) else facts


# ---- what would be refused, is -----------------------------------------------------------------------------------


def without_code(at: Lab) -> None:
    job = ended(at)
    document = json.loads((job.folder / "spec.json").read_text())
    (job.folder / "spec.json").write_text(json.dumps({**document, "code": "0" * 64}))


def another_s(at: Lab) -> Job:
    if os.getuid() != 0:
        pytest.skip("needs root to give a folder away")
    owner, job = pwd.getpwnam(somebody()), at.waiting("a")
    given = at.box.found.job(job.id, owner.pw_name)
    given.folder.parent.mkdir(parents=True)
    job.folder.rename(given.folder)
    os.chown(at.box.found.own(owner.pw_name), owner.pw_uid, -1)
    return given


def others_in_root(at: Lab) -> None:
    (at.box.root / "mlbox.json").unlink()
    (at.box.root / "thesis.tex").touch()


def broken_lab(at: Lab) -> None:
    at.box.lab("queues: [")


REFUSED: dict[str, tuple[Callable[[Lab], object], str, type[errors.MlboxError]]] = {
    "no such job": (nothing, "cancel train", errors.NotFound),
    "not one's own": (another_s, "cancel {id}", errors.Refused),
    "a session": (of(Lab.session, "otter"), "cancel otter", errors.Usage),
    "waits still": (of(Lab.waiting, "a"), "retry a", errors.Refused),
    "code is gone": (without_code, "retry ended", errors.Refused),
    "has ended": (ended, "move ended --top", errors.Refused),
    "no such queue to go to": (of(Lab.waiting, "a"), "move a --queue day", errors.NotFound),
    "too high": (of(Lab.waiting, "a"), "move a --priority 100000", errors.Usage),
    "move, broken lab.yaml": (lawless, "move a --top", errors.HostUnready),
    "no such queue": (nothing, "queue pause day", errors.NotFound),
    "queue is there": (nothing, "queue create night", errors.Refused),
    "no name": (nothing, "queue create Day", errors.Usage),
    "broken lab.yaml": (broken_lab, "queue create day", errors.Refused),
    "no such host": (nothing, "host drain gpu7", errors.NotFound),
    "this host": (nothing, f"host fence {HERE} -y", errors.Refused),
    "otherwise added": (behind_nat, "host add desk7 --via elsewhere", errors.Refused),
    "not added": (nothing, "host remove desk7", errors.NotFound),
    "root in use": (others_in_root, "init local", errors.Refused),
    "no lab": (others_in_root, "cron install", errors.HostUnready),
    "no such session": (nothing, "session shutdown heron", errors.NotFound),
    "no such user": (shared, "session share otter nobody-of-that-name", errors.Refused),
    "oneself": (shared, f"session share otter {pwd.getpwuid(os.getuid()).pw_name}", errors.Refused),
    "no keeper": (of(Lab.session, "otter"), f"session share otter {somebody()}", errors.HostUnready),
    "seven already": (of(shared, *range(70001, 70008)), f"session share otter {somebody()}", errors.Refused),
}  # fmt: skip


@pytest.mark.usefixtures("meeting")
@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_refused_is(case: str, at: Lab) -> None:
    make, words, error = REFUSED[case]
    made = make(at)
    asked = words.format(id=made.id if isinstance(made, Job) else "").split()
    before = at.tree()
    code, out, err = at.say(*asked, "--dry-run")
    assert (code, out) == (error.exit_code, ""), err
    assert at.tree() == before
    if not words.startswith("session share"):  # whose keeper, without one, would be looked for
        real = at.say(*asked)
        assert (real[0], _refusal(real[2])) == (code, _refusal(err))


def _refusal(said: str) -> str:
    """Without what is said on the way to it."""
    return said[said.index("mlbox: ") :]


# ---- what is said beside it ------------------------------------------------------------------------------------------


def test_a_root_to_be(at: Lab, tmp_path: Path) -> None:
    root, before = tmp_path / "share/mlbox", at.tree()
    code, out, err = at.say("init", "local", "--dry-run", root=root)
    assert code == 0, err
    assert out.startswith(f"{root} would be made a lab, on local (")
    assert "its filesystem was not tried\n" in out
    assert f'  lab.yaml would get, under hosts:\n  {HERE}: {{"ssh": "local"}}\n' in out
    assert f'root = "{root}"\nhosts = ["local"]\n' in out
    assert at.tree() == before


def test_several_hosts_race_for_nothing(at: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_command, "_race", never)
    out = at.say("init", "local", "gpu2", "--dry-run", root=at.folder / "share")[1]
    assert "on local, gpu2 (" in out
    assert "its filesystem was not tried, nor whether it is one folder on these hosts\n" in out


def test_a_root_that_can_t_be(at: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file/mlbox"):
        for dry in (True, False):
            with pytest.raises((NotADirectoryError, FileExistsError)):
                init.run(Quiet(wire.Request("init", {"ssh": "local", "root": str(root), "dry_run": dry})))


def test_hosts_that_see_different_folders(at: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Host._call
    monkeypatch.setattr(Host, "_call", lambda self, *a: {**real(self, *a), **({"id": ""} if self.name == "b" else {})})
    code, _, err = at.say("init", "local", "b", "--dry-run")
    assert (code, "is not the same folder on these hosts" in err) == (errors.Refused.exit_code, True)


@pytest.mark.usefixtures("meeting")
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("init, again", "it would be asked whether to write them there"),
        ("host fence", "it would be asked: Is gpu9 switched off, or rebooted?"),
        ("host add", "/.ssh/authorized_keys would get:\nrestrict,"),
        ("host add, new", 'lab.yaml would get:\n  desk7: {"tunnel": "forward", "via": "local"}\n'),
        ("host add, silent", "would get:\na line for desk7's key, which its next pass over the queue shows\n"),
        ("host remove", "local, desk7's line of authorized_keys would go\n"),
    ],
)
def test_what_it_would_ask_for_is_said(case: str, said: str, at: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    make, words, _ = CASES[case]
    make(at)
    monkeypatch.setattr(output, "may_ask", lambda: True)
    assert said in at.say(*words.split(), "--dry-run")[2]


def test_a_whole_array(at: Lab) -> None:
    jobs = at.box.submit_all("true", array=3, name="sweep", queue="shut")
    code, out, _ = at.say("cancel", "sweep", "--dry-run")
    assert (code, out) == (
        0,
        "".join(f"sweep[{number}]  {job.id}  would be cancelled\n" for number, job in enumerate(jobs)),
    )


def test_queues_as_they_would_be(at: Lab) -> None:
    rows = {row["name"]: row["paused"] for row in at.facts("queue", "pause", "night", "--dry-run")}
    assert rows == {"default": "", "night": at.box.found.user, "shut": at.box.found.user}
    assert "day" in [row["name"] for row in at.facts("queue", "create", "day", "--dry-run")]


def test_a_pass_leaves_what_lost_its_keeper(at: Lab) -> None:
    """A real one would adopt it, or put it in line again."""
    job = sleeper(at)
    at.box.kill_keeper(job)
    before = at.tree()
    assert at.say("queue", "process", "--dry-run")[:2] == (0, "local: nothing to do\n")
    assert at.say("session", "shutdown", "--dry-run")[0] == errors.NotFound.exit_code
    assert at.tree() == before and not keeping.lives(job)
