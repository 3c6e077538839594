"""What a laptop says of hosts that nobody hears, and of jobs there."""

from __future__ import annotations

from typing import Any

import pytest

from mlbox import cli, errors
from mlbox.client import lab
from mlbox.client.commands import status
from mlbox.core import ids

Json = dict[str, Any]
JOB = ids.ulid(1, b"0123456789")
DAYS = 3 * 86400.0


class Entry:
    """The host that is asked, and its answers."""

    name = "gpu1"

    def __init__(self, **replies: Json) -> None:
        self.replies, self.heard = replies, list[str]()

    def call(self, verb: str, args: Json) -> Json:
        self.heard.append(verb)
        if verb not in self.replies:
            raise errors.HostUnready("its disk is full")
        return dict(self.replies[verb])


def said(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], **replies: Json) -> str:
    patch.setattr(lab, "entry", lambda *_: Entry(**replies))
    assert cli.main(words) == 0
    return capsys.readouterr().out


def cancelled(**facts: Any) -> Json:
    return {
        "id": JOB, "name": "otter", "state": "started", "requested": "cancel_requested", "already": False, "why": "",
        "host": "gpu9", "nudge": "gpu9.lab", "silent": 0.0, "more": [], "elsewhere": [], "trouble": "",
        **facts,
    }  # fmt: skip


GONE = "gpu9 can't be told: it ends when gpu9 is back; gone for good: mlbox host fence gpu9"
ENDED = "is being ended on gpu9"


@pytest.mark.parametrize(
    ("facts", "answers", "words"),
    [
        ({}, True, ENDED),
        ({}, False, GONE),
        ({"silent": DAYS}, True, ENDED),
        ({"nudge": ""}, False, ENDED),  # by its own look into the log
        ({"nudge": "", "silent": DAYS}, False, GONE),
    ],
)
def test_cancel_on_a_host_that_can_t_be_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], facts: Json, answers: bool, words: str
) -> None:
    def ask_all(hosts: list[str], verb: str, *_: Any) -> Json:
        assert verb == "tick"
        reply: Any = (
            {"started": [], "waits": {}, "failed": [], "whole": True} if answers else errors.Unreachable("no route")
        )
        return dict.fromkeys(hosts, reply)

    monkeypatch.setattr(lab, "ask_all", ask_all)
    told = said(monkeypatch, capsys, ["cancel", JOB], cancel=cancelled(**facts))
    assert told == f"otter  {JOB}  {words}\n"


@pytest.mark.parametrize(("dry", "asked"), [(False, ["tick", "gpu9.lab"]), (True, [])])
@pytest.mark.parametrize(
    "words", ["host resume gpu9", "host fence gpu8 -y", "queue resume night", f"cancel {JOB}", f"cancel {JOB} {JOB}"]
)
def test_what_waited_for_a_word_does_not_wait_for_cron_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, dry: bool, asked: list[str]
) -> None:
    queue = {"name": "night", "waiting": 1, "running": 0, "max_running": 0, "paused": "", "hosts": ["gpu9"]}
    entry = Entry(
        host={"host": "gpu9", "drained": False, "running": [], "requeued": [], "nudge": ["gpu9.lab"]},
        queue={"queues": [queue], "nudge": ["gpu9.lab"]},
        cancel=cancelled(state="cancelled", requested="", nudge="", elsewhere=["gpu9.lab"]),
    )  # fmt: skip

    def ask_all(hosts: list[str], *_: Any) -> Json:
        entry.heard.extend(hosts)
        return {}

    monkeypatch.setattr(lab, "ask_all", ask_all)
    monkeypatch.setattr(lab, "entry", lambda *_: entry)
    assert cli.main([*words.split(), *(["--dry-run"] if dry else [])]) == 0
    told = capsys.readouterr()
    assert entry.heard[words.count(JOB) or 1 :] == asked and told.out
    assert ("gpu1: its disk is full" in told.err) is not dry


def test_jobs_and_show_name_the_host_that_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {
        "id": JOB, "name": "otter", "state": "started", "host": "gpu9", "queue": "default", "gpus": [], "why": "",
        "at": 1.0, "attempt": 1, "silent": DAYS,
    }  # fmt: skip
    told = said(monkeypatch, capsys, ["jobs"], jobs={"jobs": [job]})
    assert "running" in told and told.endswith("gpu9 has been silent for 3d\n")
    spec = {"work": {"image": ""}, "command": ["true"], "resources": {}, "provenance": {}}
    reply = {"job": job, "spec": spec, "folder": "/x", "progress": "", "waits": {}, "events": [], "silent": DAYS}
    assert "host:      gpu9, silent for 3d\n" in said(monkeypatch, capsys, ["show", JOB], show=reply)


def test_status_shows_a_silent_host_once_and_not_where_it_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"id": JOB, "name": "train", "owner": "ann", "queue": "default", "gpus": [], "since": 1.0}
    base = {"driver": "none", "gpus": [], "load": [0.0], "cpus": 2, "sessions": [], "jobs": [], "queues": []}
    silent = [{"host": name, "silent": DAYS, "jobs": [run]} for name in ("gpu9", "gpu2")]
    later = [{**host, "silent": DAYS + 9} for host in silent]
    replies = {
        "one": {**base, "host": "gpu1", "silent": later}, "two": {**base, "host": "gpu2", "silent": silent},
        "three": errors.Unreachable("three: no route"),
    }  # fmt: skip
    monkeypatch.setattr(status, "ask_all", lambda *_: replies)
    assert cli.main(["status", *replies]) == 4  # one that was named was not reached
    told = capsys.readouterr().out
    assert told.count("unreachable, silent for 3d") == 1
    assert f"gpu9  unreachable, silent for 3d\njob train  {JOB}" in told
