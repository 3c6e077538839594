"""The plan of a chaos test, by a seed: what is submitted, and for each host which faults in which order."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

import faults
import intervals
from labbox import PYTHON_IMAGE

from mlbox.host import heard, view

HOSTS = ("gpu1", "gpu2", "gpu3")
PEOPLE = ("ada", "bob")  # the second may not use Docker
SUBMITTERS = 6
_DAYS = 30 * 86400
# Once each for longer than all else, in the first round and in the last: two hosts at a time are then left to the rest.
_OUTLAST = {"frozen": 0, "no share": -1}
# s: whoever waits for a host, or for ROOT, has given up. Not so a keeper that can't record its job's end: it tries for
# an hour, and ends then as if it was killed, which is a fault of its own.
_BEYOND = max(view.BEAT, heard.LONG) + 60

# A job that tells of itself: where, on what, that it lives, and that it came to its end.
_RECORDER = """
import ctypes, os, sys, time

def visible():  # by the driver, as in a container with CDI no variable tells; without a container all are to be seen
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return os.environ["CUDA_VISIBLE_DEVICES"] or "void"
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "void"
    count, handle, uuid = ctypes.c_uint(), ctypes.c_void_p(), ctypes.create_string_buffer(96)
    assert nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    found = []
    for index in range(count.value):
        assert nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0
        assert nvml.nvmlDeviceGetUUID(handle, uuid, 96) == 0
        found.append(uuid.value.decode())
    return ",".join(found) or "void"

folder, seconds, share, fails = sys.argv[1], float(sys.argv[2]), sys.argv[3], int(sys.argv[4])
job, attempt, now = os.environ["MLBOX_JOB"], int(os.environ["MLBOX_ATTEMPT"]), time.monotonic
gpus = visible()
name = f"{folder}/{job}.{attempt}.{os.getpid()}.{time.monotonic_ns()}"
file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
os.write(file, f"start {now()} {gpus} {share}\\n".encode())
os.fsync(file)
end = now() + seconds
while now() < end:
    time.sleep(BEAT)
    os.write(file, f"lives {now()}\\n".encode())
os.write(file, f"end {now()}\\n".encode())
sys.exit(1 if attempt <= fails else 0)
""".replace("BEAT", str(intervals.BEAT))


@dataclass(frozen=True)
class Batch:
    """One submission: an array of jobs that differ in nothing."""

    count: int
    words: tuple[str, ...]
    host: str  # that is asked to take it
    user: str
    pause: float = 0.0  # s before it


@dataclass(frozen=True)
class Fault:
    kind: str
    pause: float  # s before it
    seconds: float
    number: int  # which victim, or by how many seconds the clock is off


@dataclass(frozen=True)
class Plan:
    seed: int
    batches: tuple[Batch, ...]
    lanes: dict[str, tuple[Fault, ...]]
    clocks: dict[str, int]  # by how many seconds they are off from the beginning
    sessions: int
    patience: float  # s from the last fault until all must have ended


def plan(
    seed: int, jobs: int, sessions: int, rounds: int, longest: float, pause: tuple[float, float], patience: float,
    beyond: float = 0.0, spread: float = 0.0,
) -> Plan:  # fmt: skip
    """`rounds` faults of each kind, none longer than `longest` seconds but those that are to last for `beyond`, with a
    `pause` (from, to) before each. Submissions are spread over this part of the time that the faults take."""
    dice = random.Random(seed)
    batches, left = [], jobs
    while left:
        batches.append(_batch(dice, min(left, dice.randint(1, 8))))
        left -= batches[-1].count
    kinds = [(turn, kind) for turn in range(rounds) for kind in dice.sample(faults.KINDS, len(faults.KINDS))]
    lanes: dict[str, list[Fault]] = {host: [] for host in HOSTS}
    for turn, kind in kinds:
        which = dice.choice((-_DAYS, _DAYS)) if kind == "clock" else dice.randrange(99)
        fault = Fault(kind, dice.uniform(*pause), longest * max(0.1, dice.random() ** 3), which)
        if kind in _OUTLAST and turn == _OUTLAST[kind] % rounds:
            min(lanes.values(), key=duration).append(replace(fault, seconds=max(longest, beyond)))
        else:
            min(lanes.values(), key=len).append(fault)
    clocks = dict(zip(HOSTS, dice.sample((-_DAYS, 0, _DAYS), len(HOSTS))))
    mean = spread * max(map(duration, lanes.values())) * SUBMITTERS / len(batches)
    batches = [replace(batch, pause=3 * mean * dice.random() ** 2) for batch in batches]  # some at once, some late
    return Plan(seed, tuple(batches), {h: tuple(f) for h, f in lanes.items()}, clocks, sessions, patience)


def duration(lane: Iterable[Fault]) -> float:
    """s, about: killing takes as long as it takes to find a victim."""
    return sum(fault.pause + (fault.seconds if fault.kind in faults.LASTING else 0) for fault in lane)


def _batch(dice: random.Random, count: int) -> Batch:
    kind = dice.choices(("plain", "docker", "fails", "limit", "hold", "long"), (60, 10, 8, 6, 8, 8))[0]
    gpus, share = dice.choice(((0, 0), (1, 0), (1, 0), (2, 0), (1, 6), (1, 12)))
    seconds, fails, words = round(dice.uniform(0.1, 2), 2), 0, list[str]()
    user = dice.choice(PEOPLE)
    folder = f"/home/{user}/chaos"
    if kind == "docker":
        user, folder, count = "ada", "/chaos", min(count, 3)
        words = ["--image", PYTHON_IMAGE, "--mount", "/home/ada/chaos:/chaos"]
    elif kind == "fails":
        fails, words = 2, ["--retries", "9", "--retry-on", "exit", "--backoff", "1s"]
    elif kind == "limit":
        seconds, words, count = 600, ["--time-limit", "2s", "--grace", "1s"], min(count, 3)
    elif kind == "hold":
        words = ["--on-host-loss", "hold"]
    elif kind == "long":
        seconds, count = 15, min(count, 2)
    words += ["--gpu-share", f"{share}G"] if share else ["--gpus", str(gpus)]
    words += ["--array", str(count), *_recording(folder, seconds, share, fails)]
    return Batch(count, tuple(words), dice.choice(HOSTS), user)


def only_on(host: str, user: str) -> Batch:
    """One job that waits for this host, put in line elsewhere."""
    words = ("--on", host, "--gpus", "1", *_recording(f"/home/{user}/chaos", 0.5))
    return Batch(1, words, next(other for other in HOSTS if other != host), user)


def _recording(folder: str, seconds: float, share: int = 0, fails: int = 0) -> tuple[str, ...]:
    # -I: it imports nothing from the job's folder, which a lost share takes away.
    program = ("python3", "-I", "-c", _RECORDER, folder, str(seconds), str(share << 10), str(fails))
    return ("--cpus", "0", "--no-code", "--max-losses", "99", "--", *program)


def short(seed: int) -> Plan:
    return plan(seed, jobs=60, sessions=1, rounds=1, longest=16, pause=(1, 5), patience=120)


def long(seed: int, jobs: int) -> Plan:
    return plan(
        seed, jobs, sessions=6, rounds=6, longest=75, pause=(3, 15), patience=600, beyond=_BEYOND, spread=0.8
    )  # fmt: skip
