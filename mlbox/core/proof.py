"""How a session's guest shows that it is the guest: by a key that it and its session's clients alone know. Pure."""

from __future__ import annotations

import hmac


def proof(key: str, nonce: str) -> str:
    """What answers a ping that brings `nonce` (guest/control.py)."""
    return hmac.new(key.encode(), nonce.encode(), "sha256").hexdigest()


def proves(said: object, key: str, nonce: str) -> bool:
    return isinstance(said, str) and said.isascii() and hmac.compare_digest(said, proof(key, nonce))
