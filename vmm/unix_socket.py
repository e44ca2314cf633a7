"""UNIX sockets by path, whatever the length of the path.

A socket address holds 107 bytes of path, and run directories of users, CI jobs and tests are longer than one thinks:
a long path is reached through a descriptor of its directory.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ADDRESS_BYTES = 107
_BACKLOG = 16


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """An address of ``path`` that fits, valid within the context."""
    if len(os.fsencode(path)) <= _ADDRESS_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path`` (mode 0600), to be handed to a child; raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), 0o600)  # before bind: the file never has another mode
        with address_of(path) as address:
            listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the socket at ``path``; raises OSError."""
    connection = connected(path)
    try:
        return await asyncio.open_unix_connection(sock=connection)
    except BaseException:
        connection.close()
        raise


def connected(path: Path) -> socket.socket:
    """A non-blocking socket that is connected to the one at ``path``; raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)  # connecting to a UNIX socket is done at once, or fails
        with address_of(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection
