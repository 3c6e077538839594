"""What a job may ask for, and which hosts could ever give it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox.core import text
from mlbox.core.gpu import Gpu, GpuProcess, GpuRequest, Holder
from mlbox.core.resources import (
    MAX_TIME,
    HostFacts,
    Resources,
    fits,
    for_jobs,
    parse_duration,
    parse_memory,
    size,
    would_fit,
)
from mlbox.errors import Usage

# ---- flags and YAML ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "mebibytes"),
    [("24G", 24576), ("24GiB", 24576), ("24GB", 24576), ("24 gb", 24576), ("24g", 24576), ("24576", 24576),
     (24576, 24576), ("512M", 512), ("512MiB", 512), ("1.5G", 1536), ("1T", 2**20), ("0", 0), (0, 0), (" 8G ", 8192)],
)  # fmt: skip
def test_memory(said: str | int, mebibytes: int) -> None:
    assert parse_memory(said) == mebibytes


@pytest.mark.parametrize(
    "said", ["", "G", "-1", "24K", "24Q", "1e3", "24G 12G", "lots", "٣G", "9" * 10, True, -3, "1\x1b[31mG", ".5G"]
)
def test_what_is_no_memory_says_what_to_write(said: str | int) -> None:
    with pytest.raises(Usage, match="no amount of memory") as caught:
        parse_memory(said)
    assert caught.value.hint == "write 24G, 512M, or 24576 (MiB)" and "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("90s", 90), ("30m", 1800), ("4h", 14400), ("2d", 172800), ("1-12:00:00", 129600), ("01:30:00", 5400),
     ("1:30:00", 5400), ("100:00:00", 360000), ("1h30m", 5400), ("2h 5m", 7500), ("1d12h", 129600), ("90S", 90),
     ("90", 90), (5400, 5400), ("0", 0), (0, 0), ("0-00:00:01", 1), (" 4h ", 14400)],
)  # fmt: skip
def test_durations(said: str | int, seconds: int) -> None:
    assert parse_duration(said) == seconds


@pytest.mark.parametrize(
    "said",
    ["", "h", "4 hours", "-4h", "1.5h", "12:00", "1h30", "1:60:00", "1:00:60", "m30", "30m1h", "1-12", True, "٣h"],
)
def test_what_is_no_duration_says_what_to_write(said: str | int) -> None:
    with pytest.raises(Usage, match="no duration") as caught:
        parse_duration(said)
    assert "write 90s, 30m, 4h, 2d" in caught.value.hint


@pytest.mark.parametrize("said", ["3651d", "999999h", "999999999", "9999-00:00:00"])
def test_durations_end_somewhere(said: str) -> None:
    with pytest.raises(Usage, match="too long"):
        parse_duration(said)


@given(st.integers(0, MAX_TIME))
def test_a_duration_as_printed_can_be_typed_again(seconds: int) -> None:
    again = parse_duration(text.duration(seconds))
    assert again <= seconds and text.duration(again) == text.duration(seconds)


@given(st.text(max_size=12) | st.text("0123456789dhms:- ", max_size=12))
def test_any_text_is_read_or_refused(said: str) -> None:
    for parse in (parse_memory, parse_duration):
        try:
            assert parse(said) >= 0
        except Usage as refusal:
            assert refusal.hint


# ---- the request ---------------------------------------------------------------------------------

GOOD: list[dict[str, Any]] = [
    {},
    {"gpus": "2"},
    {"gpus": "A100:4", "gpu_memory": 40960},
    {"gpus": "GPU-1,GPU-2"},
    {"gpu_share": 8192},
    {"gpus": "1", "gpu_share": 8192},
    {"gpus": "A100", "gpu_share": 8192},
    {"gpus": "GPU-1", "gpu_share": 8192},
    {"gpus": "0", "cpus": 64, "memory": 2**18},
    {"cpus": 0},
    {"hosts": ("gpu1", "gpu2.lab"), "labels": ("nvlink", "rack_2")},
    {"time_limit": MAX_TIME},
]


@pytest.mark.parametrize("good", GOOD, ids=lambda g: ",".join(g) or "nothing")
def test_good_requests_go_over_the_wire_and_come_back(good: dict[str, Any]) -> None:
    asked = Resources(**good)
    assert Resources.from_wire(json.loads(json.dumps(asked.to_wire()))) == asked


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"gpus": "A100:x"}, "can't be read"),
        ({"gpu_memory": -1}, "gpu_memory can't be -1"),
        ({"gpu_share": 2**31}, "gpu_share can't be"),
        ({"cpus": -1}, "cpus can't be -1"),
        ({"cpus": 5000}, "cpus can't be 5000"),
        ({"memory": 2**40}, "memory can't be"),
        ({"time_limit": MAX_TIME + 1}, "time_limit can't be"),
        ({"hosts": ("../gpu1",)}, "can't be among hosts"),
        ({"hosts": ("",)}, "can't be among hosts"),
        ({"labels": ("a b",)}, "can't be among labels"),
        ({"labels": tuple(f"l{n}" for n in range(65))}, "65 labels are too many"),
        ({"gpus": "2", "gpu_share": 1024}, "a share is of one GPU"),
        ({"gpus": "0", "gpu_share": 1024}, "a share is of one GPU"),
        ({"gpus": "GPU-1,GPU-2", "gpu_share": 1024}, "a share is of one GPU"),
        ({"gpu_memory": 1024, "gpu_share": 1024}, "by its own memory"),
        ({"gpus": "0", "gpu_memory": 1024}, "and no GPU"),
    ],
)
def test_bad_requests(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(Usage, match=words):
        Resources(**bad)


@pytest.mark.parametrize(
    ("asked", "said"),
    [(parse_memory("9999T"), "9999T"), (parse_memory("1049600G"), "1025T"), (parse_memory("1048577G"), "1048577G"),
     (2**30 + 1, "1073741825M")],
)  # fmt: skip
@pytest.mark.parametrize("key", ["memory", "gpu_memory", "gpu_share"])
def test_too_much_memory_is_told_as_people_write_it(key: str, asked: int, said: str) -> None:
    with pytest.raises(Usage) as caught:
        Resources.from_wire({key: asked})
    assert (caught.value.message, caught.value.hint) == (f"{key} can't be {said}", "it is 0 to 1024T")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"gpu": "1"}, "resources have no 'gpu'"),
        ({"\x1b[31m": 1}, "resources have no"),
        ({"gpus": 1}, "gpus must be text"),
        ({"cpus": "1"}, "cpus must be a number"),
        ({"cpus": True}, "cpus must be a number"),
        ({"cpus": 1.0}, "cpus must be a number"),
        ({"memory": None}, "memory must be a number"),
        ({"hosts": "gpu1"}, "hosts must be a list"),
        ({"hosts": [1]}, "hosts must be a list"),
        ({"labels": {"a": 1}}, "labels must be a list"),
        ([], "must map"),
        ("gpus", "must map"),
        (None, "must map"),
    ],
)
def test_bad_wire(data: Any, words: str) -> None:
    with pytest.raises(Usage, match=words) as caught:
        Resources.from_wire(data)
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Resources("1"), "1 GPU"),
        (Resources("A100:4"), "4 A100 GPUs"),
        (Resources("1", gpu_memory=40960), "1 GPU of 40 GiB"),
        (Resources("A100:2", gpu_memory=40960), "2 A100 GPUs of 40 GiB"),
        (Resources("GPU-1,GPU-2"), "GPU-1, GPU-2"),
        (Resources(gpu_share=10240), "10 GiB of one GPU"),
        (Resources("A100", gpu_share=512), "512 MiB of one A100 GPU"),
        (Resources("GPU-1", gpu_share=512), "512 MiB of GPU-1"),
    ],
)
def test_words(asked: Resources, words: str) -> None:
    assert asked.gpu_words(asked.request.count or 1) == words


# ---- hosts ---------------------------------------------------------------------------------------

A100 = tuple(Gpu(n, f"GPU-a{n}", "NVIDIA A100-SXM4-80GB", 81920) for n in range(4))
RTX = tuple(Gpu(n, f"GPU-r{n}", "NVIDIA GeForce RTX 4090", 24564) for n in range(2))
BIG = HostFacts("big", A100, 64, 2**19, ("nvlink", "a100"))
MID = HostFacts("mid", RTX, 16, 65400)
CPU = HostFacts("cpu", (), 128, 2**18, ("ssd",))
MIXED = HostFacts("mixed", (*A100[:1], *RTX), 8, 2**15)


@pytest.mark.parametrize(
    ("memory", "label"),
    [(24564, 24576), (24576, 24576), (23028, 23028), (81920, 81920), (81559, 81920), (16160, 16384)],
)
def test_a_gpu_is_as_large_as_its_label_says(memory: int, label: int) -> None:
    assert size(Gpu(0, "GPU-0", "x", memory)) == label


@pytest.mark.parametrize(
    ("asked", "host", "count"),
    [
        (Resources(), MID, 1),
        (Resources(), CPU, 0),
        (Resources("0"), MID, 0),
        (Resources("A100:2"), CPU, 2),
        (Resources("GPU-1,GPU-2"), MID, 2),
        (Resources(gpu_share=1), CPU, 1),
        (Resources(gpu_memory=1), CPU, 1),
    ],
)
def test_how_many_gpus_that_is_there(asked: Resources, host: HostFacts, count: int) -> None:
    assert asked.gpus_on(host) == count


@pytest.mark.parametrize(
    ("asked", "host", "reason"),
    [
        (Resources(), BIG, ""),
        (Resources(), CPU, ""),
        (Resources("0"), CPU, ""),
        (Resources("4"), BIG, ""),
        (Resources("5"), BIG, "it asks for 5 GPUs, and big has 4 such"),
        (Resources("1"), CPU, "it asks for 1 GPU, and cpu has no GPU"),
        (Resources("A100:4"), BIG, ""),
        (Resources("4090:1"), BIG, "it asks for 1 4090 GPU, and big has 0 such"),
        (Resources("4090:2"), MID, ""),
        (Resources("4090:2"), MIXED, ""),
        (Resources("A100:2"), MIXED, "it asks for 2 A100 GPUs, and mixed has 1 such"),
        (Resources("1", gpu_memory=40960), BIG, ""),
        (Resources("1", gpu_memory=40960), MID, "it asks for 1 GPU of 40 GiB, and mid has 0 such"),
        (Resources("1", gpu_memory=24576), MID, ""),
        (Resources("2", gpu_memory=40960), MIXED, "it asks for 2 GPUs of 40 GiB, and mixed has 1 such"),
        (Resources(gpu_share=24576), MID, ""),
        (Resources(gpu_share=24577), MID, "it asks for 24 GiB of one GPU, and mid has none such"),
        (Resources(gpu_share=1024), CPU, "it asks for 1 GiB of one GPU, and cpu has no GPU"),
        (Resources(gpu_memory=1024), CPU, "it asks for 1 GPU of 1 GiB, and cpu has no GPU"),
        (Resources("GPU-a0,GPU-a3"), BIG, ""),
        (Resources("GPU-a0,GPU-r0"), BIG, "it asks for GPU-a0, GPU-r0, and big has none such"),
        (Resources("GPU-a0", gpu_share=1024), BIG, ""),
        (Resources(cpus=64), BIG, ""),
        (Resources(cpus=65), BIG, "it asks for 65 CPUs, and big has 64"),
        (Resources(memory=65400), MID, ""),
        (Resources(memory=65536), MID, "it asks for 64 GiB of memory, and mid has 63 GiB for jobs"),
        (Resources(hosts=("big",)), BIG, ""),
        (Resources(hosts=("mid", "big")), BIG, ""),
        (Resources(hosts=("mid",)), BIG, "it is only for mid"),
        (Resources(labels=("nvlink",)), BIG, ""),
        (Resources(labels=("nvlink", "a100")), BIG, ""),
        (Resources(labels=("nvlink", "ssd")), BIG, "big has no label ssd"),
        (Resources(labels=("nvlink", "ssd")), MID, "mid has no label nvlink, ssd"),
        (Resources(time_limit=5), BIG, ""),
    ],
)
def test_fits(asked: Resources, host: HostFacts, reason: str) -> None:
    assert fits(asked, host) == reason


def test_what_is_busy_or_broken_may_come_back() -> None:
    busy = replace(A100[0], processes=(GpuProcess(1),), holder=Holder("bob"), error="GPU is lost")
    assert fits(Resources("4"), replace(BIG, gpus=(busy, *A100[1:]), drained=True)) == ""


@pytest.mark.parametrize(
    ("asked", "hosts", "hint"),
    [
        (Resources("4"), [MID, BIG, CPU], ""),
        (Resources("0"), [CPU], ""),
        (Resources(), [], "the lab has no host yet: mlbox host add"),
        (Resources("5"), [MID, BIG, CPU],
         "what would fit: big [nvlink, a100]: up to 4 NVIDIA A100-SXM4-80GB (80 GiB), 64 CPUs, 512 GiB; "
         "cpu [ssd]: no GPU, up to 128 CPUs, 256 GiB; mid: up to 2 NVIDIA GeForce RTX 4090 (24 GiB), 16 CPUs, 63 GiB"),
        (Resources("3", hosts=("mid",)), [MID, BIG],
         "what would fit: mid: up to 2 NVIDIA GeForce RTX 4090 (24 GiB), 16 CPUs, 63 GiB"),
        (Resources("1", labels=("ssd",)), [MID, CPU], "what would fit: cpu [ssd]: no GPU, up to 128 CPUs, 256 GiB"),
        (Resources(labels=("none",)), [CPU], "what would fit: cpu [ssd]: no GPU, up to 128 CPUs, 256 GiB"),
        (Resources("4"), [MIXED],
         "what would fit: mixed: up to 1 NVIDIA A100-SXM4-80GB (80 GiB), 2 NVIDIA GeForce RTX 4090 (24 GiB), "
         "8 CPUs, 32 GiB"),
    ],
)  # fmt: skip
def test_would_fit(asked: Resources, hosts: list[HostFacts], hint: str) -> None:
    assert would_fit(asked, hosts) == hint


def test_requests_read_like_flags() -> None:
    assert Resources("A100:2").request == GpuRequest(2, "A100")


@pytest.mark.parametrize(("all_", "given"), [(0, 0), (512, 0), (8192, 7168), (20480, 19456), (40960, 38912)])
def test_what_of_a_host_s_memory_jobs_may_ask_for(all_: int, given: int) -> None:
    assert for_jobs(all_) == given
