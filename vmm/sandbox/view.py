"""From a machine to its confinement: which files its VMM needs, what for, and what it gets besides.

Everything is seen under its own path. A file that is not named here is not there for the VMM; what is named read-only
cannot be written to by it, whoever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vmm.disk_chain import disk_chain
from vmm.driver import Confinement, Machine
from vmm.priority import niceness_of_vmms
from vmm.sandbox.kernel import NAMESPACES
from vmm.sandbox.orders import SHARED_BY_ALL, Order
from vmm.spawn import clean_environment

PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_DEVICES: Final = ("/dev/null", "/dev/urandom", "/dev/kvm")

OOM_SCORE_ADJ: Final = 500
"""Guests go before the daemon, and before what else the host runs."""

_LIMITS: Final = {"RLIMIT_CORE": 0}
"""A core file would be the guest's memory on the host's disk."""
_FILES: Final = 4096
"""Above the numbers of those that are passed, which are the daemon's: with a thousand machines they are high ones."""
_THREADS: Final = 512
"""Of one VMM with a uid of its own: vCPUs, I/O threads, and nothing that forks without end."""


def order_for(
    argv: Sequence[str],
    fds: Sequence[int],
    machine: Machine,
    confinement: Confinement,
    *,
    read_only: Sequence[Path] = (),
    writes_image: bool = False,
) -> Order:
    """The order for a VMM of a machine. Blocks (reads the headers of its disks). Raises what ``disk_chain`` raises.

    ``fds``: the numbers of what is passed beside the standard streams. ``writes_image``: the VMM will open even a
    private RAM image for writing only.
    """
    reads = [machine.kernel, *([machine.initrd] if machine.initrd else []), *read_only, *confinement.read_only]
    writes = [*confinement.writable, *(device.path for device in machine.devices)]
    (writes if writes_image or not machine.ram.private else reads).append(machine.ram.path)
    for disk in machine.disks:
        top, *below = disk_chain(disk)
        # The directory of a disk that is written to: a snapshot puts the next overlay beside the present one.
        (reads if disk.read_only else writes).append(top.path if disk.read_only else top.path.parent)
        reads += [link.path for link in below]
    namespaces = set(NAMESPACES) - ({"user"} | SHARED_BY_ALL if confinement.uid is not None else set())
    threads = {"RLIMIT_NPROC": _THREADS} if confinement.uid is not None else {}
    return Order(
        argv=list(argv),
        environment=clean_environment(),
        fds=list(fds),
        namespaces=sorted(namespaces),
        uid=confinement.uid,
        programs=_programs(argv[0]),
        read_only=_unique(reads),
        writable=_unique(writes),
        devices=list(_DEVICES),
        limits={**_LIMITS, "RLIMIT_NOFILE": _FILES + max(fds, default=0), **threads},
        oom_score_adj=OOM_SCORE_ADJ,
        niceness=niceness_of_vmms(),
        strict=confinement.strict,
    )


def _programs(program: str) -> list[str]:
    """The system's programs and libraries, and this one with what its links lead to, if it is elsewhere."""
    places = list(PROGRAMS)
    elsewhere = {str(Path(program).absolute()), str(Path(program).resolve())}
    return places + sorted(path for path in elsewhere if not path.startswith("/usr/"))


def _unique(paths: Sequence[Path]) -> list[str]:
    return sorted({str(path.absolute()) for path in paths})
