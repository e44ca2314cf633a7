"""The VMMs: each driver's own report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_supervisor.cli.doctor.finding import Finding, fail, ok, warn

if TYPE_CHECKING:
    from ovms_supervisor.config import Settings
    from vmm.driver import RuntimeReport


async def runtimes(settings: Settings) -> list[Finding]:
    """One finding for each runtime; if none is usable they fail, else what a runtime lacks is a warning."""
    import asyncio

    from vmm.registry import drivers

    reports = await asyncio.gather(*(driver.probe() for driver in drivers(settings.binaries).values()))
    any_usable = any(report.usable for report in reports)
    return [_finding(report, any_usable) for report in reports]


def _finding(report: RuntimeReport, any_usable: bool) -> Finding:
    check = f"runtime {report.name}"
    target = report.target
    figure = f"{target.version}, {target.accelerator}, {target.machine_type}" if target else "unknown"
    figure = f"{report.binary}: {figure}" if report.binary else "not found"
    why = "; ".join(each.detail for each in report.limitations)
    remedy = " ".join(dict.fromkeys(each.remedy for each in report.limitations if each.remedy))
    if report.usable:
        return warn(check, figure, why, remedy) if report.limitations else ok(check, figure)
    if any_usable:
        return warn(check, figure, why or "not usable", remedy)
    return fail(check, figure, why or "not usable", remedy or f"Install {report.name}.")
