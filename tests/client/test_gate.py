from __future__ import annotations

import socket
import threading
from typing import cast

import pytest

from mlbox.client.tunnels.gate import HEAD_LIMIT, Key, admit, judge, read_head

KEY = Key("kind-otter", "s3cret")
GOOD = "Cookie: mlbox-kind-otter=s3cret"


def head(line: str, *headers: str, host: str = "localhost:8898") -> bytes:
    return "\r\n".join((line, f"Host: {host}", *headers, "", "")).encode()


ALLOWED = {
    "cookie": head("GET / HTTP/1.1", GOOD),
    "cookie among others": head("GET / HTTP/1.1", "Cookie: a=b; mlbox-kind-otter=s3cret; c=d"),
    "second cookie header": head("GET / HTTP/1.1", "Cookie: a=b", GOOD),
    "stale cookie first": head("GET / HTTP/1.1", "Cookie: mlbox-kind-otter=old; mlbox-kind-otter=s3cret"),
    "header names have no case": head("GET / HTTP/1.1", GOOD.replace("Cookie", "cOOKIE")),
    "post": head("POST /x HTTP/1.1", GOOD),
    "wrong tkn but right cookie": head("GET /?tkn=no HTTP/1.1", GOOD),
    "127.0.0.1": head("GET / HTTP/1.1", GOOD, host="127.0.0.1:8898"),
    "::1": head("GET / HTTP/1.1", GOOD, host="[::1]:8898"),
    "no port, capitals": head("GET / HTTP/1.1", GOOD, host="LocalHost"),
    "own websocket": head("GET /s HTTP/1.1", GOOD, "Upgrade: websocket", "Origin: http://localhost:8898"),
    "websocket of a program": head("GET /s HTTP/1.1", GOOD, "Upgrade: websocket"),
    "body bytes after the head": head("POST / HTTP/1.1", GOOD) + b"\r\n\r\nwhat ever",
}
FORBIDDEN = {
    "nothing": head("GET / HTTP/1.1"),
    "wrong cookie": head("GET / HTTP/1.1", "Cookie: mlbox-kind-otter=s3cre"),
    "empty cookie": head("GET / HTTP/1.1", "Cookie: mlbox-kind-otter="),
    "another session's cookie": head("GET / HTTP/1.1", "Cookie: mlbox-calm-fox=s3cret"),
    "wrong tkn": head("GET /?tkn=s3cre HTTP/1.1"),
    "empty tkn": head("GET /?tkn= HTTP/1.1"),
    "tkn in the path": head("GET /tkn=s3cret HTTP/1.1"),
    "tkn as another's end": head("GET /?xtkn=s3cret HTTP/1.1"),
    "tkn with post": head("POST /?tkn=s3cret HTTP/1.1"),
    "cookie in the body": head("GET / HTTP/1.1") + GOOD.encode() + b"\r\n\r\n",
    "rebound host": head("GET / HTTP/1.1", GOOD, host="evil.example:8898"),
    "host that begins well": head("GET / HTTP/1.1", GOOD, host="localhost.evil.example"),
    "host with user part": head("GET / HTTP/1.1", GOOD, host="localhost@evil.example"),
    "rebound host with tkn": head("GET /?tkn=s3cret HTTP/1.1", host="evil.example"),
    "two hosts": head("GET / HTTP/1.1", GOOD, "Host: evil.example"),
    "no host": f"GET / HTTP/1.1\r\n{GOOD}\r\n\r\n".encode(),
    "foreign websocket": head("GET /s HTTP/1.1", GOOD, "Upgrade: websocket", "Origin: http://localhost:1"),
    "sandboxed websocket": head("GET /s HTTP/1.1", GOOD, "Upgrade: websocket", "Origin: null"),
    "absolute target": head("GET http://localhost/ HTTP/1.1", GOOD),
    "http 0.9": b"GET /\r\n\r\n",
    "http 2": head("PRI * HTTP/2.0", GOOD),
    "folded header": head("GET / HTTP/1.1", "X: y", " " + GOOD),
    "space before the colon": head("GET / HTTP/1.1", "Cookie : mlbox-kind-otter=s3cret"),
    "bare line feed": head("GET / HTTP/1.1", "X: y\n" + GOOD),
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "empty": b"",
}
REDIRECTS = {
    "/?tkn=s3cret": "/",
    "/?folder=/w%20s&tkn=s3cret": "/?folder=/w%20s",
    "/a/b?tkn=s3cret&x=1&y": "/a/b?x=1&y",
    "/?tkn=s3cret&tkn=other": "/",
    "//evil.example/?tkn=s3cret": "/evil.example/",
    "/\\evil.example/?tkn=s3cret": "/evil.example/",
}


@pytest.mark.parametrize("request_head", ALLOWED.values(), ids=ALLOWED.keys())
def test_allowed(request_head: bytes) -> None:
    assert judge(request_head, KEY).allowed


@pytest.mark.parametrize("request_head", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_forbidden(request_head: bytes) -> None:
    verdict = judge(request_head, KEY)
    assert not verdict.allowed
    assert verdict.reply.startswith(b"HTTP/1.1 403 ")
    assert b"mlbox session attach" in verdict.reply
    assert b"s3cret" not in verdict.reply


@pytest.mark.parametrize(("target", "location"), REDIRECTS.items())
def test_the_printed_url_becomes_a_cookie(target: str, location: str) -> None:
    lines = judge(head(f"GET {target} HTTP/1.1"), KEY).reply.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 302 Found"
    assert f"Location: {location}" in lines
    assert "Set-Cookie: mlbox-kind-otter=s3cret; HttpOnly; SameSite=Lax; Path=/" in lines
    assert "Connection: close" in lines


def test_an_empty_token_opens_nothing() -> None:
    empty = Key("kind-otter", "")
    assert not judge(head("GET / HTTP/1.1", "Cookie: mlbox-kind-otter="), empty).allowed
    assert b" 403 " in judge(head("GET /?tkn= HTTP/1.1"), empty).reply


def test_the_token_is_not_printed() -> None:
    assert "s3cret" not in repr(KEY)


def test_a_head_in_pieces_with_what_follows() -> None:
    pieces = [b"GET / HT", b"TP/1.1\r", b"\nHost: localhost\r\n\r", b"\nbody"]

    class Arriving:
        def settimeout(self, seconds: float | None) -> None:
            assert seconds is None or seconds > 0

        def recv(self, size: int) -> bytes:
            return pieces.pop(0)

    got = read_head(cast(socket.socket, Arriving()), timeout=20)
    assert got == b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nbody"
    assert pieces == []


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"], ids=["empty", "cut short"])
def test_a_client_that_hangs_up(data: bytes) -> None:
    near, browser = socket.socketpair()
    with near:
        browser.sendall(data)
        browser.close()
        assert read_head(near, timeout=20) is None


def test_a_client_that_says_nothing() -> None:
    near, browser = socket.socketpair()
    with near, browser:
        browser.sendall(b"GET /")
        assert read_head(near, timeout=0.05) is None
        assert near.gettimeout() is None


def test_a_head_without_end_is_refused() -> None:
    near, browser = socket.socketpair()
    with near, browser:
        sender = threading.Thread(target=lambda: browser.sendall(b"x" * HEAD_LIMIT))
        sender.start()
        assert read_head(near, timeout=20) is None
        sender.join()


def test_a_refused_client_gets_the_page_and_the_end() -> None:
    near, browser = socket.socketpair()
    with browser:
        browser.sendall(head("GET / HTTP/1.1"))
        browser.shutdown(socket.SHUT_WR)
        with near:
            assert admit(near, KEY) is None
        reply = b"".join(iter(lambda: browser.recv(4096), b""))
        assert reply.startswith(b"HTTP/1.1 403 ")


def test_a_head_that_came_whole_and_may_pass_is_left_to_be_read() -> None:
    near, browser = socket.socketpair()
    with near, browser:
        whole = head("GET / HTTP/1.1", f"Cookie: mlbox-{KEY.session_id}={KEY.token}") + b"and more"
        browser.sendall(whole)
        assert admit(near, KEY) == b""
        assert near.gettimeout() is None
        assert near.recv(HEAD_LIMIT) == whole


def test_a_head_that_comes_in_pieces_is_passed_on_as_it_was_read() -> None:
    near, browser = socket.socketpair()
    with near, browser:
        whole = head("GET / HTTP/1.1", f"Cookie: mlbox-{KEY.session_id}={KEY.token}")
        browser.sendall(whole[:20])

        class Watched(socket.socket):
            """The rest comes once somebody has looked at the beginning."""

            def recv(self, size: int, flags: int = 0) -> bytes:
                found = super().recv(size, flags)
                if flags == socket.MSG_PEEK:
                    browser.sendall(whole[20:])
                return found

        with Watched(fileno=near.detach()) as watched:
            assert admit(watched, KEY) == whole
