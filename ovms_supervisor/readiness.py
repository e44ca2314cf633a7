"""What of the host keeps starts from working."""

from __future__ import annotations

from anyio.to_thread import run_sync

from ovms_supervisor.config.host import filesystem_of
from ovms_supervisor.instance.host import Host
from spec.errors import InvalidPolicy


async def host_troubles(host: Host) -> list[str]:
    """A sentence for each reason why a start cannot be expected to work; the remedies are in ``ovm doctor``."""
    troubles: list[str] = []
    reports = await host.runtimes.reports()
    if not any(report.runnable for report in reports.values()):
        troubles.append("no runtime can run here")
    filesystem = await run_sync(filesystem_of, host.layout.image_dir)
    if not filesystem.is_tmpfs:
        troubles.append(f"{host.layout.image_dir} is on {filesystem.kind}, not on a tmpfs")
    try:
        await run_sync(host.gate.policy.current)
    except InvalidPolicy as error:
        troubles.append(f"nothing is admitted: {error.detail}")
    return troubles
