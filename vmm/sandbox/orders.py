"""What the launcher is told: one message for each VMM, as JSON. Standard library only, as both sides read it."""

from __future__ import annotations

import array
import json
import socket
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_BYTES = 128 << 10
"""Of one message: paths and arguments of one VMM take a few KiB."""

SHARED_BY_ALL = frozenset({"net", "ipc"})
"""Namespaces of the launcher, where it is root: empty, and one for all its VMMs. One each would take half a MiB a
machine for namespaces in which nothing is (measured on Linux 6.18). An ordinary user's are each VMM's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A program to start, and its confinement. Paths are absolute, and the same inside as outside.

    Descriptors travel beside the message: standard input, output and error, then those of ``fds`` in its order.
    """

    argv: list[str]
    environment: dict[str, str]
    fds: list[int]
    """The numbers that passed descriptors shall have in the program."""
    namespaces: list[str]
    """Of ``kernel.NAMESPACES``."""
    uid: int | None = None
    """User and group to become (we are root); None: stay who we are, in a user namespace."""
    programs: list[str] = field(default_factory=list)
    """Directories and files that may be read and executed; those that are not there are passed over."""
    read_only: list[str] = field(default_factory=list)
    writable: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    """By name in the module resource, soft and hard alike."""
    oom_score_adj: int = 0
    niceness: int | None = None
    """None: the launcher's."""
    landlock: bool = True
    strict: bool = False
    """A layer that cannot be had is an error, not a remark."""

    def form(self) -> Order:
        """What orders for machines of the same kind have in common: enough to prepare a process for any of them."""
        return Order(
            argv=[],
            environment={},
            fds=[],
            namespaces=self.namespaces,
            uid=self.uid and 0,
            programs=self.programs,
            devices=self.devices,
        )

    def encode(self) -> bytes:
        """The message."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, message: bytes) -> Order:
        """The order in a message of :meth:`encode`."""
        fields: dict[str, Any] = json.loads(message)
        return cls(**fields)


def receive(connection: socket.socket, most_fds: int) -> tuple[bytes, list[int]]:
    """One message and its descriptors, which are close-on-exec; an empty message when the other side is gone.

    ``socket.recv_fds`` would do if it heeded its flags (it does not in Python 3.11).
    """
    fds = array.array("i")
    message, ancillary, _, _ = connection.recvmsg(
        MAX_BYTES, socket.CMSG_SPACE(most_fds * fds.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return message, list(fds)
