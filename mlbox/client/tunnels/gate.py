"""Who may speak to a service that has no password of its own.

code-server runs without authentication behind its 0700 socket on the host. On the laptop it is a TCP port,
which any web page, and on a Mac its other users, can reach. So each connection's first request must carry
a cookie, which is handed out for the token in the printed URL:
  GET /?folder=/w&tkn=TOKEN   -> 302 to /?folder=/w with Set-Cookie: mlbox-ID=TOKEN
  Cookie: mlbox-ID=TOKEN      -> passed on, byte for byte
  anything else               -> 403
Host must name this machine (DNS rebinding), and a WebSocket's Origin must be the Host (cookies know no
ports, so a page on another local port would bring ours along).
Assumed: HTTP/1 without TLS, and browsers that pool connections by host, port and top-level site. Later
requests on a connection that was let in are not looked at. A head that came whole, as nearly all do, and may pass is
only peeked at, so that the connection can be handed on as it is. Any other is read: closing a socket with unread bytes
sends a reset that destroys the reply, and nothing portable sleeps until "more than peeked".
"""

from __future__ import annotations

import contextlib
import hmac
import re
import socket
import time
from dataclasses import dataclass

HEAD_LIMIT = 64 * 1024  # bytes
HEAD_TIMEOUT = 10.0  # seconds
_END = b"\r\n\r\n"
_REQUEST = re.compile(rb"([A-Z]+) (/[\x21-\x7e\x80-\xff]*) HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_HOST = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_PAGE = (
    b"mlbox: this page needs its key.\n\n"
    b"Open the URL that `mlbox session` printed; `mlbox session attach` prints it again.\n"
)


@dataclass(frozen=True)
class Key:
    """What opens a session's gate. The token never appears in repr()."""

    session_id: str
    token: str

    def __repr__(self) -> str:
        return f"Key(session_id={self.session_id!r}, token='***')"


@dataclass(frozen=True)
class Verdict:
    """Pass the request on, or answer `reply` and close."""

    allowed: bool
    reply: bytes = b""


def judge(head: bytes, key: Key) -> Verdict:
    """Decide on a request head (to the empty line). Pure. What can't be understood is refused."""
    lines = head.split(_END, 1)[0].split(b"\r\n")
    request = _REQUEST.fullmatch(lines[0])
    headers = _headers(lines[1:])
    if request is None or headers is None or not _local(headers):
        return _forbidden()
    method, target = request.group(1), request.group(2)
    token, rest = _take_token(target)
    if method in (b"GET", b"HEAD") and token is not None and _same(token, key.token):
        return Verdict(False, _redirect(rest, key))
    return Verdict(True) if _has_cookie(headers, key) else _forbidden()


def read_head(conn: socket.socket, timeout: float = HEAD_TIMEOUT) -> bytes | None:
    """Read to (at least) the end of the first head; the caller passes on all that was read.

    None if it doesn't come within `timeout` seconds, is longer than HEAD_LIMIT, or the client hangs up.
    """
    deadline = time.monotonic() + timeout
    data = bytearray()
    try:
        while len(data) < HEAD_LIMIT:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            conn.settimeout(left)
            piece = conn.recv(HEAD_LIMIT - len(data))
            if not piece:
                return None
            start = max(0, len(data) - len(_END) + 1)
            data += piece
            if data.find(_END, start) >= 0:
                return bytes(data)
        return None
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            conn.settimeout(None)


def admit(conn: socket.socket, key: Key) -> bytes | None:
    """The bytes to pass on first if it may go on, none where its head came in one piece: that is still to be read from
    it. None if it was answered here, and the caller closes it."""
    peeked = _peek(conn)
    if _END in peeked and judge(peeked, key).allowed:
        return b""
    head = read_head(conn) if peeked else None
    verdict = judge(head, key) if head is not None else _forbidden()
    if verdict.allowed:
        return head
    with contextlib.suppress(OSError):
        conn.sendall(verdict.reply)
        conn.shutdown(socket.SHUT_WR)
        conn.settimeout(1.0)
        conn.recv(HEAD_LIMIT)  # until the client has closed: closing first may reset, and lose the reply
    return None


def _peek(conn: socket.socket) -> bytes:
    """What has come, once anything has."""
    try:
        conn.settimeout(HEAD_TIMEOUT)
        return conn.recv(HEAD_LIMIT, socket.MSG_PEEK)
    except OSError:
        return b""
    finally:
        with contextlib.suppress(OSError):
            conn.settimeout(None)


def _headers(lines: list[bytes]) -> list[tuple[bytes, bytes]] | None:
    found = []
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None or re.search(rb"[\r\n\0]", line):
            return None
        found.append((match.group(1).lower(), match.group(2)))
    return found


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _local(headers: list[tuple[bytes, bytes]]) -> bool:
    hosts = _values(headers, b"host")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        return False
    if not _values(headers, b"upgrade"):
        return True
    return all(origin.lower() == b"http://" + hosts[0].lower() for origin in _values(headers, b"origin"))


def _take_token(target: bytes) -> tuple[bytes | None, bytes]:
    """(value of the first tkn, the target without any tkn). The rest of the query stays as it was written."""
    path, mark, query = target.partition(b"?")
    parts = query.split(b"&") if mark else []
    tokens = [part[len(b"tkn=") :] for part in parts if part.startswith(b"tkn=")]
    kept = b"&".join(part for part in parts if not part.startswith(b"tkn="))
    path = b"/" + path.lstrip(b"/\\")  # `//elsewhere` would be another site
    return (tokens[0] if tokens else None), path + (b"?" + kept if kept else b"")


def _has_cookie(headers: list[tuple[bytes, bytes]], key: Key) -> bool:
    name = b"mlbox-" + key.session_id.encode()
    good = False
    for line in _values(headers, b"cookie"):
        for pair in line.split(b";"):
            found, _, value = pair.strip().partition(b"=")
            good |= found == name and _same(value, key.token)
    return good


def _same(given: bytes, token: str) -> bool:
    return bool(token) and hmac.compare_digest(given, token.encode())


def _redirect(location: bytes, key: Key) -> bytes:
    cookie = f"mlbox-{key.session_id}={key.token}; HttpOnly; SameSite=Lax; Path=/".encode()
    return _reply(b"302 Found", b"Location: " + location + b"\r\nSet-Cookie: " + cookie + b"\r\n", b"")


def _forbidden() -> Verdict:
    return Verdict(False, _reply(b"403 Forbidden", b"Content-Type: text/plain; charset=utf-8\r\n", _PAGE))


def _reply(status: bytes, headers: bytes, body: bytes) -> bytes:
    fixed = b"Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n"
    length = b"Content-Length: " + str(len(body)).encode() + b"\r\n"
    return b"HTTP/1.1 " + status + b"\r\n" + headers + fixed + length + b"\r\n" + body
