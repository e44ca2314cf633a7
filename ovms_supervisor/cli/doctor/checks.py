"""The table of checks, in the order of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ovms_supervisor.cli.doctor import kernel, limits, memory, service, trust
from ovms_supervisor.cli.doctor.finding import Check, Finding
from ovms_supervisor.cli.doctor.isolation import isolation
from ovms_supervisor.cli.doctor.runtimes import runtimes

if TYPE_CHECKING:
    from ovms_supervisor.config import Settings

_FIRST: Final[tuple[Check, ...]] = (kernel.cpu_virtualisation, kernel.kvm_device)
_REST: Final[tuple[Check, ...]] = (
    memory.memory,
    memory.image_dir,
    memory.huge_pages,
    memory.memory_lock,
    memory.map_count,
    service.store,
    service.run_dir,
    service.daemon,
    trust.policy,
    limits.open_files,
    limits.processes,
    limits.inotify,
    kernel.user_namespaces,
    kernel.landlock,
    kernel.cgroups,
    kernel.tun_device,
    service.systemd,
)


async def examine(settings: Settings) -> list[Finding]:
    """All findings. The checks are quick and alone in their process, so they run one after another."""
    return [
        *(check(settings) for check in _FIRST),
        *await runtimes(settings),
        *(check(settings) for check in _REST),
        await isolation(settings),
    ]
