"""lab.yaml: what it says, what holds where it says nothing, and which key is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlbox.core.lab import Host, Lab, Queue, UserLimits, from_document
from mlbox.core.resources import Resources
from mlbox.errors import Usage

REPOSITORY = Path(__file__).resolve().parents[2]


def read(document: str) -> Lab:
    return from_document(yaml.safe_load(document))


@pytest.mark.parametrize("document", ["", "{}", "hosts:\nqueues:\nusers:\nfair_share:\nallow:", "queues: {default: }"])
def test_nothing_said_is_one_queue_that_every_host_serves(document: str) -> None:
    lab = read(document)
    assert lab == Lab()
    assert lab.queues == {"default": Queue("default")}
    assert lab.host("gpu1") == Host("gpu1", "gpu1", (), ("default",))
    assert lab.on_host_loss == "requeue" and lab.half_life == 7 * 86400


def test_the_example_is_read() -> None:
    lab = read((REPOSITORY / "conf" / "lab.yaml").read_text(encoding="utf-8"))
    assert lab.hosts["gpu1"] == Host("gpu1", "gpu1.lab", ("nvlink", "fast-disk"), ("interactive", "default", "night"))
    assert lab.hosts["gpu2"] == Host("gpu2", "gpu2", (), ("default", "night"))
    assert (lab.hosts["gpu3"].via, lab.hosts["gpu3"].reverse) == ("gate.lab", True)
    assert (lab.ssh_name("gpu1"), lab.ssh_name("gpu3"), lab.ssh_name("unlisted")) == ("gpu1.lab", "", "unlisted")
    assert lab.queues["interactive"] == Queue(
        "interactive", max_running_per_user=2, time_limit=28800, max_time_limit=172800, output_limit=256,
        max_output_limit=1024, priority=10, preempts=True,
    )  # fmt: skip
    assert lab.queues["night"] == Queue(
        "night", max_running=40, output_limit=256, max_output_limit=4096, priority=-10, preemptible=True
    )
    assert lab.limits_of("bob") == UserLimits(50, 16)
    assert (lab.engine_args, lab.mounts) == (("--ipc",), ("/data", "/share/datasets"))


def test_a_host_serves_the_queues_in_the_order_it_lists_or_by_priority() -> None:
    lab = read(
        "queues: {low: {priority: -1}, default: , high: {priority: 5}, also: }\n"
        "hosts: {a: , b: {queues: [low, high]}, c: {queues: []}, d.lab: {labels: [x]}}"
    )
    assert lab.hosts["a"].queues == ("high", "default", "also", "low")
    assert lab.hosts["b"].queues == ("low", "high")
    assert lab.hosts["c"].queues == ()
    assert lab.hosts["d.lab"] == Host("d.lab", "d.lab", ("x",), ("high", "default", "also", "low"))
    assert lab.host("unlisted").queues == ("high", "default", "also", "low")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "lab.yaml: the file must map names to values"),
        ("text", "lab.yaml: the file must map names to values"),
        ("queus: {}", "lab.yaml: queus is unknown; did you mean queues?"),
        ("zebra: {}", "lab.yaml: zebra is unknown; there are: hosts, queues, users, fair_share, allow, on_host_loss"),
        ("on: {}", "lab.yaml: True is unknown"),
        ("hosts: [gpu1]", "lab.yaml: hosts must map names to values"),
        ("hosts: {gpu1: [a]}", "lab.yaml: hosts.gpu1 must map names to values"),
        ("hosts: {gpu1: {label: [a]}}", "lab.yaml: hosts.gpu1.label is unknown; did you mean labels?"),
        ("hosts: {gpu1.lab: {labels: a}}", "lab.yaml: hosts.gpu1.lab.labels must be a list of words, such as [a, b]"),
        ("hosts: {gpu1: {labels: [1]}}", "lab.yaml: hosts.gpu1.labels must be a list of words, such as [a, b]"),
        ("hosts: {gpu1: {labels: [a b]}}", "lab.yaml: hosts.gpu1.labels can't have 'a b'"),
        ("hosts: {gpu1: {labels: [a, a]}}", "lab.yaml: hosts.gpu1.labels has a word twice"),
        ("hosts: {gpu1: {queues: [nigth]}}", "lab.yaml: hosts.gpu1.queues can't have 'nigth': the queues are default"),
        ("hosts: {gpu1: {ssh: 5}}", "lab.yaml: hosts.gpu1.ssh must be text"),
        ("hosts: {gpu1: {ssh: -oProxyCommand=x}}", "lab.yaml: hosts.gpu1.ssh must be a name that ssh knows"),
        ("hosts: {gpu1: {ssh: 'a b'}}", "lab.yaml: hosts.gpu1.ssh must be a name that ssh knows"),
        ("hosts: {gpu1: {tunnel: back}}", "lab.yaml: hosts.gpu1.tunnel must be one of: forward, reverse"),
        ("hosts: {gpu1: {tunnel: reverse}}", "lab.yaml: hosts.gpu1.via must name the host"),
        ("hosts: {gpu1: {tunnel: reverse, via: -x}}", "lab.yaml: hosts.gpu1.via must name the host"),
        ("hosts: {gpu1: {via: 'a b'}}", "lab.yaml: hosts.gpu1.via must name the host"),
        ("hosts: {1: }", "lab.yaml: hosts.1 can't be a name here"),
        ("hosts: {../x: }", "lab.yaml: hosts.../x can't be a name here"),
        ("queues: {Night Shift: }", "lab.yaml: queues.Night Shift can't be a name here"),
        ("queues: {off: }", "lab.yaml: queues.False can't be a name here; quote it"),
        ("queues: {night: {max_running: many}}", "lab.yaml: queues.night.max_running must be a number"),
        ("queues: {night: {max_running: true}}", "lab.yaml: queues.night.max_running must be a number"),
        ("queues: {night: {max_running: 1.5}}", "lab.yaml: queues.night.max_running must be a number"),
        ("queues: {night: {max_running: 0}}",
         "lab.yaml: queues.night.max_running must be a number from 1 to 1000000; leave it out for no limit"),
        ("queues: {night: {max_running: -1}}", "lab.yaml: queues.night.max_running must be a number from 1"),
        ("queues: {night: {max_runing: 1}}", "lab.yaml: queues.night.max_runing is unknown; did you mean max_running?"),
        ("queues: {night: {name: x}}", "lab.yaml: queues.night.name is unknown"),
        ("queues: {night: {max_running_per_user: x}}", "lab.yaml: queues.night.max_running_per_user must be a number"),
        ("queues: {night: {max_gpus_per_user: x}}", "lab.yaml: queues.night.max_gpus_per_user must be a number"),
        ("queues: {night: {priority: high}}", "lab.yaml: queues.night.priority must be a number"),
        ("queues: {night: {priority: 1001}}", "lab.yaml: queues.night.priority must be a number from -1000 to 1000"),
        ("queues: {night: {preemptible: 1}}", "lab.yaml: queues.night.preemptible must be true or false"),
        ("queues: {night: {preempts: maybe}}", "lab.yaml: queues.night.preempts must be true or false"),
        ("queues: {night: {time_limit: soon}}", "lab.yaml: queues.night.time_limit must be a duration: write 90s"),
        ("queues: {night: {time_limit: [1]}}", "lab.yaml: queues.night.time_limit must be a duration: write 90s"),
        ("queues: {night: {time_limit: 2d, max_time_limit: 1d}}",
         "lab.yaml: queues.night.time_limit must not be above max_time_limit"),
        ("queues: {night: {output_limit: lots}}", "lab.yaml: queues.night.output_limit must be a size: write 24G"),
        ("output_limit: 0", "lab.yaml: output_limit must be a size from 1M to 1024 GiB"),
        ("max_output_limit: 2T", "lab.yaml: max_output_limit must be a size from 1M"),
        ("{output_limit: 2G, max_output_limit: 1G}", "lab.yaml: output_limit must not be above max_output_limit"),
        ("{max_output_limit: 1G, queues: {night: {output_limit: 2G}}}",
         "lab.yaml: queues.night.output_limit must not be above max_output_limit"),
        ("users: {ann: {max_gpu: 1}}", "lab.yaml: users.ann.max_gpu is unknown; did you mean max_gpus?"),
        ("users: {ann: {max_gpus: all}}", "lab.yaml: users.ann.max_gpus must be a number"),
        ("users: {-x: }", "lab.yaml: users.-x can't be a name here"),
        ("fair_share: 7d", "lab.yaml: fair_share must map names to values"),
        ("fair_share: {halflife: 7d}", "lab.yaml: fair_share.halflife is unknown; did you mean half_life?"),
        ("fair_share: {half_life: [7]}", "lab.yaml: fair_share.half_life must be a duration"),
        ("fair_share: {half_life: 0}", "lab.yaml: fair_share.half_life must be more than 0"),
        ("allow: {mount: []}", "lab.yaml: allow.mount is unknown; did you mean mounts?"),
        ("allow: {mounts: [data]}", "lab.yaml: allow.mounts can't have 'data': a folder's full path"),
        ("allow: {mounts: [/data/../etc]}", "lab.yaml: allow.mounts can't have '/data/../etc'"),
        ("allow: {engine_args: [ipc]}", "lab.yaml: allow.engine_args can't have 'ipc': such as --ipc"),
        ("on_host_loss: panic", "lab.yaml: on_host_loss must be one of: requeue, hold"),
        ("on_host_loss: [hold]", "lab.yaml: on_host_loss must be one of: requeue, hold"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_key(document: str, message: str) -> None:
    with pytest.raises(Usage) as caught:
        read(document)
    assert caught.value.message.startswith(message)


def test_the_file_is_named_and_escapes_are_harmless() -> None:
    with pytest.raises(Usage) as caught:
        from_document({"queues": {"\x1b[31m": None}}, "/share/lab.yaml")
    assert caught.value.message.startswith("/share/lab.yaml: queues.") and "\x1b" not in caught.value.message


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("hosts queues users fair_share allow on_host_loss".split()), _ANY) | _ANY)
def test_any_document_is_read_or_refused(document: Any) -> None:
    try:
        lab = from_document(document)
    except Usage:
        return
    assert lab.queues


@pytest.mark.parametrize(
    ("default", "most", "asked", "given_"),
    [(0, 0, 0, 0), (0, 0, 60, 60), (10, 0, 0, 10), (10, 0, 60, 60), (0, 30, 0, 30), (0, 30, 60, 30), (10, 30, 0, 10),
     (10, 30, 20, 20), (10, 30, 60, 30)],
)  # fmt: skip
def test_time_limits(default: int, most: int, asked: int, given_: int) -> None:
    assert Queue("q", time_limit=default, max_time_limit=most).time_limit_for(asked) == given_


@pytest.mark.parametrize(
    ("document", "asked", "kept"),
    [("", 0, 1024), ("", 2048, 2048), ("output_limit: 64M", 0, 64), ("output_limit: 64M", 128, 128),
     ("max_output_limit: 64M", 0, 64), ("max_output_limit: 64M", 128, 64),
     ("{output_limit: 8M, queues: {q: {output_limit: 16M}}}", 0, 16),
     ("{max_output_limit: 8M, queues: {q: {max_output_limit: 16M}}}", 32, 16),
     ("{output_limit: 8M, queues: {q: {max_output_limit: 4M}}}", 0, 4),
     ("{max_output_limit: 8M, queues: {other: }}", 32, 32)],
)  # fmt: skip
def test_how_much_output_is_kept(document: str, asked: int, kept: int) -> None:
    lab = read(document)
    assert lab.output_limit("default" if "q" not in lab.queues else "q", asked) == kept


@pytest.mark.parametrize(
    ("user", "limits"), [("ann", UserLimits(1, 2, 5)), ("bob", UserLimits(3, 4)), ("*", UserLimits(3, 4))]
)
def test_limits_of_a_user_or_of_everyone(user: str, limits: UserLimits) -> None:
    ann, rest = "{max_running: 1, max_gpus: 2, max_priority: 5}", "{max_running: 3, max_gpus: 4}"
    assert read(f"users: {{ann: {ann}, '*': {rest}}}").limits_of(user) == limits
    assert Lab().limits_of(user) == UserLimits()


@pytest.mark.parametrize(
    ("queue", "asked", "reason"),
    [
        ("night", Resources(), ""),
        ("night", Resources("2", time_limit=3600), ""),
        ("nigth", Resources(), "there is no queue nigth; did you mean night?"),
        ("x", Resources(), "there is no queue x"),
        ("night", Resources(time_limit=3601), "queue night gives at most 1h"),
        ("night", Resources("3"), "queue night gives a user at most 2 GPUs"),
        ("default", Resources("4"), ""),
        ("default", Resources("5"), "this lab gives ann at most 4 GPUs"),
        ("default", Resources(time_limit=10**6), ""),
    ],
)
def test_what_the_rules_would_never_let_run_is_refused(queue: str, asked: Resources, reason: str) -> None:
    lab = read("queues: {default: , night: {max_gpus_per_user: 2, max_time_limit: 1h}}\nusers: {ann: {max_gpus: 4}}")
    assert lab.refusal("ann", queue, asked) == reason


@pytest.mark.parametrize("path", ["", "hosts.x", "queues.x", "users.x", "fair_share", "allow"])
def test_the_example_shows_every_key(path: str) -> None:
    document: object = {"qqqqqqqq": 1}
    for part in reversed(path.split(".") if path else ()):
        document = {part: document}
    with pytest.raises(Usage, match="there are: ") as caught:
        from_document(document)
    example = (REPOSITORY / "conf" / "lab.yaml").read_text(encoding="utf-8")
    known = caught.value.message.partition("there are: ")[2].split(", ")
    assert [key for key in known if not re.search(rf"\b{key}:", example)] == []


@pytest.mark.parametrize(("asked", "reason"), [(0, ""), (64, ""), (65, "queue night keeps at most 64 MiB of output")])
def test_more_output_than_is_ever_kept_is_refused(asked: int, reason: str) -> None:
    lab = read("queues: {default: , night: {max_output_limit: 64M}}")
    assert lab.refusal("ann", "night", Resources(), asked) == reason
    assert lab.refusal("ann", "default", Resources(), asked) == ""
