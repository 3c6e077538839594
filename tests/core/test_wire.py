"""The boundary: messages among noise, and the wire format of today, pinned by files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox import errors
from mlbox.core import wire
from mlbox.core.gpu import Gpu, GpuProcess, Holder
from mlbox.core.job import JobSpec
from mlbox.core.log import State, fold
from mlbox.core.resources import Resources
from mlbox.core.schedule import After
from mlbox.core.session import Mount, Spec

GOLDEN = Path(__file__).parent / "golden"
NONCE = "5eb0a1"
PROGRESS = {"progress": {"text": "pulling", "detail": "3 of 9 layers"}}
REPLY: dict[str, Any] = {"reply": {"running": []}}


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def messages(data: bytes, nonce: str = NONCE) -> list[Any]:
    return list(wire.MessageReader(nonce).feed(data))


# ---- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"Welcome to gpu1!\nLast login: today\n",
        b"no line end at the end of the banner",
        b'{"reply": {"a": 1}}\n',
        b'@mlbox:other {"reply": {}}\n',
        b"@mlbox:\n@mlbox: {}\n",
        b" @mlbox:" + NONCE.encode() + b" {}\n",
        b"@mlbox:" + NONCE.encode() + b"0 {}\n",
        b"\xff\xfe\x00binary\n",
    ],
    ids=["none", "banner", "open line", "json", "other nonce", "empty nonce", "indented", "longer nonce", "binary"],
)
def test_messages_are_found_among_noise(noise: bytes) -> None:
    data = noise + wire.encode_message(NONCE, PROGRESS) + noise + wire.encode_message(NONCE, REPLY)
    assert messages(data) == [PROGRESS, REPLY]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_messages_may_come_in_pieces(size: int) -> None:
    data = b"motd\n" + wire.encode_message(NONCE, PROGRESS) + wire.encode_message(NONCE, REPLY)
    reader, found = wire.MessageReader(NONCE), []
    for start in range(0, len(data), size):
        found += list(reader.feed(data[start : start + size]))
    assert found == [PROGRESS, REPLY]
    assert reader.noise == b"motd\n"


def test_half_a_message_is_none() -> None:
    assert messages(wire.encode_message(NONCE, REPLY)[:-1]) == []


def test_noise_is_kept_up_to_a_limit() -> None:
    reader = wire.MessageReader(NONCE)
    list(reader.feed(b"x" * 100 + b"\n" + b"y" * 9000 + b"\nthe end\n"))
    assert reader.noise.endswith(b"y\nthe end\n")
    assert len(reader.noise) == 4096


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none())), st.binary(), st.integers(1, 50))
def test_whatever_is_sent_arrives(sent: list[dict[str, Any]], noise: bytes, size: int) -> None:
    data = b"".join(noise + wire.encode_message(NONCE, {"progress": one}) for one in sent)
    reader, found = wire.MessageReader(NONCE), []
    for start in range(0, len(data), size):
        found += list(reader.feed(data[start : start + size]))
    assert found == [{"progress": one} for one in sent]


# ---- requests ------------------------------------------------------------------------------------


def test_a_request_is_one_line_and_comes_back_equal() -> None:
    request = wire.Request("session", {"spec": {"init_script": "a\nb\r\n", "name": "é\u2028"}}, NONCE)
    assert request.encode().count(b"\n") == 1
    assert wire.decode_request(request.encode()) == request


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\n", "not a request"),
        (b"{", "not a request"),
        (b"\xff\n", "not a request"),
        (b"[" * 100_000, "not a request"),
        (b"[]\n", "protocol 1"),
        (b'"session"\n', "protocol 1"),
        (b'{"verb": "session"}\n', "protocol 1"),
        (b'{"mlbox": 2, "verb": "session"}\n', "protocol 1"),
        (b'{"mlbox": 1}\n', "needs a verb"),
        (b'{"mlbox": 1, "verb": 3}\n', "needs a verb"),
        (b'{"mlbox": 1, "verb": "x", "args": []}\n', "needs a verb"),
        (b'{"mlbox": 1, "verb": "x", "nonce": 1}\n', "needs a verb"),
    ],
    ids=["empty", "torn", "not utf-8", "deep", "list", "text", "no protocol", "next protocol", "no verb",
         "verb is a number", "args is a list", "nonce is a number"],
)  # fmt: skip
def test_a_bad_request_is_a_usage_error(line: bytes, words: str) -> None:
    with pytest.raises(errors.Usage, match=words):
        wire.decode_request(line)


@pytest.mark.parametrize(
    "error",
    [
        errors.MlboxError("m", "h"),
        errors.Usage("m"),
        errors.Refused("no GPU", "wait"),
        errors.Unreachable("m"),
        errors.HostUnready("m"),
        errors.NotFound("m"),
        errors.Ended("m"),
        errors.StartFailed("m\nlog"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_cross_the_wire_as_what_they_are(error: errors.MlboxError) -> None:
    found = wire.decode_error(json.loads(json.dumps(wire.encode_error(error)))["error"])
    assert (type(found), found.message, found.hint) == (type(error), error.message, error.hint)
    assert found.exit_code == error.exit_code


def test_an_error_of_a_newer_host_is_a_plain_failure() -> None:
    found = wire.decode_error({"kind": "not-known-yet", "message": "m"})
    assert (type(found), found.message, found.hint) == (errors.MlboxError, "m", "")


# ---- the format of today: a change here breaks laptops and hosts that differ, and sessions that run ----

SPEC = Spec(
    name="kind-otter", gpus="A100:2", image="pytorch/pytorch:2.9", runtime="docker", user="uid", user_folder="~/work",
    packages=("einops", "numpy>=2"), requirements="torch\n", init_script="#!/bin/sh\ntrue\n",
    vscode_extensions=("ms-python.python",), extension_files={"mine.vsix": "eA=="}, jupyter="yes", vscode="no",
    env={"WANDB_KEY": "s3cret"}, mounts=(Mount("/data", "/data", True),), engine_args=("--shm-size=8g",),
    authorized_keys=("ssh-ed25519 AAAA me@laptop",), jupyter_version="4.4.10", vscode_version="4.108.1",
    sources="/share/sources", start_timeout=60,
)  # fmt: skip
GPU = Gpu(
    0, "GPU-1", "NVIDIA A100-SXM4-80GB", 81920, 2052, 97, 61, 311, "",
    (GpuProcess(4711, "ada", "python3", 2048),), Holder("ada", "01J0", "kind-otter"),
)  # fmt: skip


def test_golden_request() -> None:
    request = wire.Request("session", {"spec": SPEC.to_wire(), "new": False, "root": ""}, NONCE)
    pinned = golden("session-request.json")
    assert json.loads(request.encode()) == pinned
    read = wire.decode_request(json.dumps(pinned).encode())
    assert read.verb == "session"
    assert Spec.from_wire(read.args["spec"]) == SPEC


def test_golden_messages() -> None:
    pinned = golden("messages.json")
    data = "".join(pinned["lines"]).encode()
    assert messages(data, pinned["nonce"]) == pinned["messages"]
    assert b"".join(wire.encode_message(pinned["nonce"], m) for m in pinned["messages"]) == data


@pytest.mark.parametrize(("kind", "document"), golden("errors.json").items())
def test_golden_errors(kind: str, document: dict[str, Any]) -> None:
    found = wire.decode_error(document["error"])
    assert found.kind == kind
    assert wire.encode_error(found) == {"error": document["error"]}
    assert found.exit_code == document["exit_code"]


def test_golden_gpu() -> None:
    pinned = golden("gpu.json")
    assert json.loads(json.dumps(asdict(GPU))) == pinned
    assert Gpu.from_wire(pinned) == GPU


def test_golden_log() -> None:
    """A session that an older mlbox started is read by this one."""
    pinned = golden("job.json")
    spec = JobSpec.from_wire(pinned["spec.json"], strict=False)
    assert spec.session and spec.name == "kind-otter"
    expected = pinned["state"]
    assert fold(pinned["ev"]) == State(expected["name"], expected["facts"])


JOB = JobSpec(
    command=("python3", "train.py", "--lr=3e-4"), work=Spec(name="calm-owl", runtime="process", env={"A": "b"}),
    resources=Resources(gpus="A100:2", cpus=4, memory=8192, hosts=("gpu1",), labels=("fast",), time_limit=3600),
    queue="night", priority=-5, retries=2, retry_on=("oom", "lost"), backoff=30,
    after=(After("01ARYZ6S41TSV4RRFFQ69G5FAV", "any"),), array="01ARYZ6S41TSV4RRFFQ69G5FAW", array_index=3,
    array_limit=2, grace=20, output_limit=64, on_host_loss="hold", code="ab" * 32, provenance={"commit": "deadbeef"},
)  # fmt: skip


def test_golden_batch_job() -> None:
    """spec.json and log of a job that was tried twice."""
    pinned = golden("batch.json")
    assert json.loads(json.dumps(JOB.to_wire())) == pinned["spec.json"]
    assert JobSpec.from_wire(pinned["spec.json"]) == JOB
    found = fold(pinned["ev"])
    assert found == State(pinned["state"]["name"], pinned["state"]["facts"])
    assert found.attempt == 2
