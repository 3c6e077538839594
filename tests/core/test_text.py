"""Words for people, and ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbox.core import ids, text

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("plain text, ünï¢ode 漢字 🦦", "plain text, ünï¢ode 漢字 🦦"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("\x1b[31mred\x1b[0m", "�[31mred�[0m"),
        ("\x1b]0;title\x07", "�]0;title�"),
        ("\x9b31m", "�31m"),
        ("\x00\x08\x7f", "���"),
        ("a\u200bb\ufeff", "a�b�"),
        ("\u2028\u2029", "��"),
        (BIDI, "�" * len(BIDI)),
        ("\ud800", "�"),
    ],
    ids=["plain", "tab and line", "carriage returns", "colour", "title", "8-bit CSI", "control", "zero width",
         "separators", "bidi", "surrogate"],
)  # fmt: skip
def test_safe(given_: str, shown: str) -> None:
    assert text.safe(given_) == shown


@given(st.text())
def test_safe_text_is_harmless_and_stays_so(given_: str) -> None:
    shown = text.safe(given_)
    assert not any(c in shown for c in "\x1b\x9b\x07\r" + BIDI)
    assert text.safe(shown) == shown
    shown.encode()  # can be printed


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0s"), (0, "0s"), (5.9, "5s"), (60, "1m"), (200, "3m 20s"), (3600, "1h"), (7500, "2h 5m"), (86399, "23h 59m"),
     (86400, "1d"), (349200, "4d 1h"), (90061, "1d 1h")],
)  # fmt: skip
def test_duration(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


@pytest.mark.parametrize(
    ("mib", "words"), [(0, "0 MiB"), (512, "512 MiB"), (1023, "1023 MiB"), (1024, "1 GiB"), (24564, "24 GiB")]
)
def test_mebibytes(mib: float, words: str) -> None:
    assert text.mebibytes(mib) == words


def test_counts_and_masks() -> None:
    assert [text.count(n, "GPU") for n in (0, 1, 2)] == ["0 GPUs", "1 GPU", "2 GPUs"]
    assert (text.mask("s3cret"), text.mask("")) == ("***", "")


@pytest.mark.parametrize("name", ["a", "kind-otter", "gpu1", "0", "a" * 40, "a--b"])
def test_names(name: str) -> None:
    assert text.is_name(name)


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a.b", "a_b", "a b", "a/b", "..", "a\n", "a" * 41, "é", "a*"], ids=repr
)
def test_no_names(name: str) -> None:
    assert not text.is_name(name)


@given(st.integers(min_value=0))
def test_pet_names_are_names(number: int) -> None:
    assert text.is_name(text.pet_name(number))


@pytest.mark.parametrize(
    ("wanted", "like"),
    [("ResNet_50 lr3e-4", ": resnet-50-lr3e-4"), ("a" * 39 + "_b", ": " + "a" * 39), ("--", ""), ("", ""), ("ü", "")],
)
def test_a_name_that_would_do_is_offered(wanted: str, like: str) -> None:
    assert text.name_hint(wanted) == "use a-z, 0-9 and '-', at most 40 characters" + like
    assert not like or text.is_name(like[2:])


def test_pet_names_differ() -> None:
    assert len({text.pet_name(n) for n in range(3000)}) == 3000


# ---- ids -----------------------------------------------------------------------------------------

_TIME, _BYTES = st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10)


@given(_TIME, _BYTES, _TIME, _BYTES)
def test_ids_sort_by_time(a: int, noise_a: bytes, b: int, noise_b: bytes) -> None:
    first, second = ids.ulid(a, noise_a), ids.ulid(b, noise_b)
    assert ((a, noise_a) < (b, noise_b)) == (first < second)
    assert ids.is_ulid(first) and len(first) == 26


def test_a_known_id() -> None:
    """The example of the ULID specification's own time: 1469918176385 is 01ARYZ6S41."""
    assert ids.ulid(1469918176385, b"\0" * 10) == "01ARYZ6S41" + "0" * 16
    assert ids.ulid(0, b"\xff" * 10) == "0" * 10 + "Z" * 16


@pytest.mark.parametrize("size", [0, 9, 11])
def test_ids_take_ten_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="10 bytes"):
        ids.ulid(0, b"x" * size)


@pytest.mark.parametrize(
    "text_",
    ["", "0" * 25, "0" * 27, "8" + "0" * 25, "I" + "0" * 25, "0" * 25 + "U", "0" * 25 + "a", "0" * 26 + "\n",
     "../" + "0" * 23],
    ids=repr,
)  # fmt: skip
def test_no_ids(text_: str) -> None:
    assert not ids.is_ulid(text_)


def test_shards_come_from_the_random_end() -> None:
    assert ids.shard("01ARYZ6S41TSV4RRFFQ69G5FAV") == "av"
    assert len({ids.shard(ids.ulid(0, n.to_bytes(10, "big"))) for n in range(2000)}) == 1024


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("git+https://ada:s3cret@git.lab/x.git", "git+https://***@git.lab/x.git"),
        (
            "--extra-index-url http://t0ken@pypi.lab/simple\ntorch",
            "--extra-index-url http://***@pypi.lab/simple\ntorch",
        ),
        ("git+ssh://git@git.lab/x.git", "git+ssh://git@git.lab/x.git"),
        ("x @ git+ssh://ada:s3cret@git.lab/x", "x @ git+ssh://***@git.lab/x"),
        ("https://ada:p@ss@git.lab/x", "https://***@git.lab/x"),
        ("https://git.lab/a@b/x.whl", "https://git.lab/a@b/x.whl"),
        ("torch @ https://git.lab/x.whl", "torch @ https://git.lab/x.whl"),
    ],
)
def test_credentials_of_urls_are_masked(given: str, shown: str) -> None:
    assert text.without_credentials(given) == shown
