"""What `mlbox image prune` removes at a terminal: what it has shown, once that was agreed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mlbox import cli, errors
from mlbox.client import output, state
from mlbox.client.commands import image

DOWN = errors.Unreachable("gpu2: no answer")
OLD = {"kind": "layer", "name": "k1", "size": 5, "used": 0.0, "about": "", "stays": ""}


def reply(*removed: dict[str, Any]) -> dict[str, Any]:
    return {"removed": list(removed), "disks": []}


@pytest.mark.parametrize(
    ("first", "answer", "code", "pruned"),
    [
        (reply(OLD), "yes", 4, ["gpu1"]),  # nobody saw what gpu2 would remove
        (reply(OLD), "no", 130, None),
        (reply(), "yes", 4, None),  # nothing to ask about
    ],
)
def test_only_what_was_shown(
    first: dict[str, Any], answer: str, code: int, pruned: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    really: list[list[str]] = []

    def ask_all(hosts: Sequence[str], verb: str, args: object, config: state.Config) -> dict[str, Any]:
        if config.dry_run:
            return {"gpu1": first, "gpu2": DOWN}
        really.append(list(hosts))
        return {name: reply(OLD) for name in hosts}

    monkeypatch.setattr(image, "ask_all", ask_all)
    monkeypatch.setattr(output, "may_ask", lambda: True)
    monkeypatch.setattr(output, "ask", lambda *_: answer)
    assert cli.main(["image", "prune", "gpu1", "gpu2", "--all"]) == code
    assert really == ([] if pruned is None else [pruned])


def test_the_list_tells_of_images_that_are_not_mlbox_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"engine": "docker", "count": 14, "size": 62 * 10**9}
    told = {"things": [OLD], "others": [other], "disks": []}
    monkeypatch.setattr(image, "ask_all", lambda *_: {"gpu1": told})
    assert cli.main(["image", "list", "gpu1"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("docker: ")]
    assert "14 images that mlbox did not make, 62.0 GB" in line and "`docker images`" in line
