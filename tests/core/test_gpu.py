"""GPUs: what may be asked for, and which are taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox.core.gpu import Gpu, GpuProcess, GpuRequest, Holder, choose, parse_request
from mlbox.errors import Usage

# ---- what may be asked for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "request_"),
    [
        ("", GpuRequest()),
        ("auto", GpuRequest()),
        (" 2 ", GpuRequest(2)),
        ("0", GpuRequest(0)),
        ("64", GpuRequest(64)),
        ("A100", GpuRequest(1, "A100")),
        ("A100:2", GpuRequest(2, "A100")),
        ("RTX 4090", GpuRequest(1, "RTX 4090")),
        ("4090:1", GpuRequest(1, "4090")),
        ("A100:0", GpuRequest(0, "A100")),
        ("A100,H100", GpuRequest(1, "A100,H100")),
        ("A100, RTX 4090:2", GpuRequest(2, "A100,RTX 4090")),
        ("4090,3090:1", GpuRequest(1, "4090,3090")),
        ("GPU-1a-2b", GpuRequest(1, uuids=("GPU-1a-2b",))),
        ("GPU-1, GPU-2", GpuRequest(2, uuids=("GPU-1", "GPU-2"))),
        ("MIG-GPU-1/1/0", GpuRequest(1, uuids=("MIG-GPU-1/1/0",))),
    ],
    ids=repr,
)
def test_requests(value: str, request_: GpuRequest) -> None:
    assert parse_request(value) == request_
    assert parse_request(str(request_)) == request_


@pytest.mark.parametrize(
    "value",
    ["65", "9" * 5000, "4090", "A100:65", "A100:", ":2", ":", ",", "A100:x", "A100:-1", "A100:²", "²", "-1", "-", "*",
     "A100,", ",A100", "A100,,H100", "A100:1,H100", "A100,-1", "A100,4090", ",".join(["A100"] * 9),
     "GPU-1,GPU-1", "GPU-1,A100", "GPU-1,", "GPU-\x1b[31m,", "1,2"],
    ids=lambda v: repr(v[:12]),
)  # fmt: skip
def test_bad_requests_are_usage_errors(value: str) -> None:
    with pytest.raises(Usage) as caught:
        parse_request(value)
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("value", ["0x", "0x2", "2x", "2 x A100", "2xA100:1", "x2", "X 2", "+2", "2.0", ".5", "2 GPUs",
                                   "1gpu", "A100,2x"])  # fmt: skip
def test_a_broken_number_is_no_name(value: str) -> None:
    with pytest.raises(Usage, match="neither a number nor a GPU's name") as caught:
        parse_request(value)
    assert "A100:2" in caught.value.hint


@pytest.mark.parametrize("name", ["4090:1", "2080Ti", "RTX 4090", "GTX 1080 Ti", "3090 Ti:2", "L40S", "A100X",
                                  "Titan X", "Titan Xp", "1g.5gb", "MIG 1g.5gb", "H100 NVL", "T4"])  # fmt: skip
def test_a_model_with_digits_is_one(name: str) -> None:
    assert parse_request(name).name == name.partition(":")[0]


@pytest.mark.parametrize(
    ("value", "hint"),
    [("99", "at most 64"), ("980", "at most 64; a model that is a number goes with its count: 980:1"),
     ("4090", "at most 64; a model that is a number goes with its count: 4090:1"), ("A100:99", "at most 64"),
     ("99999", "at most 64")],
)  # fmt: skip
def test_too_many_may_be_a_model(value: str, hint: str) -> None:
    with pytest.raises(Usage, match="no host has so many GPUs") as caught:
        parse_request(value)
    assert caught.value.hint == hint


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(value: str) -> None:
    try:
        request = parse_request(value)
    except Usage:
        return
    assert request.count is None or 0 <= request.count <= 64


# ---- which are taken -----------------------------------------------------------------------------

A100 = [Gpu(n, f"GPU-a{n}", "NVIDIA A100-SXM4-80GB", 81920) for n in range(4)]
SMALL = [Gpu(n, f"GPU-r{n}", "NVIDIA GeForce RTX 4090", 24564) for n in range(4, 6)]
BUSY = (GpuProcess(4711, "ada", "python3", 2048),)
LEASED = Holder("bob", "01J0", "calm-owl")


def busy(gpu: Gpu) -> Gpu:
    return replace(gpu, processes=BUSY)


def leased(gpu: Gpu) -> Gpu:
    return replace(gpu, holder=LEASED)


def lost(gpu: Gpu) -> Gpu:
    return replace(gpu, error="GPU is lost")


@pytest.mark.parametrize(
    ("asked", "gpus", "taken"),
    [
        ("auto", [], []),
        ("auto", A100, [0]),
        ("0", A100, []),
        ("0", [], []),
        ("2", A100, [0, 1]),
        ("4", list(reversed(A100)), [0, 1, 2, 3]),
        ("1", [busy(A100[0]), *A100[1:]], [1]),
        ("1", [leased(A100[0]), lost(A100[1]), *A100[2:]], [2]),
        ("1", [*A100, *SMALL], [4]),
        ("2", [*A100, *SMALL], [4, 5]),
        ("3", [*A100, *SMALL], [0, 1, 2]),
        ("2", [*A100, busy(SMALL[0]), SMALL[1]], [0, 1]),
        ("5", [*A100, *SMALL], [4, 5, 0, 1, 2]),
        ("A100", [*A100, *SMALL], [0]),
        ("a100:3", [*A100, *SMALL], [0, 1, 2]),
        ("a100-sxm4:1", A100, [0]),
        ("RTX4090:2", [*A100, *SMALL], [4, 5]),
        ("rtx 4090", [*A100, *SMALL], [4]),
        ("GPU-a3,GPU-a1", A100, [3, 1]),
    ],
    ids=["auto, none here", "auto", "none", "none of none", "count", "all, lowest first", "not the busy one",
         "not leased, not lost", "small first", "small ones together", "one kind together", "one kind, free ones",
         "mixed where it must be", "name", "name and count", "name in parts", "name without blank",
         "name with blank", "exactly these, in this order"],
)  # fmt: skip
def test_choose(asked: str, gpus: list[Gpu], taken: list[int]) -> None:
    choice = choose(parse_request(asked), gpus)
    assert ([g.index for g in choice.gpus], choice.reason) == (taken, "")


@pytest.mark.parametrize(
    ("asked", "gpus", "reason", "hint"),
    [
        ("1", [], "you asked for 1 GPU, and no GPU was found", "--gpus 0 starts without one"),
        ("5", A100, "you asked for 5 GPUs, and there are 4", "what would fit: 4 of 4 NVIDIA A100-SXM4-80GB free"),
        ("H100:2", [*A100, *SMALL], "you asked for 2 H100 GPUs, and there are 0",
         "what would fit: 4 of 4 NVIDIA A100-SXM4-80GB free, 2 of 2 NVIDIA GeForce RTX 4090 free"),
        ("auto", [busy(A100[0])], "you asked for 1 GPU, and 0 of 1 are free (GPU 0 used by ada's python3 (pid 4711))",
         "what would fit: 0 of 1 NVIDIA A100-SXM4-80GB free"),
        ("2", [leased(A100[0]), lost(A100[1]), A100[2]],
         "you asked for 2 GPUs, and 1 of 3 are free "
         "(GPU 0 leased to bob's session calm-owl; GPU 1 out of order: GPU is lost)",
         "what would fit: 1 of 3 NVIDIA A100-SXM4-80GB free"),
        ("GPU-x", A100[:1], "no GPU GPU-x here", "what would fit: 1 of 1 NVIDIA A100-SXM4-80GB free"),
        ("GPU-a0,GPU-a1", [A100[0], busy(A100[1])],
         "GPU 1 (NVIDIA A100-SXM4-80GB, 80 GiB) is used by ada's python3 (pid 4711)",
         "what would fit: 1 of 2 NVIDIA A100-SXM4-80GB free"),
        ("GPU-a0", [], "no GPU GPU-a0 here", "what would fit: --gpus 0"),
    ],
    ids=["no GPUs", "too many", "other kind", "busy", "leased and lost", "unknown uuid", "uuid busy",
         "uuid, none here"],
)  # fmt: skip
def test_refusals_say_what_would_fit(asked: str, gpus: list[Gpu], reason: str, hint: str) -> None:
    choice = choose(parse_request(asked), gpus)
    assert (choice.gpus, choice.reason, choice.hint) == ((), reason, hint)


@pytest.mark.parametrize(
    ("gpu", "obstacle"),
    [
        (A100[0], ""),
        (replace(A100[0], utilization=100, memory_used=70000, temperature=95), ""),
        (busy(A100[0]), "used by ada's python3 (pid 4711)"),
        (replace(A100[0], processes=(*BUSY, GpuProcess(2))), "used by ada's python3 (pid 4711) and 1 more"),
        (replace(A100[0], processes=(GpuProcess(9),)), "used by someone's process (pid 9)"),
        (replace(A100[0], holder=Holder("bob", "01J0")), "leased to bob's job 01J0"),
        (replace(A100[0], holder=Holder("bob")), "leased to bob"),
        (lost(leased(A100[0])), "GPU is lost"),
    ],
    ids=["free", "hot is no obstacle", "busy", "busy twice", "nobody known", "leased, no name", "leased", "lost first"],
)
def test_obstacles(gpu: Gpu, obstacle: str) -> None:
    assert gpu.obstacle == obstacle


_KINDS = [("NVIDIA A100-SXM4-80GB", 81920), ("NVIDIA GeForce RTX 4090", 24564), ("NVIDIA H100 PCIe", 81559)]


@st.composite
def boxes(draw: st.DrawFn) -> list[Gpu]:
    states = draw(
        st.lists(st.tuples(st.sampled_from(_KINDS), st.sampled_from("free busy leased lost".split())), max_size=9)
    )
    found = []
    for index, ((name, memory), state) in enumerate(states):
        gpu = Gpu(index, f"GPU-{index}", name, memory)
        found.append({"free": gpu, "busy": busy(gpu), "leased": leased(gpu), "lost": lost(gpu)}[state])
    return draw(st.permutations(found))


_COUNTS = st.integers(0, 10)
_REQUESTS = st.one_of(
    st.just("auto"),
    _COUNTS.map(str),
    st.builds("{}:{}".format, st.sampled_from(["A100", "RTX 4090", "h100", "L4"]), _COUNTS),
    st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True).map(lambda n: ",".join(f"GPU-{i}" for i in n)),
)


@given(_REQUESTS, boxes())
def test_what_is_chosen_is_free_and_just_what_was_asked_for(asked: str, gpus: list[Gpu]) -> None:
    request = parse_request(asked)
    choice = choose(request, gpus)
    free = [g for g in gpus if not g.obstacle]
    wanted = min(1, len(gpus)) if request.count is None else request.count
    if choice.reason:
        assert choice.gpus == () and choice.hint
        if not request.uuids and not request.name:
            assert len(free) < wanted
        return
    assert len({g.uuid for g in choice.gpus}) == len(choice.gpus) == wanted
    assert all(g in free for g in choice.gpus)
    if request.uuids:
        assert tuple(g.uuid for g in choice.gpus) == request.uuids
    if request.name:
        assert all(request.name.lower() in g.name.lower() for g in choice.gpus)


@given(_COUNTS, boxes())
def test_one_kind_is_kept_together_and_the_least_memory_goes_first(count: int, gpus: list[Gpu]) -> None:
    choice = choose(GpuRequest(count), gpus)
    free: dict[str, list[Gpu]] = {}
    for gpu in gpus:
        if not gpu.obstacle:
            free.setdefault(gpu.name, []).append(gpu)
    enough = [same for same in free.values() if len(same) >= count]
    if enough and count:
        assert len({g.name for g in choice.gpus}) == 1
        assert choice.gpus[0].memory == min(same[0].memory for same in enough)
        indices = [g.index for g in choice.gpus]
        assert indices == sorted(g.index for g in free[choice.gpus[0].name])[:count]


@given(_REQUESTS, boxes())
def test_the_order_of_listing_does_not_matter(asked: str, gpus: list[Gpu]) -> None:
    request = parse_request(asked)
    assert choose(request, gpus).gpus == choose(request, sorted(gpus, key=lambda g: g.index)).gpus


@pytest.mark.parametrize(
    ("asked", "name", "meant"),
    [
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("L4", "NVIDIA L40S", False),
        ("A100-40GB", "NVIDIA A100-SXM4-80GB", False),
        ("A100-80GB", "NVIDIA A100-SXM4-80GB", True),
        ("a100", "NVIDIA A100-SXM4-80GB", True),
        ("4090:1", "NVIDIA GeForce RTX 4090", True),
        ("RTX4090", "NVIDIA GeForce RTX 4090", True),
        ("rtx 4090", "NVIDIA GeForce RTX 4090", True),
        ("4090 rtx", "NVIDIA GeForce RTX 4090", False),
        ("A6000", "NVIDIA RTX A6000", True),
        ("A100", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", False),
        ("A100 MIG", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", True),
        ("1g.10gb", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", True),
        ("1", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", True),
        ("MIG-0f1e", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", False),
    ],
)
def test_a_model_is_not_taken_for_another(asked: str, name: str, meant: bool) -> None:
    assert bool(choose(parse_request(asked), [Gpu(0, "GPU-0", name, 46068)]).gpus) == meant
