"""``ovm inject``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.cli.parameters import MACHINE, NUMBER
from spec.errors import OutOfRange

if TYPE_CHECKING:
    from spec.api import MmioWrite


@click.command(
    "inject",
    cls=OvmCommand,
    examples=[
        "ovm inject web mmio0 --text 'hello'",
        "ovm inject web mmio0 --offset 0x1000 --data-hex 'de ad be ef'",
        "ovm inject web mmio0 --file request.bin",
        "ovm inject web mmio0 --read 64 | xxd",
    ],
)
@click.argument("machine", type=MACHINE, metavar="ID")
@click.argument("device")
@click.option("--offset", type=NUMBER, default=0, metavar="N", help="From the start of the device: 4096, 4K or 0x1000.")
@click.option("--data-hex", metavar="HEX", help="Bytes to write, in hex; blanks are ignored.")
@click.option("--text", help="Text to write, as UTF-8.")
@click.option("--file", type=click.File("rb"), help="A file to write; - for standard input.")
@click.option("--read", type=NUMBER, metavar="N", help="Read N bytes instead: raw on stdout, hex on a terminal.")
@pass_invocation
def inject_command(
    invocation: Invocation,
    machine: str,
    device: str,
    offset: int,
    data_hex: str | None,
    text: str | None,
    file: BinaryIO | None,
    read: int | None,
) -> None:
    """Write into the shared memory (ivshmem) DEVICE of a machine, or read from it."""
    from spec.api import MAX_INJECT_BYTES, MmioWrite

    if sum(each is not None for each in (data_hex, text, file, read)) != 1:
        raise click.UsageError("give exactly one of --data-hex, --text, --file and --read")
    if read is not None:
        if not 1 <= read <= MAX_INJECT_BYTES:
            raise click.BadParameter(f"between 1 and {MAX_INJECT_BYTES} bytes can be read at once", param_hint="--read")
        _print(invocation, _call(invocation, machine, MmioWrite(device=device, offset=offset, read=read)))
        return
    content = _content(data_hex, text, file, MAX_INJECT_BYTES)
    if len(content) > MAX_INJECT_BYTES:
        raise OutOfRange(f"more than {MAX_INJECT_BYTES} bytes at once", remedy="Write it in several pieces.")
    _call(invocation, machine, MmioWrite(device=device, offset=offset, data=content))
    if invocation.json:
        output.as_json({"status": "ok", "device": device, "offset": offset, "bytes": len(content)})
    else:
        output.message(f"wrote {len(content)} bytes at {offset:#x} of {device}")


def _content(data_hex: str | None, text: str | None, file: BinaryIO | None, limit: int) -> bytes:
    if file is not None:
        return file.read(limit + 1)
    if text is not None:
        return text.encode("utf-8", "surrogateescape")
    try:
        return bytes.fromhex(data_hex or "")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--data-hex") from error


def _call(invocation: Invocation, machine: str, write: MmioWrite) -> list[bytes]:
    async def ask() -> list[bytes]:
        async with invocation.client() as client:
            return await client.inject(machine, [write])

    return run_async(ask)


def _print(invocation: Invocation, pieces: list[bytes]) -> None:
    content = b"".join(pieces)
    if invocation.json:
        output.as_json({"read": content})
    elif sys.stdout.isatty():
        for start in range(0, len(content), 16):
            row = content[start : start + 16]
            printable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
            output.data(f"{start:08x}  {row.hex(' '):<47}  {printable}")
    else:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
