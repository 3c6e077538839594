"""The folder that the hosts share: GlusterFS over two bricks, with a client of its own on each host."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from labbox import PYZ, Laptop, as_root, ssh

HOSTS = ("gpu1", "gpu2", "gpu3")
CONTENDERS = tuple(f"{host}.{number}" for host in HOSTS for number in (1, 2))
ROOT = "/share/race"
NAMES, NAMES_PACE = 2000, 0.004  # how many, and seconds from one to the next
LOGS, EVENTS, LOGS_PACE = 30, 4, 0.2

pytestmark = [pytest.mark.lab, pytest.mark.hosts(*HOSTS)]

# Rounds begin by the clock, which is the same kernel's on all hosts, so that no contender runs ahead of the others.
BY_NAME = """
import json, os, sys, time
folder, me, begin, rounds, pace = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
won = []
for number in range(int(rounds)):
    time.sleep(max(0, begin + number * pace - time.time()))
    try:
        file = os.open(f"{folder}/{number:06}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        continue
    won.append(number)
    os.write(file, me.encode())
    os.close(file)
print(json.dumps(won))
"""
READ_NAMES = """
import json, os, sys
print(json.dumps([open(f"{sys.argv[1]}/{name}").read() for name in sorted(os.listdir(sys.argv[1]))]))
"""
BY_SLOT = """
import json, os, sys, time
from pathlib import Path
from mlbox.core.slots import Writer
from mlbox.host import processes, slots
folder, me, begin, rounds, pace, events = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
writer = Writer(os.uname().nodename, processes.boot_id(), os.getpid(), processes.started(os.getpid()))
won = []
for number in range(int(rounds)):
    time.sleep(max(0, begin + number * pace - time.time()))
    log = slots.Log(Path(folder, f"{number:06}"))
    while True:
        answer = log.append(lambda found: {"by": me} if len(found) < events else None, writer, 30)
        if isinstance(answer, slots.Refused):
            break
        won.append([number, answer.slot])
print(json.dumps(won))
"""
READ_SLOTS = """
import json, os, sys
from pathlib import Path
from mlbox.core.slots import fold
from mlbox.host.slots import Log
found = [fold(Log(Path(sys.argv[1], name)).read()) for name in sorted(os.listdir(sys.argv[1]))]
print(json.dumps([[[slot, event["by"]] for slot, event in each.events.items()] for each in found]))
"""
PLACES = """
import os, sys
for number in range(40):
    print(os.getxattr(f"{sys.argv[1]}/{number:06}", "trusted.glusterfs.pathinfo").decode())
"""


def planted() -> str:
    """mlbox's own code on a host, where `mlbox` has put it."""
    with zipfile.ZipFile(PYZ) as file:
        part = file.read("mlbox/_host.pyz")
    return f".cache/mlbox/mlbox-{hashlib.sha256(part).hexdigest()}.pyz"


def python(host: str, program: str, *arguments: object, code: str = "") -> Any:
    words = shlex.join(("python3", "-c", program, *map(str, arguments)))
    return json.loads(ssh(host, f"PYTHONPATH={code} {words}", timeout=120))


def at_once(work: Callable[[str], Any], which: tuple[str, ...]) -> dict[str, Any]:
    with ThreadPoolExecutor(len(which)) as pool:
        return dict(zip(which, pool.map(work, which)))


def race(program: str, folder: str, *arguments: float, code: str = "") -> dict[str, Any]:
    """What each contender says that it won; they have two seconds to get ready."""
    begin = time.time() + 2
    return at_once(lambda me: python(me.split(".")[0], program, folder, me, begin, *arguments, code=code), CONTENDERS)


def everyone_had_a_chance(winners: list[str]) -> None:
    """Otherwise nobody raced."""
    share = Counter(winner.split(".")[0] for winner in winners)
    assert all(share[host] > len(winners) / 50 for host in HOSTS), share


@pytest.fixture(scope="module", autouse=True)
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    as_root("gpu1", "rm", "-rf", ROOT)
    laptop = Laptop(tmp_path_factory.mktemp("share") / "home")
    yield laptop
    laptop.close()
    as_root("gpu1", "rm", "-rf", ROOT)


def test_each_host_has_a_mount_of_its_own(laptop: Laptop) -> None:
    mounted = at_once(
        lambda host: ssh(host, "grep ' /share ' /proc/mounts; stat -c %a /share; pgrep -x glusterfs"), HOSTS
    )
    for found in mounted.values():
        mount, mode, _ = found.splitlines()
        assert " fuse.glusterfs rw," in mount and mode == "1777"
    ssh("gpu1", f"mkdir {ROOT}; echo said >{ROOT}/word")
    assert ssh("gpu3-bob", f"cat {ROOT}/word; ls /share/sources").startswith("said\n")


def test_init_names_the_filesystem(laptop: Laptop) -> None:
    done = laptop.run("init", *HOSTS, "--root", f"{ROOT}/lab")
    assert done.code == 0, done.all
    assert f"{ROOT}/lab is a lab (fuse.glusterfs)" in done.out
    assert "hosts: gpu1, gpu2, gpu3" in done.out and "between these hosts too" in done.out


def test_a_name_that_is_created_exclusively_has_one_winner() -> None:
    names = f"{ROOT}/names"
    ssh("gpu1", f"mkdir -p {names}")
    said = race(BY_NAME, names, NAMES, NAMES_PACE)
    winners = [[me for me, won in said.items() if number in won] for number in range(NAMES)]
    assert [found for found in winners if len(found) != 1] == []
    everyone_had_a_chance([found[0] for found in winners])
    for read in at_once(lambda host: python(host, READ_NAMES, names), HOSTS).values():
        assert read == [found[0] for found in winners]
    where = as_root("gpu1", "python3", "-c", PLACES, names)
    assert set(re.findall(r":/bricks/(\d+)/", where)) == {"1", "2"}


def test_a_slot_has_one_winner(laptop: Laptop) -> None:
    logs, code = f"{ROOT}/logs", planted()
    at_once(lambda host: laptop.run("status", host), HOSTS)
    ssh("gpu1", f"mkdir -p {logs} && cd {logs} && mkdir $(seq -f %06.0f 0 {LOGS - 1})")
    said = race(BY_SLOT, logs, LOGS, LOGS_PACE, EVENTS, code=code)
    winners = sorted((log, slot, me) for me, won in said.items() for log, slot in won)
    assert len(winners) == len({(log, slot) for log, slot, _ in winners}) == LOGS * EVENTS
    everyone_had_a_chance([me for _, _, me in winners])
    for read in at_once(lambda host: python(host, READ_SLOTS, logs, code=code), HOSTS).values():
        assert [(log, slot, me) for log, events in enumerate(read) for slot, me in events] == winners
