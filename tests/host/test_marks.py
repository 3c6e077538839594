"""A word about a queue or a host is its author's to take back; who else tries is told whose it is."""

from __future__ import annotations

import os

import pytest
from queuebox import Box
from users import let_in, nobody

from mlbox import errors
from mlbox.host.handlers import host, queue

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")


def by_ann(box: Box, folder: str, name: str) -> None:
    let_in(box.root)
    (box.root / folder).mkdir(mode=0o1777)
    (box.root / folder).chmod(0o1777)
    path = box.root / folder / name
    path.write_text('{"by": "ann"}')
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize("do", ["pause", "resume"])
def test_another_s_pause(box: Box, do: str) -> None:
    by_ann(box, "paused", "default")
    for dry in (True, False):
        with nobody(), pytest.raises(errors.Refused) as refused:
            box.call(queue, do=do, queue="default", dry_run=dry)
    hint = f"only ann or root, whose folder {box.root}/paused is, can resume it"
    assert (refused.value.message, refused.value.hint) == ("default was paused by ann", hint)
    assert [row["paused"] for row in box.call(queue)["queues"]] == ["ann"]
    box.call(queue, do="resume", queue="default")  # the folder's owner


def test_another_s_drain(box: Box) -> None:
    by_ann(box, "drained", box.found.host)
    for dry in (True, False):
        with nobody(), pytest.raises(errors.Refused, match="was drained by ann"):
            box.call(host, do="resume", name=box.found.host, dry_run=dry)


@pytest.mark.parametrize("do", ["drain", "resume", "fence", "remove"])
def test_no_name_is_not_the_host_that_is_asked(box: Box, do: str) -> None:
    """`mlbox host drain "$HOST"` of a script that has not set it."""
    with pytest.raises(errors.Usage, match="'' can't be a host's name"):
        box.call(host, do=do, name="")
    assert not (box.root / "drained" / box.found.host).exists()


def test_a_host_that_is_none_can_t_be_resumed(box: Box) -> None:
    with pytest.raises(errors.NotFound, match="no host gpu99"):
        box.call(host, do="resume", name="gpu99")


def test_a_host_that_another_has_drained_can_be_fenced(box: Box) -> None:
    by_ann(box, "drained", "gpu9")
    box.found.on("gpu9").mkdir(parents=True)
    with nobody():
        assert box.call(host, do="fence", name="gpu9")["requeued"] == []


def test_one_s_own(box: Box) -> None:
    assert [row["paused"] for row in box.call(queue, do="pause", queue="default")["queues"]] == [box.found.user]
    assert [row["paused"] for row in box.call(queue, do="resume", queue="default")["queues"]] == [""]
    assert box.call(host, do="drain", name=box.found.host)["drained"]
    assert not box.call(host, do="resume", name=box.found.host)["drained"]
