"""Job ids as people type them."""

from __future__ import annotations

from mlbox.core import ids


def test_part_of_one_that_stands_for_it() -> None:
    """One letter was enough once: all that were made in these years begin with it."""
    one = "01KB6GXVQ2ABCDEFGHJKMNPQR7"
    assert all(ids.is_part(part, one) for part in (one, "QR7", "qr7", "01KB6GXV", "01kb6gxvq2"))
    assert not any(ids.is_part(part, one) for part in ("", "0", "7", "01K", "01KB6GX", "R7", "XYZ", "01KB6GXW"))
