"""The cheapest HTTP client over a UNIX socket, kept alive: what it costs itself is the same for all arms."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from vmm.unix_socket import address_of

LIMIT_S = 60.0


class HttpError(Exception):
    """A status that was not expected."""


def request_bytes(method: str, path: str, body: object = None) -> bytes:
    """A whole request."""
    content = b"" if body is None else msgspec.json.encode(body)
    length = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
    return f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{length}\r\n".encode() + content


class Connection:
    """One kept-alive connection; usable blocking (:meth:`call`) or driven by :func:`exchange_all`."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT_S)
        with address_of(path) as address:  # directories of instances may have longer names than an address takes
            self.socket.connect(address)
        self._buffer = b""

    def send(self, request: bytes) -> None:
        """Send a request."""
        self.socket.sendall(request)

    def receive(self) -> tuple[int, bytes] | None:
        """Read once; status and body if the reply is complete. Raises HttpError for a connection that was closed."""
        chunk = self.socket.recv(1 << 16)
        if not chunk:
            raise HttpError("the connection was closed")
        self._buffer += chunk
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return None
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) < length:
            return None
        self._buffer = rest[length:]
        return int(head[9:12]), rest[:length]

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send and wait for the reply."""
        self.send(request)
        while (reply := self.receive()) is None:
            pass
        return reply

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The decoded reply. Raises HttpError unless it is a success."""
        status, content = self.exchange(request_bytes(method, path, body))
        if status >= 300:
            raise HttpError(f"{method} {path}: {status} {content.decode(errors='replace')[:500]}")
        return json.loads(content) if content else None

    def close(self) -> None:
        """Close it."""
        self.socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def exchange_all(
    connections: list[Connection], next_request: Callable[[int], bytes | None]
) -> tuple[list[float], list[tuple[int, bytes]]]:
    """Keep one request under way on every connection until ``next_request`` (given a connection's number) has no more.

    Returns the milliseconds of each exchange, and the replies, in the order in which they came.
    """
    times_ms: list[float] = []
    replies: list[tuple[int, bytes]] = []
    began: dict[int, float] = {}
    with selectors.EpollSelector() as selector:

        def proceed(number: int) -> None:
            request = next_request(number)
            if request is None:
                selector.unregister(connections[number].socket)
                del began[number]
                return
            began[number] = time.perf_counter()
            connections[number].send(request)

        for number, connection in enumerate(connections):
            selector.register(connection.socket, selectors.EVENT_READ, number)
            began[number] = 0.0
        for number in range(len(connections)):
            proceed(number)
        while began:
            ready = selector.select(LIMIT_S)
            if not ready:
                raise HttpError(f"{len(began)} requests have no reply after {LIMIT_S:g} s")
            for key, _ in ready:
                reply = connections[key.data].receive()
                if reply is not None:
                    times_ms.append((time.perf_counter() - began[key.data]) * 1000)
                    replies.append(reply)
                    proceed(key.data)
    return times_ms, replies
