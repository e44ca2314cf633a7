"""The protocol by itself: what is sent to a transport, and what is made of bytes however they arrive."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from vmm.qemu.qmp import Qmp, QmpBroken, QmpRefused

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


class Peer(asyncio.Transport):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


def conversation() -> tuple[Qmp, Peer, list[str]]:
    events: list[str] = []
    qmp, peer = Qmp(lambda name, _data: events.append(name)), Peer()
    qmp.connection_made(peer)
    return qmp, peer, events


async def begun(qmp: Qmp, peer: Peer, command: str, arguments: dict[str, object] | None = None) -> asyncio.Task[Any]:
    task = asyncio.create_task(qmp.execute(command, arguments))
    await asyncio.sleep(0)  # it runs up to where it waits for the reply
    assert peer.sent
    return task


@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_messages_in_pieces(piece: int) -> None:
    qmp, peer, events = conversation()
    first = await begun(qmp, peer, "stop")
    second = await begun(qmp, peer, "getfd", {"fdname": "state"})
    said = GREETING + (
        b'{"event": "STOP", "data": {}}\r\n{"return": {"n": 2}, "id": 2}\r\n'
        b'{"event": "RESUME"}\r\n{"id": 1, "error": {"class": "GenericError", "desc": "no"}}\r\n'
    )
    for begin in range(0, len(said), piece):
        qmp.data_received(said[begin : begin + piece])
    assert qmp.greeting.result() == {"version": {}, "capabilities": []}
    assert await second == {"n": 2}
    with pytest.raises(QmpRefused, match="no"):
        await first
    assert events == ["STOP", "RESUME"]
    assert msgspec.json.decode(peer.sent[1]) == {"execute": "getfd", "id": 2, "arguments": {"fdname": "state"}}


async def test_a_resume_is_few_bytes_as_qemu_reads_them_one_by_one() -> None:
    qmp, peer, _ = conversation()
    task = await begun(qmp, peer, "cont")
    assert len(peer.sent[0]) <= len('{"execute":"cont","id":1}')
    qmp.data_received(b'{"return": {}, "id": 1}\n')
    assert await task == {}


async def test_the_reply_to_a_command_that_was_given_up_is_nobodys() -> None:
    qmp, peer, _ = conversation()
    given_up = await begun(qmp, peer, "stop")
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    task = await begun(qmp, peer, "cont")
    qmp.data_received(b'{"return": "of stop", "id": 1}\n{"return": "of cont", "id": 2}\n')
    assert await task == "of cont"


@pytest.mark.parametrize(
    "said", [b"x" * (4 << 20) + b"x", b"7\n", b'{"return": {}}\n', b'{"error": {"desc": "what?"}}\n', b'{"event": 7}\n']
)
async def test_what_is_no_qmp_ends_the_connection_for_all_who_wait(said: bytes) -> None:
    qmp, peer, events = conversation()
    qmp.data_received(GREETING)
    waiting = [await begun(qmp, peer, "stop"), await begun(qmp, peer, "cont")]
    qmp.data_received(said)
    qmp.data_received(b'{"event": "STOP"}\n')
    for each in waiting:
        with pytest.raises(QmpBroken):
            await each
    with pytest.raises(QmpBroken):
        await qmp.execute("cont")
    assert peer.aborted
    assert events == []
