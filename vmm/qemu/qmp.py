"""QMP, the protocol of QEMU's control connection: one JSON object a line, commands with an id, replies that bear it.

No client library: QEMU reads its commands byte by byte at some microseconds each, so that an id of many characters is
felt in the time of a claim; and a host has thousands of these connections, which should cost a buffer each and no task.
What the process sends is bounded and distrusted like any other input: it may be in the hands of a guest.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgspec

from spec.decoding import NotDecodable, from_json

_MAX_LINE_BYTES: Final = 4 << 20
"""The description of a machine with many disks is some hundred kilobytes."""
_MAX_REASON_CHARACTERS: Final = 200

Event = Mapping[str, Any]


class QmpBroken(Exception):
    """The connection was closed, or what came over it is no QMP: nothing can be asked over it any more."""


class QmpRefused(Exception):
    """QEMU answers a command with an error, whose description this is."""


class Qmp(asyncio.Protocol):
    """The protocol of one connection; each event goes to ``on_event``, where it arrives."""

    def __init__(self, on_event: Callable[[str, Event], None]) -> None:
        loop = asyncio.get_running_loop()
        self.greeting: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.lost = asyncio.Event()
        """The connection is closed, and every event has been seen."""
        self._on_event = on_event
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._ids = itertools.count(1)
        self._awaited: dict[int, asyncio.Future[Any]] = {}
        self._broken: QmpBroken | None = None

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """What a command returns. Raises QmpRefused, QmpBroken. One that is cancelled may be executed all the same."""
        if self._broken is not None or self._transport is None:
            raise self._broken or QmpBroken("there is no connection")
        number = next(self._ids)
        message: dict[str, object] = {"execute": command, "id": number}
        if arguments:
            message["arguments"] = arguments
        reply = self._awaited[number] = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(msgspec.json.encode(message))
            return await reply
        finally:
            del self._awaited[number]

    def close(self) -> None:
        """Close the connection when what was written has been sent; idempotent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection now; idempotent."""
        if self._transport is not None:
            self._transport.abort()

    # --- what the event loop calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # that of a stream socket; uvloop's is of no such class

    def connection_lost(self, error: Exception | None) -> None:
        """The end, whoever wanted it."""
        self._break(str(error) if error else "the connection was closed")
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        """Some bytes: lines, or pieces of them."""
        if self._broken is not None:
            return
        searched = len(self._received)
        self._received += data
        begin = 0
        while (end := self._received.find(b"\n", max(begin, searched))) >= 0:
            if not self._take(self._received[begin:end]):
                return
            begin = end + 1
        del self._received[:begin]
        if len(self._received) > _MAX_LINE_BYTES:
            self._garbage(f"a line of more than {_MAX_LINE_BYTES} bytes")

    # --- inside -----------------------------------------------------------------------------------------------------

    def _take(self, line: bytearray) -> bool:
        """One message; false if it is none."""
        try:
            message = from_json(line, dict[str, Any])
        except NotDecodable as error:
            return self._garbage(f"{bytes(line[:_MAX_REASON_CHARACTERS])!r} is no message: {error}")
        match message:
            case {"event": str(name)}:
                data = message.get("data")
                self._on_event(name, data if isinstance(data, dict) else {})
            case {"QMP": dict(greeting)} if not self.greeting.done():
                self.greeting.set_result(greeting)
            case {"return": result, "id": number}:
                self._answer(number, result)
            case {"error": {"desc": str(description)}, "id": number}:
                self._answer(number, QmpRefused(description))
            case _:  # also an error without an id, which is about bytes that were no command
                return self._garbage(f"an unknown message: {bytes(line[:_MAX_REASON_CHARACTERS])!r}")
        return True

    def _answer(self, number: object, answer: Any) -> None:
        """To whoever waits; nobody does for a command that was given up."""
        awaited = self._awaited.get(number) if isinstance(number, int) else None
        if awaited is None or awaited.done():
            return
        if isinstance(answer, QmpRefused):
            awaited.set_exception(answer)
        else:
            awaited.set_result(answer)

    def _garbage(self, reason: str) -> bool:
        self._break(reason)
        self.abort()
        return False

    def _break(self, reason: str) -> None:
        if self._broken is not None:
            return
        self._broken = QmpBroken(reason)
        self._received.clear()
        for each in (self.greeting, *self._awaited.values()):
            if not each.done():
                each.set_exception(self._broken)
        if self.greeting.done() and not self.greeting.cancelled():
            self.greeting.exception()  # whoever waited for it may have gone
