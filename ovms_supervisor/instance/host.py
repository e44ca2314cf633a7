"""What all instances of one daemon share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cache.resident import ResidentImages
from cache.store import Store
from cache.trust.gate import Gate
from ovms_supervisor.config import Settings
from ovms_supervisor.events import EventHub
from ovms_supervisor.instance.capacity import Capacity
from ovms_supervisor.instance.isolation import Isolation
from ovms_supervisor.instance.runtimes import Runtimes
from ovms_supervisor.layout import Layout
from ovms_supervisor.pulling import Pulling
from spec.errors import NoUsableRuntime
from vmm.driver import Driver, RuntimeName


@dataclass(frozen=True, slots=True)
class Host:
    """The daemon as an instance sees it."""

    settings: Settings
    layout: Layout
    store: Store
    images: ResidentImages
    gate: Gate
    drivers: Mapping[RuntimeName, Driver]
    runtimes: Runtimes
    capacity: Capacity
    events: EventHub
    isolation: Isolation
    pulling: Pulling

    def driver(self, name: str) -> Driver:
        """The driver of a runtime. Raises NoUsableRuntime: a journal may name one that this daemon does not have."""
        found = next((driver for known, driver in self.drivers.items() if known == name), None)
        if found is None:
            raise NoUsableRuntime(f"this daemon has no driver for {name}", runtime=name)
        return found
