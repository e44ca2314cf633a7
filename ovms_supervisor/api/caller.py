"""Who calls: what the kernel says of the other end of a UNIX socket, or what TLS and a token have proved."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

_PEERCRED: Final = struct.Struct("3i")
_SO_PEERGROUPS: Final = 59
"""asm-generic/socket.h, Linux 4.13; Python has no name for it."""
_GROUPS_BYTES: Final = 1024
"""What Python asks for at most: 256 groups."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The other end of a connection, as it was when it connected."""

    principals: frozenset[str]
    """What roles are given to: ``uid:0``, ``gid:4``, ``cert:NAME``, ``token``."""
    described: dict[str, Any]
    """For the log."""


UNKNOWN: Final = Caller(frozenset(), {})


def caller_of(request: web.BaseRequest) -> Caller:
    """The caller of a request; UNKNOWN if its connection is gone already, or the kernel does not tell all of it."""
    transport = request.transport
    if transport is None:
        return UNKNOWN
    connected = transport.get_extra_info("socket")
    if connected is None or connected.family != socket.AF_UNIX:
        return _remote(transport.get_extra_info("peercert"), transport.get_extra_info("peername"))
    try:
        pid, uid, gid = _PEERCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
        groups = _groups(connected)
    except OSError:
        return UNKNOWN
    named = frozenset({f"uid:{uid}", f"gid:{gid}", *(f"gid:{each}" for each in groups)})
    return Caller(named, {"uid": uid, "pid": pid})


def _groups(connected: socket.socket) -> tuple[int, ...]:
    """The supplementary ones. Raises OSError, also if they are too many."""
    told = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    return struct.unpack(f"{len(told) // 4}I", told)


def _remote(certificate: dict[str, Any] | None, address: Any) -> Caller:
    where = str(address[0]) if isinstance(address, tuple) and address else "?"
    names = [value for part in (certificate or {}).get("subject", ()) for key, value in part if key == "commonName"]
    if not names:
        return Caller(frozenset({"token"}), {"address": where})
    return Caller(frozenset(f"cert:{name}" for name in names), {"address": where, "certificate": names[0]})
