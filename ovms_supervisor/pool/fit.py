"""Whether a parked clone can be what a start asks for."""

from __future__ import annotations

from ovms_supervisor.instance.record import Record
from ovms_supervisor.instance.runtimes import NO_PREFERENCE
from spec.api import Overrides
from spec.errors import InvalidSize
from spec.sizes import parse_size


def misfit(overrides: Overrides, record: Record) -> str | None:
    """Why not, as the end of a sentence; None if it fits. A name it can be given; what it has, may be named again."""
    if overrides.boot == "cold":
        return "a cold boot was asked for"
    if overrides.disk == "persistent":
        return "a persistent disk was asked for"
    if overrides.runtime not in (None, NO_PREFERENCE, record.runtime.name):
        return f"runtime {overrides.runtime} was asked for, the clones run on {record.runtime.name}"
    if overrides.cpus not in (None, record.cpus):
        return f"{overrides.cpus} cpus were asked for, the clones have {record.cpus}"
    if overrides.memory is not None and _bytes(overrides.memory) != record.memory_bytes:
        return f"memory {overrides.memory} was asked for, the clones have {record.memory_bytes} bytes"
    if overrides.kernel_args is not None and record.vm and overrides.kernel_args != record.vm.machine.kernel_args:
        return "other kernel_args were asked for"
    return None


def _bytes(size: int | str) -> int | None:
    try:
        return size if isinstance(size, int) else parse_size(size)
    except InvalidSize:
        return None
