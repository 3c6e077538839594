"""How far a pull is, from lines as the engines printed them on a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlbox.core.pull import Pull

A, B = "3f2a00bc91de", "59bf1c3509f3"


def heard(*lines: str, each: float = 1.0) -> Pull:
    pull = Pull()
    for number, line in enumerate(lines):
        pull.hear(line, 100 + number * each)
    return pull


def test_docker() -> None:
    pull = heard(f"{A}: Pulling fs layer", f"{B}: Pulling fs layer", f"{B}: Waiting")
    assert pull.said(103) == "0 of 2 layers"
    pull.hear(f"\x1b[2A\x1b[2K\r{A}: Downloading [==>      ]  10.5MB/40MB\x1b[2B", 104)
    assert pull.said(104) == "0 of 2 layers, 10 MB"  # of the other nothing is known yet
    pull.hear(f"{B}: Downloading [>      ]  500kB/10MB", 104)
    assert pull.said(105) == "0 of 2 layers, 11 of 50 MB"
    assert pull.said(115) == "0 of 2 layers, 11 of 50 MB, 39 s left"
    assert pull.said(204) == "0 of 2 layers, 11 of 50 MB, 6 min left"
    pull.hear(f"{A}: Pull complete", 120)
    pull.hear(f"{B}: Already exists", 120)
    assert pull.said(121) == "2 of 2 layers, 50 of 50 MB"


def test_podman() -> None:
    pull = heard(
        f"Copying blob {A} [==>---] 12.0MiB / 24.0MiB | 10.2 MiB/s",
        f"Copying blob {B} skipped: already exists  ",
        f"\x1b[2A\x1b[JCopying blob {A} [===>--] 18.0MiB / 24.0MiB | 1 MiB/s\nCopying blob {B} skipped: already exists",
    )
    assert pull.said(110) == "1 of 2 layers, 18 of 24 MB, 3 s left"
    pull.hear(f"Copying blob {A} done   | ", 111)
    assert pull.said(112) == "2 of 2 layers, 24 of 24 MB"


def test_what_says_nothing_of_layers_changes_nothing() -> None:
    pull = Pull()
    for line in ("1: Pulling from lab/python", "Digest: sha256:ab", "Writing manifest to image destination", ""):
        assert not pull.hear(line, 1)
    assert pull.said(2) == ""


@given(st.text(), st.floats(0, 1e9))
def test_no_line_breaks_it(line: str, now: float) -> None:
    pull = heard(f"{A}: Downloading [>]  1MB/4MB")
    for text in (line, f"{A}: Downloading {line}MB/4MB", f"Copying blob {A} {line}MiB / 1..2MiB"):
        pull.hear(text, now)
        pull.said(now)
