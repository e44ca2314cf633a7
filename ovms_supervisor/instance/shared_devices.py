"""Shared-memory devices of an instance: their files, and their content as part of a RAM snapshot (all blocking).

A snapshot is one point in time, so what the guest and its peers wrote to an ivshmem device belongs to it: the state
has a file ``ivshmem-<name>`` per device, with holes for zero pages, and every clone gets a copy of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spec.api import MmioWrite
from spec.errors import CorruptRamsnap, DeviceNotFound, InvalidRequest
from spec.sizes import MIB
from vmm import shared_memory
from vmm.driver import SharedMemory

_CHUNK_BYTES = MIB
_PAGE = 4096
_ZERO = bytes(_PAGE)


def make(devices: Iterable[SharedMemory], state_dir: Path | None) -> None:
    """Make the files of the devices; ``state_dir`` of a snapshot gives them their content."""
    for device in devices:
        shared_memory.create(device.path, device.size_bytes)
        saved = None if state_dir is None else state_dir / _state_name(device)
        if saved is not None and saved.exists():
            if saved.stat().st_size != device.size_bytes:
                raise CorruptRamsnap(
                    f"the snapshot has {saved.stat().st_size} bytes of device {device.name!r}, "
                    f"the manifest {device.size_bytes}"
                )
            _copy(saved, device.path)


def save(devices: Iterable[SharedMemory], state_dir: Path) -> None:
    """Copy the content of the devices next to the device state. The guest stands still meanwhile."""
    for device in devices:
        target = state_dir / _state_name(device)
        with target.open("xb") as file:
            file.truncate(device.size_bytes)
        _copy(device.path, target)


def inject(devices: Iterable[SharedMemory], writes: Iterable[MmioWrite]) -> list[bytes]:
    """Write to and read from devices, in order; all are checked before the first is done.

    Returns what each read found. Raises DeviceNotFound, OutOfRange, InvalidRequest.
    """
    by_name = {device.name: device for device in devices}
    wanted = [(_device(by_name, write.device), write.offset, _payload(write)) for write in writes]
    for device, offset, payload in wanted:
        length = payload if isinstance(payload, int) else len(payload)
        shared_memory.check_range(device.size_bytes, offset, length)
    found: list[bytes] = []
    for device, offset, payload in wanted:
        if isinstance(payload, int):
            found.append(shared_memory.read(device.path, offset, payload))
        else:
            shared_memory.write(device.path, offset, payload)
    return found


def _device(by_name: dict[str, SharedMemory], name: str) -> SharedMemory:
    try:
        return by_name[name]
    except KeyError:
        known = ", ".join(by_name) or "none"
        raise DeviceNotFound(f"the instance has no device {name!r}; it has: {known}", device=name) from None


def _payload(write: MmioWrite) -> bytes | int:
    """The bytes to write, or how many to read."""
    given = [each for each in (write.data, write.text, write.read) if each is not None]
    if len(given) != 1:
        raise InvalidRequest(f"device {write.device!r}: exactly one of data, text and read is needed, not {len(given)}")
    return given[0].encode() if isinstance(given[0], str) else given[0]


def _state_name(device: SharedMemory) -> str:
    return f"ivshmem-{device.name}"


def _copy(source: Path, target: Path) -> None:
    """Copy into a file of the same size that is all zero, leaving out zero pages."""
    with source.open("rb") as reader, target.open("r+b") as writer:
        offset = 0
        while chunk := reader.read(_CHUNK_BYTES):
            for start in range(0, len(chunk), _PAGE):
                page = chunk[start : start + _PAGE]
                if page != _ZERO:
                    writer.seek(offset + start)
                    writer.write(page)
            offset += len(chunk)
