"""What a host starts, whom it preempts, and in which words the others wait."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbox.core.gpu import Gpu, GpuProcess, Holder
from mlbox.core.lab import Host, Lab, Queue, UserLimits
from mlbox.core.resources import HostFacts, Resources, size
from mlbox.core.schedule import (
    After,
    Ends,
    Plan,
    Running,
    Start,
    View,
    Waiting,
    exceeded,
    in_order,
    limited,
    plan,
    reserved_on,
    short,
    stuck,
)
from mlbox.core.schedule.room import GRACE

NOW = 1_000_000.0
A100, RTX = ("NVIDIA A100-SXM4-80GB", 81920), ("NVIDIA GeForce RTX 4090", 24564)
UNIFIED = ("NVIDIA GB10", 0)
STRANGER = (GpuProcess(4711, "bob", "python", 2048),)


def cards(count: int, kind: tuple[str, int] = A100, first: int = 0) -> tuple[Gpu, ...]:
    return tuple(Gpu(n, f"GPU-{n}", *kind) for n in range(first, first + count))


def used(card: Gpu) -> Gpu:
    return replace(card, processes=STRANGER)


def broken(card: Gpu) -> Gpu:
    return replace(card, error="GPU is lost")


def job(id_: str, gpus: str = "1", owner: str = "", **more: Any) -> Waiting:
    """`a1` is ann's; what Resources and Waiting know goes to each."""
    asked = {key: more.pop(key) for key in list(more) if key in Resources.__dataclass_fields__}
    asked = {"gpus": "auto" if asked.get("gpu_share") and gpus == "1" else gpus, "cpus": 0, **asked}
    return Waiting(id_, owner or USERS[id_[0]], resources=Resources(**asked), **more)


USERS = {"a": "ann", "b": "bob", "c": "cat", "d": "dan"}


def run(id_: str, gpus: str = "", ends: int = 0, host: str = "gpu1", ran: int = 100, **more: Any) -> Running:
    """`ends`: seconds from now; 0: nobody knows."""
    limit = {"started": NOW + ends - 10_000, "time_limit": 10_000} if ends else {"started": NOW - ran}
    uuids = tuple(f"GPU-{n}" for n in gpus.split())
    return Running(id_, USERS[id_[0]], host, gpus=uuids, **{**limit, **more})


def view(*jobs: Waiting | Running, gpus: int | tuple[Gpu, ...] = 4, **more: Any) -> View:
    waiting = tuple(j for j in jobs if isinstance(j, Waiting))
    facts = {key: more.pop(key) for key in list(more) if key in HostFacts.__dataclass_fields__}
    queues = more.get("lab", Lab()).queues
    there = cards(gpus) if isinstance(gpus, int) else gpus
    host = HostFacts(**{"name": "gpu1", "gpus": there, "cpus": 64, "memory": 2**18, "queues": tuple(queues), **facts})
    running = tuple(j for j in jobs if isinstance(j, Running))
    more = {"reserved_here": frozenset(j.id for j in waiting), **more}
    return View(host, waiting=waiting, running=running, **more)


def lab(**queues: Any) -> Lab:
    return Lab(queues={name: Queue(name, **rules) for name, rules in {"default": {}, **queues}.items()})


def started(plan_: Plan) -> str:
    """`a1:0,1 b1` for what starts on which GPUs, in the order of the line."""
    parts = [(s.job, ",".join(uuid.replace("GPU-", "") for uuid in s.gpus)) for s in plan_.start]
    return " ".join(f"{name}:{where}" if where else name for name, where in parts)


def case(name: str, seen: View, start: str, **waits: str) -> Any:
    return pytest.param(seen, start, waits, id=name)


def check(seen: View, start: str, waits: Mapping[str, str]) -> Plan:
    """Reasons are given from their beginning, `…` for their end."""
    made = plan(seen, NOW)
    assert started(made) == start
    for name, reason in waits.items():
        got = made.waits[name]
        assert got.startswith(reason[:-1]) if reason.endswith("…") else got == reason
    told = [s.job for s in made.start] + [*made.fail, *made.waits]
    assert sorted(told) == sorted(j.id for j in seen.waiting), "every job is told of once"
    return made


MIXED = (*cards(2), *cards(2, RTX, 2))
FIRST = "1st in queue default; "
SECOND = "2nd in queue default; "


@pytest.mark.parametrize(
    ("seen", "start", "waits"),
    [
        case("nothing to do", view(), ""),
        case("one", view(job("a1")), "a1:0"),
        case("several", view(job("a1"), job("a2", "2"), job("a3")), "a1:0 a2:1,2 a3:3"),
        case("all", view(job("a1", "4")), "a1:0,1,2,3"),
        case("auto is one", view(job("a1", "auto")), "a1:0"),
        case("auto is none where there is none", view(job("a1", "auto"), gpus=0), "a1"),
        case("no GPU", view(job("a1", "0"), gpus=0), "a1"),
        case("no GPU takes no GPU", view(job("a1", "0"), job("a2", "4")), "a1 a2:0,1,2,3"),
        case("no GPU runs beside full GPUs", view(job("a1", "0"), run("b1", "0 1 2 3")), "a1"),
        case("by name", view(job("a1", "4090:2"), gpus=MIXED), "a1:2,3"),
        case("the small ones first", view(job("a1"), job("a2"), job("a3"), gpus=MIXED), "a1:2 a2:3 a3:0"),
        case("one kind together", view(job("a1", "2"), job("a2", "2"), gpus=MIXED), "a1:2,3 a2:0,1"),
        case("by names, the first of them", view(job("a1", "A100,4090:2"), gpus=MIXED), "a1:0,1"),
        case("by names, the next of them", view(job("a1", "H100,4090,A100:1"), gpus=MIXED), "a1:2"),
        case("by names, one kind together", view(job("a1", "A100,4090:2"), run("b1", "0"), gpus=MIXED), "a1:2,3"),
        case("by names, none is free", view(job("a1", "A100,4090:3"), run("b1", "0 1"), gpus=MIXED), "",
             a1=FIRST + "asks for 3 A100 or 4090 GPUs, 2 are free on gpu1 (GPU 0, 1 held by bob's job b1)"),
        case("by memory", view(job("a1", gpu_memory=40960), gpus=MIXED), "a1:0"),
        case("by memory, as the label says", view(job("a1", gpu_memory=24576), gpus=MIXED), "a1:2"),
        case("by memory, all kinds that have it", view(job("a1", "4", gpu_memory=24576), gpus=MIXED), "a1:2,3,0,1"),
        case("by UUID", view(job("a1", "GPU-3,GPU-1")), "a1:3,1"),
        case("two by UUID, apart", view(job("a1", "GPU-3"), job("a2", "GPU-0")), "a1:3 a2:0"),
        case("two by the same UUID", view(job("a1", "GPU-3"), job("a2", "GPU-3")), "a1:3",
             a2=FIRST + "asks for GPU-3, 0 are free on gpu1 (GPU 3 kept for ann's job a1, which is ahead)"),
        case("the UUID of a busy one", view(job("a1", "GPU-3,GPU-0"), run("b1", "0")), "",
             a1=FIRST + "asks for GPU-3, GPU-0, 1 is free on gpu1 (GPU 0 held by bob's job b1)"),
        case("not enough", view(job("a1", "4"), run("b1", "0 1"), run("b2", "2")), "",
             a1=FIRST + "asks for 4 GPUs, 1 is free on gpu1 "
             "(GPU 0, 1 held by bob's job b1; GPU 2 held by bob's job b2)"),
        case("a stranger's is left alone", view(job("a1", "4"), gpus=(used(cards(1)[0]), *cards(3, first=1))), "",
             a1=FIRST + "asks for 4 GPUs, 3 are free on gpu1 (GPU 0 used by bob's python (pid 4711))"),
        case("a stranger's is not chosen", view(job("a1", "2"), gpus=(used(cards(1)[0]), *cards(3, first=1))),
             "a1:1,2"),
        case("one without memory of its own is one job's", view(job("a1"), job("a2"), gpus=cards(1, UNIFIED)), "a1:0",
             a2=FIRST + "asks for 1 GPU, 0 are free on gpu1 (GPU 0 kept for ann's job a1, which is ahead)"),
        case("one without memory of its own that a stranger uses", view(job("a1"), gpus=(used(cards(1, UNIFIED)[0]),)),
             "", a1=FIRST + "asks for 1 GPU, 0 are free on gpu1 (GPU 0 used by bob's python (pid 4711))"),
        case("a broken one is not chosen", view(job("a1", "2"), gpus=(broken(cards(1)[0]), *cards(3, first=1))),
             "a1:1,2"),
        case("a broken one is said", view(job("a1", "4"), gpus=(broken(cards(1)[0]), *cards(3, first=1))), "",
             a1=FIRST + "asks for 4 GPUs, 3 are free on gpu1 (GPU 0 out of order: GPU is lost)"),
        case("leased outside the queue",
             view(job("a1"), gpus=(replace(cards(1)[0], holder=Holder("eve", "01J", "calm-owl")),)), "",
             a1=FIRST + "asks for 1 GPU, 0 are free on gpu1 (GPU 0 leased to eve's session calm-owl)"),
        case("a claim counts before its lease is seen", view(job("a1"), run("b1", "0"), gpus=1), "",
             a1=FIRST + "asks for 1 GPU, 0 are free on gpu1 (GPU 0 held by bob's job b1)"),
        case("a session says so", view(job("a1"), run("b1", "0", kind="session"), gpus=1), "",
             a1=FIRST + "asks for 1 GPU, 0 are free on gpu1 (GPU 0 held by bob's session b1)"),
        case("what runs elsewhere holds nothing here", view(job("a1"), run("b1", "0", host="gpu2")), "a1:0"),
        case("too many holders to name", view(job("a1"), *(run(f"b{n}", str(n)) for n in range(6)), gpus=6), "",
             a1=FIRST + "asks for 1 GPU, 0 are free on gpu1 (GPU 0 held by bob's job b0; GPU 1 held by bob's job b1; "
             "GPU 2 held by bob's job b2; GPU 3 held by bob's job b3; 2 more)"),
        case("CPUs", view(job("a1", "0", cpus=3), job("a2", "0", cpus=2), cpus=4), "a1",
             a2=FIRST + "asks for 2 CPUs, 1 is free on gpu1"),
        case("CPUs held", view(job("a1", "0", cpus=3), run("b1", cpus=2), cpus=4), "",
             a1=FIRST + "asks for 3 CPUs, 2 are free on gpu1"),
        case("more CPUs held than there are", view(job("a1", "0", cpus=1), run("b1", cpus=9), cpus=4), "",
             a1=FIRST + "asks for 1 CPU, 0 are free on gpu1"),
        case("no CPU asked for", view(job("a1", "0"), run("b1", cpus=9), cpus=4), "a1"),
        case("memory", view(job("a1", memory=3072), job("a2", memory=2048), memory=4096), "a1:0",
             a2=FIRST + "asks for 2 GiB of memory, 1 GiB are free on gpu1"),
        case("memory held", view(job("a1", memory=3072), run("b1", memory=3584), memory=4096), "",
             a1=FIRST + "asks for 3 GiB of memory, 512 MiB are free on gpu1"),
        case("memory that a stranger uses", view(job("a1", memory=3072), memory=4096, memory_free=1000), "",
             a1=FIRST + "asks for 3 GiB of memory, 1000 MiB are free on gpu1"),
        case("memory promised but not used yet", view(job("a1", memory=3072), run("b1", memory=2048), memory=4096,
             memory_free=4000), "", a1=FIRST + "asks for 3 GiB of memory, 2 GiB are free on gpu1"),
        case("memory, several", view(*(job(f"a{n}", "0", memory=1024) for n in range(4)), memory=4096,
             memory_free=3000),
             "a0 a1", a2=FIRST + "asks for 1 GiB of memory, 952 MiB are free on gpu1"),
    ],
)  # fmt: skip
def test_room(seen: View, start: str, waits: Mapping[str, str]) -> None:
    check(seen, start, waits)


@pytest.mark.parametrize(
    ("seen", "start", "waits"),
    [
        case("here", view(job("a1", hosts=("gpu1", "gpu2"))), "a1:0"),
        case("elsewhere", view(job("a1", hosts=("gpu2",))), "", a1="it is only for gpu2"),
        case("label", view(job("a1", labels=("nvlink",)), labels=("nvlink", "x")), "a1:0"),
        case("no such label", view(job("a1", labels=("nvlink",))), "", a1="gpu1 has no label nvlink"),
        case("never", view(job("a1", "5")), "", a1="it asks for 5 GPUs, and gpu1 has 4 such"),
        case("never, and holds up nobody", view(job("a1", "5"), job("a2")), "a2:0"),
        case("paused", view(job("a1", queue="night"), job("a2"), lab=lab(night={}), paused={"night": "ann"}), "a2:0",
             a1="queue night is paused by ann"),
        case("paused by nobody known", view(job("a1"), paused={"default": ""}), "", a1="queue default is paused"),
        case("drained", view(job("a1"), job("b1"), drained=True), "", a1="host gpu1 is being drained",
             b1="host gpu1 is being drained"),
        case("not yet", view(job("a1", not_before=NOW + 180)), "",
             a1="retry not before 13:49 UTC (in 3m), with cron's next pass"),
        case("in a moment", view(job("a1", not_before=NOW + 9)), "",
             a1="retry not before 13:46 UTC, with cron's next pass"),
        case("now", view(job("a1", not_before=NOW)), "a1:0"),
        case("not for an hour", view(job("a1", not_before=NOW + 3600)), "", a1="retry not before…"),
        case("by a clock a month ahead", view(job("a1", not_before=NOW + 30 * 86400)), "a1:0"),
        case("escapes in a person's name", view(job("a1"), paused={"default": "ann\x1b[31m"}), "",
             a1="queue default is paused by ann\N{REPLACEMENT CHARACTER}[31m"),
    ],
)  # fmt: skip
def test_not_in_the_line(seen: View, start: str, waits: Mapping[str, str]) -> None:
    check(seen, start, waits)


ENDINGS = ("finished", "failed", "cancelled")
GOING = {"submitted": "waiting", "claimed": "starting", "started": "running", "lost": "lost", "preempted": "preempted",
         "retry": "retry", "": "not found"}  # fmt: skip


@pytest.mark.parametrize("end", ["ok", "any"])
@pytest.mark.parametrize("state", [*ENDINGS, *GOING])
def test_dependencies(state: str, end: str) -> None:
    seen = view(job("a1", after=(After("01KAAAAAAAAAAAAAAAAAAAWZ7Q", end),)), job("a2"),
                states={"01KAAAAAAAAAAAAAAAAAAAWZ7Q": state} if state else {})  # fmt: skip
    if state == "finished" or (end == "any" and state in ENDINGS):
        assert started(plan(seen, NOW)) == "a1:0 a2:1"
    elif state in ENDINGS:
        made = check(seen, "a2:0", {})
        how = {"failed": "failed", "cancelled": "was cancelled"}[state]
        assert made.fail == {"a1": f"it was to run after job 01K…WZ7Q, which {how}"}
        assert plan(replace(seen, acting="bob"), NOW).fail == {}, "another user's job is another's to fail"
        assert plan(replace(seen, acting="ann"), NOW).fail == made.fail
    else:
        check(seen, "a2:0", {"a1": f"waits for job 01K…WZ7Q ({GOING[state]})"})


def test_all_dependencies_count() -> None:
    after = (After("b1"), After("b2", "any"), After("b3"))
    states = {"b1": "finished", "b2": "failed", "b3": "started"}
    check(view(job("a1", after=after), states=states), "", {"a1": "waits for job b3 (running)"})
    check(view(job("a1", after=after), states={**states, "b3": "finished"}), "a1:0", {})
    made = plan(view(job("a1", after=after), states={**states, "b3": "failed"}, drained=True), NOW)
    assert made.fail == {"a1": "it was to run after job b3, which failed"}


X = "01KAAAAAAAAAAAAAAAAAAAWZ7Q"


@pytest.mark.parametrize(
    ("end", "ends", "waits", "fails"),
    [
        ("ok", None, "waits for 40 of 40 of array 01K…WZ7Q", ""),
        ("ok", Ends(37), "waits for 3 of 40 of array 01K…WZ7Q", ""),
        ("ok", Ends(40), "", ""),
        ("ok", Ends(2, 1), "", "it was to run after array 01K…WZ7Q, of which 1 job did not succeed"),
        ("ok", Ends(40, 2), "", "it was to run after array 01K…WZ7Q, of which 2 jobs did not succeed"),
        ("any", None, "waits for 40 of 40 of array 01K…WZ7Q", ""),
        ("any", Ends(39, 7), "waits for 1 of 40 of array 01K…WZ7Q", ""),
        ("any", Ends(40, 40), "", ""),
    ],
)
def test_a_whole_array_is_waited_for(end: str, ends: Ends | None, waits: str, fails: str) -> None:
    """Nor is its first job, or as much of it as somebody else waits for, taken for it."""
    others = {(X, 1): Ends(1, 1), (X, 39): Ends(39)}
    arrays = {**others, (X, 40): ends} if ends else others
    made = plan(view(job("a1", after=(After(X, end, 40),)), states={X: "finished"}, arrays=arrays), NOW)
    assert (made.waits, made.fail) == ({"a1": waits} if waits else {}, {"a1": fails} if fails else {})
    assert started(made) == ("" if waits or fails else "a1:0")


@pytest.mark.parametrize(
    ("job_", "name"), [("01KAAAAAAAAAAAAAAAAAAAWZ7Q", "01K…WZ7Q"), ("a1", "a1"), ("12345678", "12345678")]
)
def test_short_ids(job_: str, name: str) -> None:
    assert short(job_) == name


# ---- the order -----------------------------------------------------------------------------------


def order(seen: View) -> str:
    line = [j.id for j in in_order(seen.waiting, seen, NOW)]
    assert line == [j.id for j in in_order(reversed(seen.waiting), seen, NOW)]
    return " ".join(line)


NIGHT = lab(night={}, day={})


def raised(**most: int) -> Lab:
    return replace(lab(), users={user: UserLimits(max_priority=number) for user, number in most.items()})


OWN = {"own": {"preempts": True, "preemptible": True}}


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (view(job("a2"), job("a1"), job("a3")), "a1 a2 a3"),
        (view(job("a1"), job("a2", priority=5), job("a3", priority=-5)), "a2 a1 a3"),
        (view(job("a1"), job("a2", rank=-1), job("a3"), job("a0", rank=1)), "a2 a1 a3 a0"),
        (view(job("a1", rank=-9), job("a2", priority=1, rank=9)), "a2 a1"),
        (view(job("a1"), job("b2"), job("b3"), job("a4", rank=-9)), "a4 b2 a1 b3"),  # nobody else's are passed
        (view(job("a1"), job("a2", rank=-9), job("b3", rank=9), usage={"ann": 5}), "b3 a2 a1"),
        (view(job("a1", queue="night"), job("a2", queue="day"), job("a3"), lab=NIGHT), "a3 a1 a2"),
        (view(job("a1"), job("a2", queue="day", priority=9), lab=NIGHT, queues=("day", "default")), "a2 a1"),
        (view(job("a1", priority=9, queue="night"), job("a2"), lab=NIGHT), "a2 a1"),
        # users in turn
        (view(job("a1"), job("a2"), job("a3"), job("b1")), "a1 b1 a2 a3"),
        (view(job("b1"), job("b2"), job("a1"), job("a2"), job("c1")), "a1 b1 c1 a2 b2"),
        (view(*(job(f"a{n}") for n in range(9)), job("b1"), job("b2")), "a0 b1 a1 b2 a2 a3 a4 a5 a6 a7 a8"),
        # a priority passes one's own, and others' as far as the lab allows
        (view(job("a1"), job("a2"), job("b3", priority=1), job("b2")), "a1 b3 a2 b2"),
        (view(job("a1"), job("a2"), job("b1", priority=-1), job("b2")), "a1 b2 a2 b1"),
        (view(job("a1"), job("a2"), job("b3", priority=1), job("b2"), lab=raised(bob=1)), "b3 a1 b2 a2"),
        (view(job("a1", priority=9), job("b2", priority=7), job("b3", priority=9), lab=raised(bob=7)), "b3 b2 a1"),
        (view(job("a1", priority=9), job("b2", priority=7), job("c3", priority=9), lab=raised(**{"*": 9})), "a1 c3 b2"),
        (view(job("a1"), job("a2", queue="night"), job("b2", queue="night"), lab=NIGHT), "a1 a2 b2"),
        # who used less goes first
        (view(job("a1"), job("b1"), usage={"ann": 10.0}), "b1 a1"),
        (view(job("a1"), job("a2"), job("b1"), job("b2"), usage={"ann": 10.0, "bob": 5.0}), "b1 a1 b2 a2"),
        (view(job("a1"), job("b1"), job("c1"), usage={"ann": 9e9, "bob": 5.0}), "c1 b1 a1"),
        (view(job("a1"), job("b1"), run("a0", "0")), "b1 a1"),
        (view(job("a1"), job("b1"), run("a0", "0", host="gpu7")), "b1 a1"),
        # what runs counts as long as it ran (100 s, if not said)
        (view(job("a1"), job("b1"), run("a0", "0"), usage={"bob": 99.0}), "b1 a1"),
        (view(job("a1"), job("b1"), run("a0", "0"), usage={"bob": 101.0}), "a1 b1"),
        (view(job("a1"), job("b1"), run("a0", "0 1"), run("b0", "2")), "b1 a1"),
        (view(job("a1"), job("b1"), run("a0", "0"), run("b0", "2", started=NOW - 101)), "a1 b1"),
        (view(job("a1"), job("b1"), run("a0"), run("b0", "2")), "a1 b1"),
        (view(job("a1"), job("b1"), run("a0", "0", share=1), run("a9", "0", share=1, ran=10), usage={"bob": 50.0}),
         "b1 a1"),
        # a clock that is wrong is wrong by the half-life at most
        (view(job("a1"), job("b1"), run("a0", "0", started=0.0), usage={"bob": 6e5}), "b1 a1"),
        (view(job("a1"), job("b1"), run("a0", "0", started=-1e9), usage={"bob": 7e5}), "a1 b1"),
        (view(job("a1"), job("b1"), run("b0", "0", started=NOW + 1e9), usage={"ann": 1.0}), "b1 a1"),
        # shares of one GPU are one GPU
        (view(job("a1"), job("b1"), run("a0", "0", share=1), run("a9", "0", share=1), usage={"bob": 150.0}), "a1 b1"),
        (view(job("a1"), job("b1"), run("a0", "0", share=1), run("a9", "1", share=1), usage={"bob": 150.0}), "b1 a1"),
    ],
)  # fmt: skip
def test_order(seen: View, line: str) -> None:
    assert order(seen) == line


@pytest.mark.parametrize(
    ("seen", "start", "waits"),
    [
        case("first come", view(job("a1"), job("a2"), gpus=1), "a1:0",
             a2=FIRST + "asks for 1 GPU, 0 are free on gpu1 (GPU 0 kept for ann's job a1, which is ahead)"),
        case("places in the line", view(job("a1"), run("b1", "0"), *(job(f"a{n}") for n in range(2, 5)), gpus=1), "",
             a1=FIRST + "…", a2=SECOND + "…", a3="3rd in queue default; …", a4="4th in queue default; …"),
        case("places per queue", view(run("b1", "0"), job("a1"), job("a2", queue="night"), gpus=1, lab=NIGHT), "",
             a1=FIRST + "…", a2="1st in queue night; …"),
        case("another's first: left free", view(job("a1"), job("b1", "4"), acting="bob", usage={"bob": 1.0}), "",
             a1=FIRST + "starts at ann's next tick on gpu1",
             b1=SECOND + "asks for 4 GPUs, 3 are free on gpu1 (GPU 0 kept for ann's job a1, which is ahead)"),
        case("another's first: room for mine", view(job("a1"), job("b1", "3"), acting="bob"), "b1:1,2,3",
             a1=FIRST + "starts at ann's next tick on gpu1"),
        case("mine first", view(job("a1"), job("b1"), acting="ann"), "a1:0",
             b1=FIRST + "starts at bob's next tick on gpu1"),
        case("one account", view(job("a1"), job("b1"), acting=None), "a1:0 b1:1"),
        case("nobody's", view(job("a1"), acting="eve"), "", a1=FIRST + "starts at ann's next tick on gpu1"),
    ],
)  # fmt: skip
def test_line(seen: View, start: str, waits: Mapping[str, str]) -> None:
    check(seen, start, waits)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 10, 11, 12, 13, 14, 21, 22, 23, 101, 111, 112])
def test_ordinals(number: int) -> None:
    seen = view(run("b1", "0"), *(job(f"a{n:03}") for n in range(1, number + 1)), gpus=1)
    ending = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 101: "st"}.get(number, "th")
    assert plan(seen, NOW).waits[f"a{number:03}"].startswith(f"{number}{ending} in queue default;")


# ---- limits --------------------------------------------------------------------------------------

TWO = {"max_running": 2}
MINE = {"max_running_per_user": 2}
GPUS = {"max_gpus_per_user": 2}


@pytest.mark.parametrize(
    ("seen", "start", "waits"),
    [
        case("array", view(*(job(f"a{n}", array="x", array_limit=2) for n in range(4))), "a0:0 a1:1",
             a2="array limit: 2 of 2 running", a3="array limit: 2 of 2 running"),
        case("array, some run", view(*(job(f"a{n}", array="x", array_limit=2) for n in range(4)), run("a9", "0",
             array="x")),
             "a0:1", a1="array limit: 2 of 2 running"),
        case("array, elsewhere", view(job("a1", array="x", array_limit=1), run("a9", "0", array="x", host="gpu2")), "",
             a1="array limit: 1 of 1 running"),
        case("two arrays", view(job("a1", array="x", array_limit=1), job("a2", array="y", array_limit=1)), "a1:0 a2:1"),
        case("array without limit", view(*(job(f"a{n}", array="x") for n in range(3))), "a0:0 a1:1 a2:2"),
        case("no array", view(job("a1", array_limit=1), job("a2", array_limit=1)), "a1:0 a2:1"),
        case("queue", view(job("a1"), job("b1"), job("c1"), lab=lab(default=TWO)), "a1:0 b1:1",
             c1="queue default is full: 2 of 2 running"),
        case("queue, elsewhere too", view(job("a1"), job("b1"), run("c1", "1", host="gpu2"), lab=lab(default=TWO)),
             "a1:0",
             b1="queue default is full: 2 of 2 running"),
        case("queue, another queue's", view(job("a1"), run("c1", "1"), run("c2", "2"), lab=lab(default=TWO, night={})),
             "", a1="queue default is full: 2 of 2 running"),
        case("queue, not this", view(job("a1", queue="night"), run("c1", "1"), run("c2", "2"),
             lab=lab(default=TWO, night={})), "a1:0"),
        case("per user", view(job("a1"), job("a2"), job("a3"), job("b1"), lab=lab(default=MINE)), "a1:0 b1:1 a2:2",
             a3="your limit in queue default: 2 running"),
        case("per user, per queue", view(job("a1"), job("a2", queue="night"),
             lab=lab(default={"max_running_per_user": 1},
             night={"max_running_per_user": 1})), "a1:0 a2:1"),
        case("GPUs per user", view(job("a1", "2"), job("a2"), job("b1"), lab=lab(default=GPUS)), "a1:0,1 b1:2",
             a2="your limit in queue default: 2 GPUs, you hold 2 and this asks for 1"),
        case("GPUs per user, no GPU", view(job("a1", "2"), job("a2", "0"), lab=lab(default=GPUS)), "a1:0,1 a2"),
        case("GPUs per user, elsewhere", view(job("a1", "2"), run("a0", "9", host="gpu2"), lab=lab(default=GPUS)), "",
             a1="your limit in queue default: 2 GPUs, you hold 1 and this asks for 2"),
        case("more than the limit", view(job("a1", "3"), job("a2"), lab=lab(default=GPUS)), "a2:0",
             a1="your limit in queue default: 2 GPUs, you hold 0 and this asks for 3"),
        case("a user's limit", view(job("a1"), job("a2", queue="night"), job("b1"), job("b2"),
             lab=replace(NIGHT, users={"ann": UserLimits(max_running=1)})), "a1:0 b1:1 b2:2",
             a2="your limit in this lab: 1 running"),
        case("everyone's limit", view(job("a1"), job("a2"), job("b1"), job("b2"),
             lab=replace(NIGHT, users={"*": UserLimits(max_running=1)})), "a1:0 b1:1",
             a2="your limit in this lab: 1 running", b2="your limit in this lab: 1 running"),
        case("a user's GPUs", view(job("a1", "2"), job("a2", queue="night"),
             lab=replace(NIGHT, users={"ann": UserLimits(max_gpus=2)})), "a1:0,1",
             a2="your limit in this lab: 2 GPUs, you hold 2 and this asks for 1"),
        case("who is at a limit holds up nobody", view(job("a1", "4"), job("b1", "2"), run("a0", "0"),
             lab=lab(default={"max_gpus_per_user": 4})), "b1:1,2",
             a1="your limit in queue default: 4 GPUs, you hold 1 and this asks for 4"),
        case("others' planned jobs count", view(job("a1"), job("b1"), acting="bob",
             lab=lab(default={"max_running": 1})), "",
             a1=FIRST + "starts at ann's next tick on gpu1", b1="queue default is full: 1 of 1 running"),
        case("shares of one GPU count once", view(*(job(f"a{n}", gpu_share=20480) for n in range(5)),
             lab=lab(default={"max_gpus_per_user": 1})), "a0:0 a1:0 a2:0 a3:0",
             a4="your limit in queue default: 1 GPU, you hold 1 and this asks for 1"),
        case("a share where one is held already", view(job("a1", gpu_share=1024), run("a0", "2", share=1024),
             run("b0", "1", share=70000), lab=lab(default={"max_gpus_per_user": 1})), "a1:2"),
        case("a share where both limits let it", view(job("a1", gpu_share=1024), run("a0", "2", share=1024),
             run("a9", "1", share=70000, queue="night"),
             lab=Lab(queues=lab(default={"max_gpus_per_user": 1}, night={}).queues,
             users={"ann": UserLimits(max_gpus=2)})),
             "a1:2"),
        case("nor beside what is kept for another", view(job("b1", "RTX"), job("a2", gpu_share=1024),
             run("c0", "2"), run("a0", "0", share=81920), gpus=(*cards(2), *cards(1, RTX, 2)), usage={"ann": 1.0},
             lab=lab(default={"max_gpus_per_user": 1})), "",
             a2="your limit in queue default: 1 GPU, you hold 1 and this asks for 1"),
        case("no GPU is never too many, also where a limit was lowered meanwhile", view(job("a1", "0"), job("a2"),
             run("a0", "0 1"), lab=replace(lab(default={"max_gpus_per_user": 1}),
             users={"ann": UserLimits(max_gpus=1)})), "a1",
             a2="your limit in queue default: 1 GPU, you hold 2 and this asks for 1"),
        case("a share is too many beside whole GPUs", view(job("a1", gpu_share=1024), run("a0", "2"),
             lab=lab(default={"max_gpus_per_user": 1})), "",
             a1="your limit in queue default: 1 GPU, you hold 1 and this asks for 1"),
    ],
)  # fmt: skip
def test_limits(seen: View, start: str, waits: Mapping[str, str]) -> None:
    check(seen, start, waits)


# ---- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "start", "waits"),
    [
        case("one", view(job("a1", gpu_share=8192)), "a1:0"),
        case("packed", view(*(job(f"a{n}", gpu_share=40960) for n in range(5))), "a0:0 a1:0 a2:1 a3:1 a4:2"),
        case("two halves of what is sold as 24 GiB", view(job("a1", gpu_share=12288), job("a2", gpu_share=12288),
             gpus=cards(1, RTX)), "a1:0 a2:0"),
        case("the fullest that fits", view(job("a1", gpu_share=8192), run("b0", "1", share=60000), run("b1", "2",
             share=70000),
             run("b2", "3", share=80000)), "a1:2"),
        case("the shared before the empty", view(job("a1", gpu_share=8192), run("b0", "3", share=1)), "a1:3"),
        case("the shared before the empty and small", view(job("a1", gpu_share=8192), run("b0", "0", share=1),
             gpus=MIXED),
             "a1:0"),
        case("empty: the smallest", view(job("a1", gpu_share=8192), gpus=MIXED), "a1:2"),
        case("by name", view(job("a1", "A100", gpu_share=8192), gpus=MIXED), "a1:0"),
        case("by names, the first of them", view(job("a1", "A100,4090:1", gpu_share=8192), run("b1", "2", share=1),
             gpus=MIXED), "a1:0"),
        case("by UUID", view(job("a1", "GPU-3", gpu_share=8192), run("b0", "0", share=1)), "a1:3"),
        case("too large for the small", view(job("a1", gpu_share=40960), gpus=MIXED), "a1:0"),
        case("whole and share never mix", view(job("a1", gpu_share=8192), job("a2", "4")), "a1:0",
             a2=FIRST + "asks for 4 GPUs, 3 are free on gpu1 (GPU 0 kept for ann's job a1, which is ahead)"),
        case("share on a whole", view(job("a1", gpu_share=8192), run("b0", "0"), gpus=1), "",
             a1=FIRST + "asks for 8 GiB of one GPU, no GPU has so much left on gpu1 (GPU 0 held by bob's job b0)"),
        case("no room left", view(job("a1", gpu_share=40960), run("b0", "0", share=40961), gpus=1), "",
             a1=FIRST + "asks for 40 GiB of one GPU, no GPU has so much left on gpu1 (GPU 0 held by bob's job b0)"),
        case("who shares", view(job("a1", gpu_share=40960), run("b0", "0", share=30000), run("b1", "0", share=30000),
             gpus=1),
             "", a1=FIRST + "asks for 40 GiB of one GPU, no GPU has so much left on gpu1 "
             "(GPU 0 held by bob's job b0 and 1 more)"),
        case("just room", view(job("a1", gpu_share=40960), run("b0", "0", share=40960), gpus=1), "a1:0"),
        case("leases that the queue's log lacks", view(job("a1", gpu_share=40960), gpus=1,
             shares={"GPU-0": {"c9": 50000}}), "",
             a1=FIRST + "asks for 40 GiB of one GPU, no GPU has so much left on gpu1 (GPU 0 shared with job c9)"),
        case("a lease and its job count once", view(job("a1", gpu_share=40960), run("b0", "0", share=40960), gpus=1,
             shares={"GPU-0": {"b0": 40960}}), "a1:0"),
        case("the holder of a shared GPU", view(job("a1", gpu_share=8192), run("b0", "0", share=1),
             gpus=(replace(cards(1)[0], holder=Holder("bob")),)), "a1:0"),
        case("a stranger on a shared GPU", view(job("a1", gpu_share=8192), run("b0", "0", share=1),
             gpus=(used(cards(1)[0]),)), "",
             a1=FIRST + "asks for 8 GiB of one GPU, no GPU has so much left on gpu1 "
             "(GPU 0 held by bob's job b0 and 1 more)"),
        case("a stranger's GPU", view(job("a1", gpu_share=8192), gpus=(used(cards(1)[0]),)), "", a1=FIRST + "…"),
        case("a broken GPU", view(job("a1", gpu_share=8192), run("b0", "0", share=1), gpus=(broken(cards(1)[0]),)), "",
             a1=FIRST + "…"),
        case("whole GPUs around a shared one", view(job("a1", "3"), run("b0", "1", share=1)), "a1:0,2,3"),
    ],
)  # fmt: skip
def test_shares(seen: View, start: str, waits: Mapping[str, str]) -> None:
    made = check(seen, start, waits)
    asked = {j.id: j.resources.gpu_share for j in seen.waiting}
    assert all(s.share == asked[s.job] for s in made.start)


# ---- back-fill -----------------------------------------------------------------------------------

KEPT = SECOND + "kept for ann's job a1, which waits for "
HOUR = 3600


@pytest.mark.parametrize(
    ("seen", "start", "waits"),
    [
        case("short enough", view(job("a1", "4"), job("a2", time_limit=HOUR), run("b1", "0", HOUR)), "a2:1",
             a1=FIRST + "asks for 4 GPUs, 3 are free on gpu1 (GPU 0 held by bob's job b1); room is expected in 1h 1m"),
        case("too long", view(job("a1", "4"), job("a2", time_limit=HOUR + 1), run("b1", "0", HOUR)), "",
             a2=KEPT + "4 GPUs; with a time limit of at most 1h it could go first"),
        case("endless", view(job("a1", "4"), job("a2"), run("b1", "0", HOUR)), "", a2=KEPT + "4 GPUs; …"),
        case("endless, beside what is kept", view(job("a1", "3"), job("a2"), run("b1", "0 1", HOUR)), "a2:3",
             a1=FIRST + "…"),
        case("the last to come free are kept", view(job("a1", "2"), job("a2"), run("b1", "0", HOUR), run("b2", "1",
             HOUR),
             run("b3", "2", 2 * HOUR)), "a2:3"),
        case("the queue's limit counts", view(job("a1", "4"), job("a2"), run("b1", "0", HOUR),
             lab=lab(default={"time_limit": 1800})), "a2:1"),
        case("the same in a quicker queue", view(job("a1", "4"), job("a2"), job("a3", queue="night"), run("b1", "0",
             HOUR),
             lab=lab(night={"time_limit": 1800})), "a3:1", a2=KEPT + "4 GPUs; …"),
        case("the queue's longest counts", view(job("a1", "4"), job("a2", time_limit=9 * HOUR), run("b1", "0", HOUR),
             lab=lab(default={"max_time_limit": 1800})), "a2:1"),
        case("several short ones", view(job("a1", "4"), *(job(f"a{n}", time_limit=60 * n) for n in range(2, 6)),
             run("b1", "0", HOUR)), "a2:1 a3:2 a4:3", a5=SECOND + "asks for 1 GPU, 0 are free…"),
        case("the earliest end that suffices", view(job("a1", "3"), job("a2", time_limit=2 * HOUR), run("b1", "0",
             HOUR),
             run("b2", "1", 2 * HOUR), run("b3", "2", 3 * HOUR)), "a2:3",
             a1=FIRST + "asks for 3 GPUs, 1 is free on gpu1 "
             "(GPU 0 held by bob's job b1; GPU 1 held by bob's job b2; GPU 2 held by bob's job b3); "
             "room is expected in 2h 1m"),
        case("ends after that", view(job("a1", "3"), job("a2", time_limit=2 * HOUR + 1), run("b1", "0", HOUR),
             run("b2", "1", 2 * HOUR), run("b3", "2", 3 * HOUR)), "", a2=KEPT + "3 GPUs; …"),
        case("another kind is free", view(job("a1", "A100:2"), job("a2", "4090:2"), run("b1", "0", HOUR), gpus=MIXED),
             "a2:2,3"),
        case("only the first one is kept room for", view(job("a1", "4"), job("a2", "3"), job("a3", time_limit=HOUR),
             run("b1", "0 1", HOUR)), "a3:2",
             a2=SECOND + "asks for 3 GPUs, 2 are free on gpu1 (GPU 0, 1 held by bob's job b1)"),
        case("no end known: the free ones are kept", view(job("a1", "2"), job("a2"), job("a3", time_limit=60),
             run("b1", "0 1 2")), "", a2=KEPT + "2 GPUs", a3="3rd in queue default; kept for ann's job a1, …"),
        case("no end known: no more than it needs", view(job("a1", "GPU-0,GPU-1"), job("a2"), job("a3"), run("b1",
             "0")),
             "a2:2 a3:3"),
        case("an end that is not enough", view(job("a1", "4"), job("a2", time_limit=60), run("b1", "0", HOUR),
             run("b2", "1")), "", a2=KEPT + "4 GPUs"),
        case("a stranger has no end", view(job("a1", "4"), job("a2"), gpus=(used(cards(1)[0]), *cards(3, first=1))), "",
             a2=KEPT + "4 GPUs"),
        case("a job's own processes are no stranger's", view(job("a1", "4"), job("a2", time_limit=HOUR),
             run("b1", "0", HOUR), gpus=(used(cards(1)[0]), *cards(3, first=1))), "a2:1"),
        case("what a broken GPU would be needed for keeps nothing",
             view(job("a1", "4"), job("a2"), gpus=(broken(cards(1)[0]), *cards(3, first=1))), "a2:1", a1=FIRST + "…"),
        case("reserved elsewhere: keeps nothing", view(job("a1", "4"), job("a2"), run("b1", "0", HOUR),
             reserved_here=frozenset()), "a2:1",
             a1=FIRST + "asks for 4 GPUs, 3 are free on gpu1 (GPU 0 held by bob's job b1)"),
        case("the first that is reserved here", view(job("a1", "4"), job("a2", "3"), job("a3"), run("b1", "0 1", HOUR),
             reserved_here=frozenset({"a2"})), "a3:3", a2=SECOND + "asks for 3 GPUs, 2 are free…"),
        case("over its time: about to end", view(job("a1", "4"), job("a2", time_limit=61), run("b1", "0", -500)), "",
             a1=FIRST + "asks for 4 GPUs, 3 are free on gpu1 (GPU 0 held by bob's job b1); room is expected in 1m"),
        case("over its time: very short jobs wait too", view(job("a1", "4"), job("a2", time_limit=1),
             run("b1", "0", -500)), "", a2=KEPT + "4 GPUs"),
        case("told to end", view(job("a1", "4"), job("a2", time_limit=1), run("b1", "0", ending=True)), "",
             a1=FIRST + "asks for 4 GPUs, 3 are free on gpu1 (GPU 0 held by bob's job b1, which is ending); "
             "room is expected in 1m"),
        case("a planned job's end", view(job("a1", time_limit=HOUR), job("a2", "4"), job("a3", time_limit=HOUR)),
             "a1:0 a3:1",
             a2=FIRST + "asks for 4 GPUs, 3 are free on gpu1 (GPU 0 kept for ann's job a1, which is ahead); "
             "room is expected in 1h 1m"),
        case("another's big job is kept room for", view(job("a1", "4"), job("b2"), run("c1", "0", HOUR), acting="bob"),
             "",
             b2=KEPT + "4 GPUs; …"),
        case("another's small job fills the gap", view(job("a1", "4"), job("b2", time_limit=60), job("b3", "3",
             time_limit=60),
             run("c1", "0", HOUR), acting="bob"), "b2:1",
             b3=SECOND + "asks for 3 GPUs, 2 are free on gpu1 "
             "(GPU 0 held by cat's job c1; GPU 1 kept for bob's job b2, …"),
        case("CPUs are kept", view(job("a1", "0", cpus=8), job("a2", "0", cpus=1), run("b1", ends=HOUR, cpus=4),
             cpus=8), "",
             a1=FIRST + "asks for 8 CPUs, 4 are free on gpu1; room is expected in 1h 1m",
             a2=KEPT + "8 CPUs; with a time limit of at most 1h it could go first"),
        case("CPUs that are left over then", view(job("a1", "0", cpus=6), job("a2", "0", cpus=2), job("a3", "0",
             cpus=1),
             run("b1", ends=HOUR, cpus=4), cpus=8), "a2",
             a3=SECOND + "kept for ann's job a1, which waits for 6 CPUs; …"),
        case("CPUs, short", view(job("a1", "0", cpus=8), job("a2", "0", cpus=1, time_limit=60), run("b1", ends=HOUR,
             cpus=4),
             cpus=8), "a2"),
        case("CPUs, no end known", view(job("a1", "0", cpus=8), job("a2", "0", cpus=1, time_limit=60), run("b1",
             cpus=4),
             cpus=8), "", a2=KEPT + "8 CPUs"),
        case("CPUs, no end known, fewer than there are", view(job("a1", "0", cpus=6), job("a2", "0", cpus=1), run("b1",
             cpus=4),
             cpus=8), "", a2=KEPT + "6 CPUs"),
        case("memory is kept", view(job("a1", "0", memory=2048), job("a2", "0", memory=512), run("b1", ends=HOUR,
             memory=1024),
             memory=2048), "", a2=KEPT + "2 GiB of memory; …"),
        case("memory that is left over then", view(job("a1", memory=2048), job("a2", memory=512),
             run("b1", ends=HOUR, memory=1024), memory=2560), "a2:1"),
        case("a CPU job passes one that waits for GPUs", view(job("a1", "4"), job("a2", "0", cpus=1), run("b1", "0")),
             "a2"),
        case("a share is kept room for", view(job("a1", gpu_share=40960), job("a2", gpu_share=1024), job("a3",
             gpu_share=1024,
             time_limit=60), run("b1", "0", HOUR, share=60000), gpus=1), "a3:0",
             a2=SECOND + "kept for ann's job a1, which "
             "waits for 40 GiB of one GPU; with a time limit of at most 1h it could go first"),
        case("the end of a share whose lease is seen too", view(job("a1", "4"), job("a2", time_limit=HOUR),
             run("b1", "0", HOUR, share=1024), shares={"GPU-0": {"b1": 1024}}), "a2:1"),
        case("what is free is said anew", view(job("a1", "4"), job("a2", "2"), job("a3", "4"), run("b1", "0"),
             reserved_here=frozenset()), "a2:1,2", a1=FIRST + "asks for 4 GPUs, 3 are free…",
             a3=SECOND + "asks for 4 GPUs, 1 is free…"),
        case("of shares, the one with most room is kept", view(job("a1", gpu_share=40960), job("a2", gpu_share=1024),
             run("b1", "0", share=70000), run("b2", "1", share=60000), gpus=2), "a2:0"),
        case("a share passes beside", view(job("a1", "2"), job("a2", gpu_share=1024), run("b1", "0", share=1024),
             gpus=2), ""),
        case("a share where no whole GPU is wanted", view(job("a1", "GPU-1,GPU-2"), job("a2", gpu_share=1024),
             run("b1", "0", share=1024), run("b2", "1")), "a2:0"),
    ],
)  # fmt: skip
def test_back_fill(seen: View, start: str, waits: Mapping[str, str]) -> None:
    check(seen, start, waits)


# ---- preemption ----------------------------------------------------------------------------------

URGENT = lab(urgent={"priority": 10, "preempts": True}, night={"priority": -10, "preemptible": True}, day={})
SERVED = ("urgent", "day", "default", "night")


def urgent(*jobs: Waiting | Running, **more: Any) -> View:
    """Waiting jobs are in the queue that preempts, running ones in one that can be preempted."""
    placed = [replace(j, queue={"default": "urgent" if isinstance(j, Waiting) else "night"}.get(j.queue, j.queue))
              for j in jobs]  # fmt: skip
    return view(*placed, **{"lab": URGENT, "queues": SERVED, **more})


@pytest.mark.parametrize(
    ("_name", "seen", "preempted", "waits"),
    [
        ("not needed", urgent(job("a1"), run("b1", "0")), "", ""),
        ("the only one", urgent(job("a1"), run("b1", "0"), gpus=1), "b1",
         "1st in queue urgent; starts when room is made by the end of bob's job b1"),
        ("the youngest", urgent(job("a1"), *(run(f"b{n}", str(n), ran=100 - n) for n in range(4))), "b3", ""),
        ("the younger two", urgent(job("a1", "2"), *(run(f"b{n}", str(n), ran=n + 1) for n in range(4))), "b0 b1",
         "1st in queue urgent; starts when room is made by the end of bob's job b1 and bob's job b0"),
        ("the fewest", urgent(job("a1", "2"), run("b1", "0", ran=1), run("b2", "1", ran=2), run("b3", "2 3",
         ran=9)),
         "b3", ""),
        ("with what is free", urgent(job("a1", "2"), run("b1", "0", ran=9), run("b2", "1 2", ran=99)), "b1", ""),
        ("not enough even so", urgent(job("a1", "4"), run("b1", "0"), run("c1", "1", queue="day")), "",
         "1st in queue urgent; asks for 4 GPUs, 2 are free…"),
        ("a stranger can't be", urgent(job("a1", "4"), run("b1", "1"), gpus=(used(cards(1)[0]), *cards(3, first=1))),
         "", ""),
        ("not preemptible", urgent(job("a1"), run("b1", "0", queue="day"), gpus=1), "", ""),
        ("from a queue that does not preempt", urgent(job("a1", queue="night"), run("b1", "0"), gpus=1), "",
         "1st in queue night; asks for…"),
        ("of a queue that is gone", urgent(job("a1"), run("b1", "0", queue="old"), gpus=1), "", ""),
        ("elsewhere", urgent(job("a1"), run("c1", "0", queue="day"), run("b1", "0", host="gpu2"), gpus=1), "", ""),
        ("reserved elsewhere", urgent(job("a1"), run("b1", "0"), gpus=1, reserved_here=frozenset()), "", ""),
        ("of the kind asked for", urgent(job("a1", "A100:1"), run("b1", "0 1", ran=9), run("b2", "2", ran=1),
         gpus=MIXED),
         "b1", ""),
        ("the UUID asked for", urgent(job("a1", "GPU-2"), run("b1", "0", ran=1), run("b2", "2", ran=9)), "b2",
         ""),
        ("one that ends anyway is enough", urgent(job("a1"), run("b1", "0", ending=True, ran=9), run("b2", "1"),
         gpus=2), "",
         "1st in queue urgent; starts when room is made by the end of bob's job b1"),
        ("one that ends anyway, and one more", urgent(job("a1", "2"), run("b1", "0", ending=True, ran=99),
         run("b2", "1", ran=9), run("b3", "2", ran=1), gpus=3), "b3", ""),
        ("two that each need one", urgent(job("a1"), job("a2"), *(run(f"b{n}", str(n),
         ran=n + 1) for n in range(4))),
         "b0 b1", ""),
        ("two, and one can be had", urgent(job("a1"), job("a2"), run("b1", "0"), gpus=1), "b1",
         "1st in queue urgent; starts when room is made by the end of bob's job b1"),
        ("all the shares of one", urgent(job("a1"), *(run(f"b{n}", "0", share=1, ran=n + 1) for n in range(3)),
         *(run(f"c{n}", "1", share=1, ran=n + 9) for n in range(2)), gpus=2), "c0 c1", ""),
        ("a share for a share", urgent(job("a1", gpu_share=30000), run("b1", "0", share=40000, ran=9),
         run("b2", "0", share=40000, ran=1), gpus=1), "b2", ""),
        ("another user's limit stands in nobody's way", urgent(job("a1", gpu_share=1), job("b1", gpu_share=1),
         run("a8", "8", host="gpu2"), run("c1", "0"), gpus=1, lab=replace(URGENT,
         users={"ann": UserLimits(max_gpus=1)})),
         "c1", "your limit in this lab: 1 GPU, you hold 1 and this asks for 1"),
        ("CPUs", urgent(job("a1", "0", cpus=4), run("b1", cpus=3, ran=1), run("b2", cpus=4, ran=9), cpus=7),
         "b2", ""),
        ("memory", urgent(job("a1", "0", memory=4), run("b1", memory=3, ran=1), run("b2", memory=4, ran=9),
         memory=7),
         "b2", ""),
        ("less priority in one queue", urgent(job("a1", queue="own", priority=5), run("b1", "0", queue="own",
         priority=4), gpus=1,
         lab=replace(lab(**OWN), users={"*": UserLimits(max_priority=5)}), queues=("own",)), "b1", ""),
        ("less priority than the lab lets it have", urgent(job("a1", queue="own", priority=5), run("b1", "0",
         queue="own", priority=4), gpus=1, lab=lab(**OWN), queues=("own",)), "", ""),
        ("less priority of one's own", urgent(job("b2", "2", queue="own"), job("a1", queue="own", priority=5),
         run("a0", "0", queue="own", priority=4), gpus=1, lab=lab(**OWN), queues=("own",)), "a0", ""),
        ("less priority of one's own, behind another's", urgent(job("b2", queue="own"),
         job("a1", queue="own", priority=5), run("c0", "0", queue="own"), run("a0", "1", queue="own", priority=4),
         gpus=2, lab=lab(**OWN), queues=("own",)), "a0", ""),
        ("less priority of one's own, behind two others'", urgent(job("b2", queue="own"), job("d5", queue="own"),
         job("a1", queue="own", priority=5), run("c0", "0", queue="own"), run("a0", "1", queue="own", priority=4),
         gpus=2, lab=lab(**OWN), queues=("own",)), "a0", ""),
        ("the same priority in one queue", urgent(job("a1", queue="own"), run("b1", "0", queue="own"), gpus=1,
         lab=lab(own={"preempts": True, "preemptible": True}), queues=("own",)), "", ""),
        ("one that would go first again", urgent(job("a1"), run("b1", "0"), gpus=1, queues=("night", "urgent")), "",
         ""),
        ("of a queue that is not served here", urgent(job("a1"), run("b1", "0"), gpus=1, queues=("urgent",)), "b1", ""),
        ("nor for one that can't be started here", urgent(job("a1"), run("b1", "0"), gpus=1,
         unable={("ann", "a1"): "gpu1: docker is broken"}), "", "gpu1: docker is broken"),
        ("not past a limit",
         urgent(job("a1"), run("b1", "0"), run("a9", "9", host="gpu2"), gpus=1,
                lab=replace(URGENT, users={"ann": UserLimits(max_gpus=1)})), "",
         "your limit in this lab: 1 GPU, you hold 1 and this asks for 1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_preemption(_name: str, seen: View, preempted: str, waits: str) -> None:
    made = plan(seen, NOW)
    assert " ".join(sorted(made.preempt)) == preempted
    if waits:
        assert made.waits["a1"].startswith(waits.rstrip("…"))
    for acting in USERS.values():
        part = plan(replace(seen, acting=acting), NOW)
        assert part.preempt == {v: j for v, j in made.preempt.items() if USERS[v[0]] == acting}, "only one's own"
        assert part.waits.get("a1") == made.waits.get("a1") or acting != "ann"


def test_what_a_preempted_job_holds_is_its_own_until_it_is_gone() -> None:
    seen = urgent(job("a1"), job("a2"), job("c1", queue="day", cpus=1), run("b1", "0 1 2 3", cpus=64))
    made = check(seen, "", {"a2": "2nd in queue urgent; starts when room is made by the end of bob's job b1",
                            "c1": "1st in queue day; asks for 1 GPU, 0 are free on gpu1 "
                            "(GPU 0, 1 held by bob's job b1 and 1 more; GPU 2, 3 held by bob's job b1); "
                            "room is expected in 1m"})  # fmt: skip
    assert made.preempt == {"b1": "a1"}


def test_room_that_is_made_goes_to_nobody_else() -> None:
    small = replace(job("b5"), queue="night")
    seen = urgent(job("a1", "2"), small, run("b1", "0"), gpus=2)
    why = (
        "1st in queue night; asks for 1 GPU, 0 are free on gpu1 "
        "(GPU 0 held by bob's job b1 and 1 more; GPU 1 kept for ann's job a1, which is ahead)"
    )
    made = check(seen, "", {"b5": why})
    assert made.preempt == {"b1": "a1"}
    assert "a1" in made.kept  # and so it is looked at before others wait for it
    later = replace(seen, running=(replace(seen.running[0], ending=True),))
    assert check(later, "", {}).preempt == {}
    assert started(plan(replace(seen, running=()), NOW)) == "a1:0,1"


# ---- which host keeps room -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "asked", "gpus", "why"),
    [
        ({"max_running": 2}, {}, (), ""),
        ({"max_running": 1}, {}, (), "queue default is full: 1 of 1 running"),
        ({"max_running_per_user": 1}, {}, (), "your limit in queue default: 1 running"),
        ({"max_gpus_per_user": 3}, {}, ("GPU-2", "GPU-3"), "you hold 2 and this asks for 2"),
        ({"max_gpus_per_user": 4}, {}, ("GPU-2", "GPU-3"), ""),
        ({"max_gpus_per_user": 1}, {}, (), ""),
        ({"max_gpus_per_user": 2}, {"gpu_share": 1024}, ("GPU-1",), ""),
        ({"max_gpus_per_user": 2}, {"gpu_share": 1024}, ("GPU-2",), "you hold 2 and this asks for 1"),
        ({}, {"array": "A", "array_limit": 1}, (), "array limit: 1 of 1 running"),
    ],
)
def test_one_more_beside_those_that_run(rules: dict[str, int], asked: dict[str, Any], gpus: Any, why: str) -> None:
    more = job("a2", str(len(gpus)), **asked)
    found = exceeded(lab(default=rules), [run("a1", "0 1", array="A")], more, gpus)
    assert (why in found) if why else found == ""
    assert limited(lab(default=rules), more) == bool(rules or asked.get("array_limit"))


def host(name: str, there: tuple[Gpu, ...], **more: Any) -> HostFacts:
    return HostFacts(name, there, 64, 2**18, **more)


BROKEN = "gpu1: docker here can't give GPUs to containers; tried again in 1m"
HALF = (*map(used, cards(2)), *cards(2, first=2))


@pytest.mark.parametrize(
    ("asked", "hosts", "name"),
    [
        (job("a1", "4"), [host("a", cards(4)), host("b", cards(4))], "a"),
        (job("a1", "4"), [host("b", cards(4)), host("a", cards(4))], "a"),
        (job("a1", "4"), [host("a", HALF), host("b", cards(4))], "b"),
        (job("a1", "4"), [host("a", cards(3)), host("b", HALF)], "b"),
        (job("a1", "4"), [host("a", (broken(cards(1)[0]), *cards(3, first=1))), host("b", HALF)], "b"),
        (job("a1", "4"), [host("a", (broken(cards(1)[0]), *cards(3, first=1)))], ""),
        (job("a1", "4"), [host("a", cards(4), drained=True), host("b", HALF)], "b"),
        (job("a1", "4"), [host("a", cards(4), silent=1300.0), host("b", HALF)], "b"),
        (job("a1", "4"), [host("a", cards(4), silent=1300.0)], ""),
        (job("a1", "4"), [host("a", cards(4), queues=("night",)), host("b", HALF)], "b"),
        (job("a1", "4"), [host("a", cards(4), unable={("ann", "a1"): BROKEN}), host("b", HALF)], "b"),
        (job("a1", "4"), [host("a", cards(4), unable={("bob", "a1"): BROKEN}), host("b", HALF)], "a"),
        (job("a1", "4", hosts=("b",)), [host("a", cards(4)), host("b", HALF)], "b"),
        (job("a1", "4", labels=("x",)), [host("a", cards(4)), host("b", HALF, labels=("x",))], "b"),
        (job("a1", "4090:1"), [host("a", cards(8)), host("b", cards(1, RTX))], "b"),
        (job("a1", "A100:1"), [host("a", (*cards(1), *cards(4, RTX, 1))), host("b", cards(2))], "b"),
        (job("a1", "0"), [host("b", cards(8)), host("a", ())], "a"),
        (job("a1", "1"), [], ""),
    ],
)  # fmt: skip
def test_one_host_keeps_room(asked: Waiting, hosts: list[HostFacts], name: str) -> None:
    assert reserving([asked], hosts) == {name: {asked.id} for name in [name] if name}


@pytest.mark.parametrize("owner", ["ann", "bob"])
def test_one_that_no_host_can_start_takes_no_other_s_place(owner: str) -> None:
    """They ask for the same; what is behind would go past it for ever."""
    first, second = job("a1", "4"), replace(job("a2", "4"), owner=owner)
    assert reserving([first, second], [host("a", HALF, unable={("ann", "a1"): BROKEN})]) == {"a": {"a2"}}


def reserving(jobs: list[Waiting], hosts: list[HostFacts], *running: Running, rules: Lab = NIGHT) -> dict[str, Any]:
    """Host -> the jobs that by its own tick wait there."""
    found = {}
    for here in hosts:
        others = [h for h in hosts if h is not here]
        found[here.name] = reserved_on(View(here, rules, jobs, running), others)
    return {name: ids for name, ids in found.items() if ids}


def on(name: str, *runs: Running) -> tuple[HostFacts, list[Running]]:
    """A host of four GPUs (`GPU-0` of the runs is its first) whose inventory has their leases and processes."""
    moved = [replace(r, host=name, gpus=tuple(f"{name}-{uuid[4:]}" for uuid in r.gpus)) for r in runs]
    held = {uuid for r in moved for uuid in r.gpus if not r.share}
    there = [Gpu(n, f"{name}-{n}", *A100) for n in range(4)]
    leased = [replace(g, holder=Holder("x"), processes=STRANGER) if g.uuid in held else g for g in there]
    return host(name, tuple(leased), queues=SERVED), moved


@pytest.mark.parametrize(
    ("_why", "asked", "a", "b"),
    [
        ("what may be preempted goes at once", job("a1", "4", queue="urgent"),
         [run("b1", "0", kind="session")], [run("c1", "0 1 2 3", queue="night")]),
        ("what ends does", job("a1", "4"), [run("b1", "0", 60)], [run("c1", "0 1 2 3", ending=True)]),
        ("a time limit is an end", job("a1", "4"), [run("b1", "0")], [run("c1", "0 1 2 3", 9000)]),
        ("the earliest", job("a1", "4"), [run("b1", "0", 9000)], [run("c1", "0 1 2 3", 8000)]),
        ("the earliest that is enough", job("a1", "3"),
         [run("b1", "0", 100), run("b2", "1 2", 9000)], [run("c1", "0 1", 8000), run("c2", "2 3", 8500)]),
        ("a job without a time limit ends by itself", job("a1", "4"),
         [run("b1", "0", kind="session")], [run("c1", "0 1 2 3")]),
        ("who stays is in nobody's way that needs fewer", job("a1", "2"),
         [run("b1", "0 1 2")], [run("c1", "0 1", kind="session"), run("c2", "2 3", 9000)]),
        ("of those with no known end the one with most free", job("a1", "4"), [run("b1", "0 1")], [run("c1", "0")]),
        ("CPUs", job("a1", "0", cpus=8), [run("b1", cpus=60)], [run("c1", cpus=60, ends=9000)]),
        ("CPUs, the most free", job("a1", "0", cpus=8), [run("b1", cpus=60)], [run("c1", cpus=58)]),
        ("memory", job("a1", "0", memory=2**17 + 1), [run("b1", memory=2**17, kind="session")],
         [run("c1", "0 1 2 3", memory=2**17)]),
        ("a share", job("a1", gpu_share=40960), [run("b1", "0 1 2 3")],
         [run("c1", "0 1 2 3", share=50000, ending=True)]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_room_is_kept_where_it_is_to_be_had_first(
    _why: str, asked: Waiting, a: list[Running], b: list[Running]
) -> None:
    for one, other in ((("a", a), ("b", b)), (("b", a), ("a", b))):
        worse, there = on(one[0], *one[1])
        better, here = on(other[0], *other[1])
        assert reserving([asked], [worse, better], *there, *here, rules=URGENT) == {other[0]: {"a1"}}


def test_what_gives_way_is_another_thing_for_everybody() -> None:
    a, sessions = on("a", run("b1", "0", kind="session"))
    b, nightly = on("b", run("c1", "0 1 2 3", queue="night", kind="session"))
    both = [job("a1", "4", queue="urgent"), job("a2", "4")]
    assert reserving(both, [a, b], *sessions, *nightly, rules=URGENT) == {"a": {"a2"}, "b": {"a1"}}
    own = replace(lab(**OWN), queues={"own": Queue("own", preempts=True, preemptible=True)})
    a, of_ann = on("a", run("a8", "0 1 2 3", queue="own", kind="session"))
    b, of_bob = on("b", run("b8", "0 1 2 3", queue="own", kind="session"))
    hosts = [replace(h, queues=("own",)) for h in (a, b)]
    both = [job("a1", "4", queue="own", priority=1), job("b1", "4", queue="own", priority=1)]
    assert reserving(both, hosts, *of_ann, *of_bob, rules=own) == {"a": {"a1"}, "b": {"b1"}}


def test_where_no_queue_preempts_a_stranger_is_waited_for_last() -> None:
    a, b = host("a", (used(cards(1)[0]), *cards(3, first=1))), on("b", run("c1", "0 1 2 3"))
    assert reserving([job("a1", "4")], [a, b[0]], *b[1]) == {"b": {"a1"}}


def lab_of(**served: tuple[str, ...]) -> Lab:
    """By lab.yaml: host -> the queues that it serves."""
    queues = {name: Queue(name) for name in ("default", "night")}
    return Lab({name: Host(name, name, ("x",), served_) for name, served_ in served.items()}, queues)


NOT_THERE = "queue old is not in lab.yaml; mlbox move puts the job in another"
DAY = 86400.0


@pytest.mark.parametrize(
    ("asked", "rules", "hosts", "why"),
    [
        (job("a1"), lab_of(), [host("a", cards(1))], ""),
        (job("a1", queue="old"), lab_of(), [host("a", cards(1))], NOT_THERE),
        (job("a1", queue="night"), lab_of(b=("default",)), [host("a", cards(1))],
         "no host serves queue night; mlbox move puts the job in another"),
        (job("a1"), lab_of(), [host("a", cards(1), silent=DAY)], "only a could run it, and it has been silent for 1d"),
        (job("a1"), lab_of(), [host("a", cards(1), drained=True)], "only a could run it, and it is drained"),
        (job("a1"), lab_of(), [host("a", cards(1), drained=True, silent=DAY)],
         "only a could run it, and it is drained and has been silent for 1d"),
        (job("a1"), lab_of(), [host("a", cards(1), silent=DAY), host("b", cards(1))], ""),
        (job("a1", "2"), lab_of(), [host("a", cards(2), silent=DAY), host("b", cards(1))],
         "only a could run it, and it has been silent for 1d"),
        (job("a1"), lab_of(), [host("a", cards(2), silent=DAY), host("b", cards(1), drained=True)],
         "of those that could run it, a has been silent for 1d, and b is drained"),
        (job("a1", queue="night"), lab_of(b=("night",)), [host("a", cards(2))],
         "only b could run it, and it has never been heard of"),
        (job("a1", hosts=("a",)), lab_of(b=("default",)), [host("a", cards(1), silent=DAY)],
         "only a could run it, and it has been silent for 1d"),
        (job("a1", labels=("x",)), lab_of(b=("default",)), [host("a", cards(1))],
         "only b could run it, and it has never been heard of"),
        (job("a1", "9"), lab_of(), [host("a", cards(2), silent=DAY)], ""),  # the ticks say it
        (job("a1"), lab_of(), [], ""),
    ],
)  # fmt: skip
def test_no_host_of_the_lab_would_start_it(asked: Waiting, rules: Lab, hosts: list[HostFacts], why: str) -> None:
    hosts = [replace(h, queues=rules.hosts[h.name].queues if h.name in rules.hosts else h.queues) for h in hosts]
    assert stuck(asked.queue, asked.resources, rules, hosts) == why


def test_jobs_that_ask_for_the_same_may_be_in_queues_of_different_hosts() -> None:
    hosts = [host("a", cards(4), queues=("day",)), host("b", cards(4), queues=("night",))]
    jobs = [job("a1", queue="day"), job("a2", queue="night"), job("a3", queue="day")]
    assert reserving(jobs, hosts, rules=NIGHT) == {"a": {"a1", "a3"}, "b": {"a2"}}


# ---- whatever the view ---------------------------------------------------------------------------

_SHARES = (8192, 12288, 20000)


@st.composite
def jobs(draw: st.DrawFn, number: int) -> Waiting:
    wanted = draw(st.sampled_from("auto 0 1 1 2 3 A100:1 4090:2 GPU-0 GPU-1,GPU-2".split()))
    more: dict[str, Any] = {"cpus": draw(st.sampled_from([0, 1, 2, 5])), "memory": draw(st.sampled_from([0, 0, 100]))}
    if draw(st.booleans()) and wanted in ("1", "auto", "GPU-0", "A100:1"):
        more["gpu_share"] = draw(st.sampled_from(_SHARES))
    elif wanted in ("1", "2"):
        more["gpu_memory"] = draw(st.sampled_from([0, 24576, 81920]))
    return replace(
        job(f"j{number}", wanted, owner=draw(st.sampled_from(["ann", "bob", "cat"])), **more),
        queue=draw(st.sampled_from(["urgent", "default", "night"])),
        resources=Resources(
            wanted,
            time_limit=draw(st.sampled_from([0, 60, 7200])),
            labels=draw(st.sampled_from([(), (), ("x",), ("y",)])),
            **more,
        ),
        priority=draw(st.sampled_from([0, 0, 1])),
        rank=draw(st.sampled_from([0, 0, -1])),
        after=draw(st.sampled_from([(), (), (After("done"),), (After("bad"),), (After("bad", "any"),), (After("?"),)])),
        array="x" if (limited := draw(st.booleans())) else "",
        array_limit=2 if limited else 0,
        not_before=draw(st.sampled_from([0.0, 0.0, NOW + 60])),
    )


@st.composite
def runs(draw: st.DrawFn, there: Sequence[Gpu]) -> list[Running]:
    """Jobs on whole GPUs, on shares, on none, and on another host, as they may lawfully be."""
    found: list[Running] = []
    for card in there:
        for share in draw(st.sampled_from([(), (), (0,), (8192,), (8192, 12288)])):
            found.append(run(f"b{len(found)}", str(card.index), share=share))
    whole = [r for r in found if not r.share]
    if len(whole) > 1 and draw(st.booleans()):  # one job on two GPUs
        found = [r for r in found if r not in whole[:2]] + [replace(whole[0], gpus=whole[0].gpus + whole[1].gpus)]
    found += [run(f"b{90 + len(found)}"), run("b99", "9", host="gpu2")]
    return [
        replace(
            r,
            owner=draw(st.sampled_from(["ann", "bob", "cat"])),
            queue=draw(st.sampled_from(["default", "night", "night", "gone"])),
            cpus=draw(st.integers(0, 2)),
            memory=draw(st.sampled_from([0, 50])),
            started=NOW - draw(st.integers(0, 9999)),
            time_limit=draw(st.sampled_from([0, 0, 5000, 20000])),
            array=draw(st.sampled_from(["", "x"])),
            ending=draw(st.sampled_from([False, False, False, True])),
        )
        for r in found
    ]


_NUMBER = st.sampled_from([0, 0, 0, 1, 2, 4])


@st.composite
def labs(draw: st.DrawFn) -> Lab:
    def queue(name: str, **more: Any) -> Queue:
        return Queue(name, draw(_NUMBER), draw(_NUMBER), draw(_NUMBER), draw(st.sampled_from([0, 0, 100])), **more)

    every = UserLimits(draw(_NUMBER), draw(_NUMBER))
    queues = [
        queue("urgent", priority=5, preempts=True),
        queue("default"),
        queue("night", preemptible=True, priority=-5),
    ]
    return Lab(queues={q.name: q for q in queues}, users={"*": every})


@st.composite
def views(draw: st.DrawFn) -> View:
    states = draw(st.lists(st.tuples(st.sampled_from([A100, RTX]),
    st.sampled_from("free free free used broken".split())),
                           max_size=5))  # fmt: skip
    all_ = [Gpu(n, f"GPU-{n}", *kind) for n, (kind, _) in enumerate(states)]
    free = [g for g, (_, state) in zip(all_, states) if state == "free"]
    there = [{"free": g, "used": used(g), "broken": broken(g)}[state] for g, (_, state) in zip(all_, states)]
    waiting = [draw(jobs(n)) for n in range(draw(st.integers(0, 7)))]
    return view(
        *waiting,
        *draw(runs(free)),
        gpus=tuple(there),
        lab=draw(labs()),
        cpus=draw(st.integers(1, 10)),
        memory=draw(st.sampled_from([0, 300])),
        labels=("x",),
        drained=draw(st.sampled_from([False] * 9 + [True])),
        paused=draw(st.sampled_from([{}, {}, {"night": "ann"}])),
        usage=draw(st.dictionaries(st.sampled_from(["ann", "bob", "cat"]), st.floats(0, 1e6))),
        states={"done": "finished", "bad": "failed"},
        reserved_here=frozenset(j.id for j in waiting if draw(st.booleans())),
        acting=draw(st.sampled_from([None, "ann", "bob", "eve"])),
    )


@settings(max_examples=300)
@given(views())
def test_any_plan_is_lawful(seen: View) -> None:
    made = plan(seen, NOW)
    told = [s.job for s in made.start] + [*made.fail, *made.waits]
    assert sorted(told) == sorted(j.id for j in seen.waiting), "every job is told of once"
    assert all(made.waits.values())
    what_starts_may_start(seen, made)
    nothing_is_given_twice(seen, made)
    limits_are_kept(seen, made)
    who_is_preempted_may_be(seen, made)


def what_starts_may_start(seen: View, made: Plan) -> None:
    by_id = {j.id: j for j in seen.waiting}
    for start in made.start:
        job_ = by_id[start.job]
        assert seen.acting in (None, job_.owner), "no one else's job is started"
        assert job_.not_before <= NOW and job_.queue not in seen.paused and not seen.host.drained
        assert all(seen.states.get(a.job) in (("finished",) if a.end == "ok" else ENDINGS) for a in job_.after)
        assert set(job_.resources.labels) <= set(seen.host.labels)
        assert start.time_limit == (job_.resources.time_limit or seen.lab.queues[job_.queue].time_limit)
        satisfied(job_.resources, start, seen.host)


def satisfied(asked: Resources, start: Start, there: HostFacts) -> None:
    """The GPUs are what was asked for, and nobody else's."""
    taken = [g for g in there.gpus if g.uuid in start.gpus]
    request = asked.request
    count = request.count if request.count is not None else min(1, len(there.gpus))
    assert len(taken) == len(set(start.gpus)) == len(start.gpus) == count
    assert not any(g.error or g.processes for g in taken)
    assert all(size(g) >= max(asked.gpu_memory, asked.gpu_share) for g in taken)
    assert start.share == asked.gpu_share
    assert not request.uuids or start.gpus == request.uuids
    assert all(request.name in g.name for g in taken)


def nothing_is_given_twice(seen: View, made: Plan) -> None:
    on: dict[str, list[int]] = defaultdict(list)  # shares by GPU; 0 is all of it
    here = [r for r in seen.running if r.host == seen.host.name]
    for uuids, share in [(r.gpus, r.share) for r in here] + [(s.gpus, s.share) for s in made.start]:
        for uuid in uuids:
            on[uuid].append(share)
    for card in seen.host.gpus:
        there = on[card.uuid]
        assert len(there) < 2 or (all(there) and sum(there) <= size(card))
    new = [j.resources for j in seen.waiting if j.id in {s.job for s in made.start}]
    for held, asked, most in (
        (sum(r.cpus for r in here), [n.cpus for n in new], seen.host.cpus),
        (sum(r.memory for r in here), [n.memory for n in new], seen.host.memory),
    ):
        assert sum(asked) == 0 or held + sum(asked) <= most


def limits_are_kept(seen: View, made: Plan) -> None:
    by_id = {j.id: j for j in seen.waiting}
    new = [(by_id[s.job], s.gpus) for s in made.start]
    old: list[tuple[Waiting | Running, tuple[str, ...]]] = [(r, r.gpus) for r in seen.running]
    everybody = seen.lab.limits_of("anyone")
    for job_, gpus in new:
        rule = seen.lab.queues[job_.queue]

        def within(limit: int, same: Any, gpu_limit: int = 0, started: Waiting = job_, taken: Any = gpus) -> None:
            others = [(other, held) for other, held in [*old, *new] if same(other) and other is not started]
            assert limit == 0 or len(others) < limit
            has = {uuid for _, held in others for uuid in held}
            # A share of a GPU that is held already is none more, also where a limit has been lowered meanwhile.
            assert gpu_limit == 0 or set(taken) <= has or len(has | set(taken)) <= gpu_limit

        within(rule.max_running, lambda o, j=job_: o.queue == j.queue)
        within(
            rule.max_running_per_user,
            lambda o, j=job_: (o.queue, o.owner) == (j.queue, j.owner),
            rule.max_gpus_per_user,
        )
        within(everybody.max_running, lambda o, j=job_: o.owner == j.owner, everybody.max_gpus)
        within(job_.array_limit, lambda o, j=job_: o.array == j.array)


def who_is_preempted_may_be(seen: View, made: Plan) -> None:
    by_id = {r.id: r for r in seen.running}
    for victim, job_ in made.preempt.items():
        run_ = by_id[victim]
        assert run_.host == seen.host.name and run_.queue == "night" and not run_.ending
        assert seen.acting in (None, run_.owner)
        assert job_ in made.waits and job_ in seen.reserved_here
        assert next(j for j in seen.waiting if j.id == job_).queue == "urgent"
    if made.preempt:  # and with them gone, it starts
        gone = tuple(r for r in seen.running if r.id not in made.preempt and not r.ending)
        after = plan(replace(seen, running=gone, acting=None), NOW)
        everybody = plan(replace(seen, acting=None), NOW)
        if set(everybody.preempt) == set(made.preempt):
            started = {s.job for s in after.start}
            line = list(everybody.waits)  # one that is ahead, and has its room kept elsewhere, may be first
            for job_ in made.preempt.values():
                assert started & set(line[: line.index(job_) + 1])


@settings(max_examples=100)
@given(views(), st.randoms(use_true_random=False))
def test_the_order_of_listing_does_not_matter(seen: View, chance: random.Random) -> None:
    def mixed(things: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(chance.sample(list(things), len(list(things))))

    other = replace(
        seen,
        waiting=mixed(seen.waiting),
        running=mixed(seen.running),
        host=replace(seen.host, gpus=mixed(seen.host.gpus)),
    )
    one, two = plan(seen, NOW), plan(other, NOW)
    assert (one.start, one.preempt, one.fail) == (two.start, two.preempt, two.fail)
    assert one.waits == two.waits


@settings(max_examples=100)
@given(views())
def test_users_ticks_do_not_cross(seen: View) -> None:
    """What every user starts on their own is what one account would start for all: no GPU is taken twice."""
    together = {s.job: s for s in plan(replace(seen, acting=None), NOW).start}
    apart = [s for user in ("ann", "bob", "cat") for s in plan(replace(seen, acting=user), NOW).start]
    assert {s.job: s for s in apart} == together and len(apart) == len(together)


@settings(max_examples=100)
@given(views(), jobs(50))
def test_a_free_gpu_and_a_lone_job_that_fits_is_a_start(seen: View, lone: Waiting) -> None:
    lone = replace(lone, after=(), not_before=0.0, queue="default")
    seen = replace(seen, waiting=(lone,), lab=Lab(queues=lab(night={}).queues), acting=lone.owner, paused={})
    seen = replace(seen, host=replace(seen.host, drained=False, labels=("x", "y"), memory=10**6, cpus=10**6))
    busy = {uuid for r in seen.running if r.host == "gpu1" for uuid in r.gpus}
    free = [g for g in seen.host.gpus if not g.obstacle and g.uuid not in busy and lone.resources.matches(g)]
    made = plan(replace(seen, running=tuple(r for r in seen.running if not r.array)), NOW)
    if len(free) >= lone.resources.gpus_on(seen.host):
        assert [s.job for s in made.start] == [lone.id]


# ---- tick after tick -----------------------------------------------------------------------------


class Days:
    """A lab by the minute: hosts of four GPUs, users with their own ticks, jobs that run as long as they run."""

    def __init__(self, hosts: int, rules: Lab) -> None:
        self.now, self.rules = NOW, rules
        self.names = [f"gpu{n + 1}" for n in range(hosts)]
        self.waiting: dict[str, Waiting] = {}
        self.running: dict[str, Running] = {}
        self.length: dict[str, float] = {}
        self.started: dict[str, float] = {}
        self.usage: Counter[str] = Counter()

    def submit(self, job_: Waiting, lasts: float) -> None:
        self.waiting[job_.id], self.length[job_.id] = job_, lasts

    def facts(self, name: str) -> HostFacts:
        there = tuple(Gpu(n, f"{name}-{n}", *A100) for n in range(4))
        held = {uuid for r in self.running.values() for uuid in r.gpus}
        leased = tuple(replace(g, holder=Holder("x")) if g.uuid in held else g for g in there)
        return HostFacts(name, leased, 64, 2**18, queues=tuple(self.rules.queues))

    def tick(self, name: str, user: str) -> Plan:
        hosts = [self.facts(n) for n in self.names]
        here = next(h for h in hosts if h.name == name)
        seen = View(here, self.rules, list(self.waiting.values()), list(self.running.values()), usage=self.usage,
                    acting=user)  # fmt: skip
        made = plan(replace(seen, reserved_here=reserved_on(seen, [h for h in hosts if h is not here])), self.now)
        for start in made.start:
            job_ = self.waiting.pop(start.job)
            assert not {uuid for r in self.running.values() for uuid in r.gpus} & set(start.gpus)
            self.started[job_.id] = self.now
            self.running[job_.id] = Running(job_.id, job_.owner, name, job_.queue, start.gpus, started=self.now,
                                            time_limit=start.time_limit, kind=job_.kind)  # fmt: skip
        for victim in made.preempt:
            self.running[victim] = replace(self.running[victim], ending=True)
        return made

    def minute(self) -> None:
        self.later(60)

    def later(self, seconds: float) -> None:
        self.now += seconds
        for run_ in list(self.running.values()):
            if run_.ending or self.now >= run_.started + self.length[run_.id]:
                del self.running[run_.id]
                self.usage[run_.owner] += int(self.now - run_.started) * len(run_.gpus)
                if run_.ending:
                    self.waiting[run_.id] = replace(job(run_.id), queue=run_.queue)
        for name in self.names:
            for user in ("ann", "bob", "cat"):
                self.tick(name, user)


# How often the longest job's length it may wait. Limits three times as long as the jobs mislead the reservation.
BOUND = {"no time limits": 1.1, "time limits": 1.3, "loose time limits": 3.1, "some": 1.6}


@pytest.mark.parametrize("known", ["no time limits", "time limits", "loose time limits", "some"])
@pytest.mark.parametrize("hosts", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_big_job_starts_for_all_the_small_ones(hosts: int, known: str, seed: int) -> None:
    chance = random.Random(f"{hosts} {known} {seed}")
    days, longest, slack = Days(hosts, Lab()), 30, {"no time limits": [0], "time limits": [60], "some": [0, 90]}
    for minute in range(200):
        if minute == 20:
            days.submit(job("b_big", "4", time_limit=600), 600)
        for n in range(sum(chance.random() < 0.3 for _ in range(hosts))):
            lasts = chance.randint(1, longest)
            limit = lasts * chance.choice(slack.get(known, [180]))
            days.submit(job(f"a{minute:05}{n}", chance.choice("112"), time_limit=limit), lasts * 60)
        days.minute()
        if "b_big" in days.started:
            break
    waited = (days.started["b_big"] - NOW) / 60 - 20
    assert waited <= BOUND[known] * longest


@pytest.mark.parametrize("slack", [0, 60, 180], ids=["no time limits", "time limits", "loose time limits"])
@pytest.mark.parametrize("urgently", [True, False], ids=["preempts", "waits"])
@pytest.mark.parametrize("seed", range(9))
def test_a_big_job_starts_wherever_there_could_ever_be_room(seed: int, urgently: bool, slack: int) -> None:
    """Though on the lab's GPUs are sessions that nobody ends, jobs of days that may be preempted, and small ones that
    follow one another without end. Of two jobs without a time limit nobody knows which is the one that ends."""
    chance, numbers = random.Random(f"{seed} {urgently} {slack}"), itertools.count()
    goes, stays = ["free", "small", *(["night"] if urgently else [])], ["session", *(["night"] if slack else [])]
    held = [["session", "free", "free", "free"], [chance.choice(goes) for _ in range(4)]]
    held += [[chance.choice(goes + stays) for _ in range(4)] for _ in range(seed % 2)]
    days = Days(len(held), replace(URGENT, queues={name: URGENT.queues[name] for name in SERVED}))
    for name, there in zip(days.names, held):
        for n, state in enumerate(there):
            if state in ("session", "night"):
                one = run(f"c{next(numbers):05}", host=name, kind="session" if state == "session" else "job")
                queue = {"session": "urgent", "night": "night"}[state]
                days.running[one.id] = replace(one, queue=queue, gpus=(f"{name}-{n}",))
                days.length[one.id] = float("inf")

    def more_small_ones() -> None:
        while sum(j.owner == "ann" for j in days.waiting.values()) < 4:
            lasts = chance.randint(1, 20)
            days.submit(job(f"a{next(numbers):05}", chance.choice("112"), time_limit=lasts * slack), lasts * 60)

    more_small_ones()
    days.minute()
    days.submit(replace(job("b_big", "4"), queue="urgent" if urgently else "default"), 600)
    for _ in range(240):
        more_small_ones()
        days.minute()
        if "b_big" in days.started:
            return
    raise AssertionError(f"it waits for ever: {[days.tick(name, 'bob').waits['b_big'] for name in days.names]}")


@pytest.mark.parametrize("limit", [1, 10, 59, 60, 61, 300])
@pytest.mark.parametrize("ticks", [1, 3, 40])
@pytest.mark.parametrize("over", [0.0, 0.9])
def test_a_big_job_starts_however_short_the_small_ones_are(limit: int, ticks: int, over: float) -> None:
    """`ticks` in the time of one of them; they end at different times, and there are always more. `over`: how long
    each takes to be gone, of the grace that it may take."""
    days, lasts, numbers = Days(1, Lab()), limit + over * GRACE, itertools.count()
    for at in range(4):
        days.running[f"a{at}"] = Running(f"a{at}", "ann", "gpu1", gpus=(f"gpu1-{at}",), time_limit=limit,
                                         started=NOW - limit * at / 4)  # fmt: skip
        days.length[f"a{at}"] = lasts
    days.submit(job("b_big", "4"), 600)
    for _ in range(ticks + 2):
        while len(days.waiting) < 5:
            days.submit(job(f"c{next(numbers):05}", time_limit=limit), lasts)
        days.later(lasts / ticks)
        if "b_big" in days.started:
            return
    raise AssertionError(f"it waits for ever: {days.tick('gpu1', 'bob').waits['b_big']}")


def test_small_jobs_behind_it_do_not_make_a_big_job_later() -> None:
    """With time limits that hold, back-fill costs the first job nothing."""
    for seed in range(4):
        found = []
        for small in (0, 25):
            chance, days = random.Random(seed), Days(1, Lab())
            for n in range(4):
                lasts = chance.randint(5, 60)
                days.submit(job(f"a{n}", time_limit=lasts * 60), lasts * 60)
            days.minute()
            days.submit(job("b1", "4", time_limit=600), 600)
            for n in range(small):
                lasts = chance.randint(1, 60)
                days.submit(job(f"c{n:02}", chance.choice("12"), time_limit=lasts * 60), lasts * 60)
            while "b1" not in days.started:
                days.minute()
            found.append(days.started["b1"])
        assert found[0] == found[1]


def test_users_get_the_same_though_one_asks_for_much_more() -> None:
    days, got = Days(1, Lab()), Counter[str]()
    for n in range(120):
        days.submit(job(f"a{n:03}"), 600)
    for minute in range(90):
        if minute % 5 == 0:
            for n in range(2):
                days.submit(job(f"b{minute:03}{n}"), 600)
        days.minute()
        got.update(r.owner for r in days.running.values() if minute > 20)
    assert 0.85 < got["ann"] / got["bob"] < 1.15


def test_who_was_preempted_runs_again_and_nobody_is_preempted_twice_for_one() -> None:
    days = Days(1, lab(urgent={"priority": 1, "preempts": True}, night={"priority": -1, "preemptible": True}))
    days.rules = replace(days.rules, queues={name: days.rules.queues[name] for name in ("urgent", "default", "night")})
    for n in range(4):
        days.submit(replace(job(f"a{n}"), queue="night"), 6000)
    days.minute()
    days.submit(replace(job("b1", "2", time_limit=600), queue="urgent"), 600)
    days.minute()
    assert sorted(r.id for r in days.running.values() if r.ending) == ["a2", "a3"]
    days.minute()
    assert sorted(days.running) == ["a0", "a1", "b1"] and sorted(days.waiting) == ["a2", "a3"]
    for _ in range(12):
        days.minute()
    assert sorted(days.running) == ["a0", "a1", "a2", "a3"]


def test_the_cost_is_linear_in_the_jobs_looked_at() -> None:
    """Counted in comparisons of GPUs, not in seconds, which a busy machine stretches."""
    seen: Counter[int] = Counter()
    matches = Resources.matches
    for number in (200, 2000):
        kinds = [job(f"a{n:05}", chance, time_limit=60 * (n % 3)) for n, chance in enumerate("12340" * (number // 5))]

        def counted(self: Resources, card: Gpu, number: int = number) -> bool:
            seen[number] += 1
            return matches(self, card)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Resources, "matches", counted)
            plan(view(*kinds, run("b1", "0", 7200)), NOW)
    assert seen[2000] < 12 * seen[200]
