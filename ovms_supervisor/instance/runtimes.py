"""Which VMM runs an instance, and the sentence that says why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

import anyio

from cache.registry.index_choice import HostPlatform
from spec.compatibility import Compatibility, check_restorable
from spec.cpu_class import cpu_class
from spec.errors import IncompatibleSnapshot, NoUsableRuntime
from spec.instance import RuntimeInfo
from vmm.cpu import host_cpu
from vmm.driver import Driver, RuntimeName, RuntimeReport

NO_PREFERENCE = "generic"

_RANK = ("cloud-hypervisor", "qemu")
"""Of two equally accelerated runtimes the one whose clones are smaller and start faster."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The runtime to use; ``wish`` is what the artifact would have liked and could not have."""

    report: RuntimeReport
    reason: str
    unmet_wish: str | None = None

    @property
    def info(self) -> RuntimeInfo:
        """The choice as status shows it."""
        target = self.report.target
        return RuntimeInfo(
            name=self.report.name,
            version=target.version if target else "unknown",
            accelerator=target.accelerator if target else "unknown",
            reason=self.reason,
        )


class Runtimes:
    """What each driver says this host can do, asked once, and again when the answer was no."""

    def __init__(self, drivers: Mapping[RuntimeName, Driver]) -> None:
        self._drivers: dict[str, Driver] = dict(drivers.items())
        self._reports: dict[str, RuntimeReport] = {}
        self._turn = anyio.Lock()

    async def reports(self, *, afresh: bool = False) -> dict[str, RuntimeReport]:
        """The report of every driver; ``afresh`` probes those again that were not usable."""
        if not afresh and self._reports.keys() >= self._drivers.keys():
            return dict(self._reports)
        async with self._turn:
            unusable = {name for name, report in self._reports.items() if afresh and not report.usable}
            asked = [name for name in self._drivers if name not in self._reports or name in unusable]
            async with anyio.create_task_group() as group:
                for name in asked:
                    group.start_soon(self._probe, name)
            return dict(self._reports)

    async def platform(self) -> HostPlatform:
        """What an artifact may be chosen for."""
        usable = sorted((each for each in (await self.reports()).values() if each.usable), key=_rank)
        return HostPlatform(tuple(each.name for each in usable), cpu_class(host_cpu().flags))

    async def _probe(self, name: str) -> None:
        self._reports[name] = await self._drivers[name].probe()


def choose(
    reports: Mapping[str, RuntimeReport],
    *,
    asked: str | None,
    preferred: Iterable[str],
    features: frozenset[str],
) -> Choice:
    """The runtime for a cold boot. Raises NoUsableRuntime.

    ``asked`` is the caller's: it must be able to run at all. ``preferred`` is the artifact's wish, in order. Without
    either, hardware acceleration comes first, then the runtime with the smaller clones.
    """
    if asked is not None and asked != NO_PREFERENCE:
        return Choice(_named(reports, asked, features), "asked for by the caller")
    usable = sorted((report for report in reports.values() if report.usable and features <= report.features), key=_rank)
    if not usable:
        raise NoUsableRuntime("no runtime can run this here: " + "; ".join(_lacks(reports.values(), features)))
    by_name = {report.name: report for report in usable}
    wishes = list(takewhile(lambda wish: wish != NO_PREFERENCE, preferred))
    for wish in wishes:
        if report := by_name.get(wish):  # type: ignore[call-overload]
            return Choice(report, "preferred by the artifact")
    best = usable[0]
    accelerator = best.target.accelerator if best.target else "unknown"
    why = f"the only usable one ({accelerator})" if len(usable) == 1 else f"the best of {len(usable)} ({accelerator})"
    if others := [report for report in reports.values() if report.name not in by_name]:
        why += ", without " + "; ".join(_lacks(others, features))
    return Choice(best, why, unmet_wish=wishes[0] if wishes else None)


def choose_for_restore(
    reports: Mapping[str, RuntimeReport],
    recorded: Compatibility,
    *,
    asked: str | None,
    features: frozenset[str],
) -> Choice:
    """The runtime that continues a RAM snapshot. Raises IncompatibleSnapshot or NoUsableRuntime."""
    if asked is not None and asked != NO_PREFERENCE:
        report = _named(reports, asked, features)
        reason = "asked for by the caller, and made the RAM snapshot"
    else:
        maker = reports.get(recorded.runtime)
        if maker is None or not maker.usable or maker.target is None:
            raise IncompatibleSnapshot(
                f"the snapshot was made with {recorded.runtime} {recorded.version}, which is not usable here: "
                + "; ".join(_lacks([maker] if maker else [], features) or ["no such runtime"]),
                property="runtime",
                snapshot=recorded.runtime,
            )
        report, reason = maker, "made the RAM snapshot"
    assert report.target is not None  # noqa: S101 - both ways here have looked
    check_restorable(recorded, report.target)
    if missing := (features | {"restore"}) - report.features:
        raise IncompatibleSnapshot(f"{report.name} here cannot {', '.join(sorted(missing))}", property="features")
    return Choice(report, reason)


def _named(reports: Mapping[str, RuntimeReport], name: str, features: frozenset[str]) -> RuntimeReport:
    report = reports.get(name)
    # Whoever names a runtime may have one that would not be chosen, as long as it can run at all.
    if report is None or report.target is None or not report.runnable:
        lacks = _lacks([report], features) if report else ["this daemon has no driver for it"]
        raise NoUsableRuntime(f"runtime {name} cannot run here: {lacks[0]}", runtime=name)
    if missing := features - report.features:
        raise NoUsableRuntime(f"runtime {name} here has no {', '.join(sorted(missing))}", runtime=name)
    return report


def _rank(report: RuntimeReport) -> tuple[bool, int]:
    accelerated = report.target is not None and report.target.accelerator == "kvm"
    return not accelerated, _RANK.index(report.name) if report.name in _RANK else len(_RANK)


def _lacks(reports: Iterable[RuntimeReport], features: frozenset[str]) -> list[str]:
    sentences: list[str] = []
    for report in reports:
        if report.usable and (missing := features - report.features):
            sentences.append(f"{report.name} (has no {', '.join(sorted(missing))})")
        else:
            limits = ", ".join(limit.detail for limit in report.limitations) or "not usable"
            sentences.append(f"{report.name} ({limits})")
    return sentences
