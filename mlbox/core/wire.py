"""The boundary between the laptop and a host: one JSON request in, JSON lines out.

    laptop -> host   stdin:   one line  {"mlbox": 1, "verb": …, "nonce": …, "args": {…}}
                              then nothing; end-of-file before the reply means "the caller has gone"
    host -> laptop   stdout:  lines     @mlbox:<nonce> {"progress": {…}}      any number; at first an empty one
                              last      @mlbox:<nonce> {"reply": {…}} or {"error": {…}}

The nonce is chosen by the caller for each request, so no login banner, .bashrc or MOTD can be mistaken
for a reply. A refusal is a reply; a non-zero exit without one is a broken transport or a bug.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mlbox import errors

PROTOCOL = 1
MAX_REQUEST = 64 * 1024 * 1024  # bytes; requirements, scripts and .vsix files travel inside a request
_PREFIX = b"@mlbox:"

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One call; the reply's lines carry its nonce."""

    verb: str
    args: Json = field(default_factory=dict)
    nonce: str = "0"

    def encode(self) -> bytes:
        document = {"mlbox": PROTOCOL, "verb": self.verb, "nonce": self.nonce, "args": self.args}
        return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises errors.Usage on anything but a request of this protocol."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise errors.Usage(f"this is not a request of mlbox: {error}") from None
    if not isinstance(document, dict) or document.get("mlbox") != PROTOCOL:
        raise errors.Usage(
            f"this request is not of protocol {PROTOCOL}", "both ends must run the same mlbox; connect again"
        )
    verb, args, nonce = document.get("verb"), document.get("args", {}), document.get("nonce", "0")
    if not (isinstance(verb, str) and isinstance(args, dict) and isinstance(nonce, str)):
        raise errors.Usage("a request needs a verb, args and a nonce")
    return Request(verb, args, nonce)


def encode_message(nonce: str, message: Json) -> bytes:
    """One line; it opens with a line break because noise before it may have ended without one."""
    return b"\n" + _PREFIX + nonce.encode() + b" " + json.dumps(message, separators=(",", ":")).encode() + b"\n"


def encode_error(error: errors.MlboxError) -> Json:
    return {"error": {"kind": error.kind, "message": error.message, "hint": error.hint}}


def decode_error(document: Json) -> errors.MlboxError:
    return errors.from_kind(
        str(document.get("kind", "failed")), str(document.get("message", "")), str(document.get("hint", ""))
    )


class MessageReader:
    """Picks the messages of one nonce out of a byte stream; what else comes by is kept as `noise`."""

    def __init__(self, nonce: str) -> None:
        self._mark = _PREFIX + nonce.encode() + b" "
        self._rest = b""
        self.noise = b""

    def feed(self, data: bytes) -> Iterator[Json]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(self._mark):
                yield json.loads(line[len(self._mark) :])
            elif line.strip():
                self.noise = (self.noise + line + b"\n")[-4096:]
