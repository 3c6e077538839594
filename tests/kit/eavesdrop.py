"""Another user's ear: subscribes to whatever ZeroMQ publishes on 127.0.0.1, and prints what it hears.

Standard library only, for it runs where it may, as whom it may: `python3 -c EAR`. It prints `listening` once it has
greeted all who listen here, and ends with its stdin.
"""

from __future__ import annotations

EAR = r"""
import select, socket, sys
greeting = b"\xff" + bytes(8) + b"\x7f\3\0NULL" + bytes(48)
ready = b"\5READY\x0bSocket-Type\0\0\0\3SUB"
to_all = b"\0\1\1"
def listeners():
    for row in open("/proc/net/tcp").readlines()[1:]:
        address, state = row.split()[1], row.split()[3]
        if state == "0A":
            yield int(address.partition(":")[2], 16)
def exactly(ear, size):
    data = ear.recv(1)
    while data and len(data) < size:
        data += ear.recv(size - len(data))
    return data
def publishes(ear):
    ear.sendall(greeting)
    if exactly(ear, 1) != b"\xff" or len(exactly(ear, 63)) < 63:
        return False
    ear.sendall(b"\4" + bytes([len(ready)]) + ready)
    kind, size = exactly(ear, 2)
    ear.sendall(to_all)
    return b"PUB" in exactly(ear, size)
ears = []
for port in sorted(set(listeners())):
    ear = socket.socket()
    ear.settimeout(2)
    try:
        ear.connect(("127.0.0.1", port))
        ears += [ear] if publishes(ear) else []
    except (OSError, ValueError):
        pass
print("listening", flush=True)
while True:
    for heard in select.select([0, *ears], [], [])[0]:
        data = sys.stdin.buffer.read1(65536) if heard == 0 else heard.recv(65536)
        if heard == 0 and not data:
            sys.exit()
        if not data:
            ears.remove(heard)
        elif heard != 0:
            print(data, flush=True)
"""
