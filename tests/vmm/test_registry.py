"""The runtimes there are."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from vmm.driver import RuntimeName
from vmm.registry import drivers


async def test_every_runtime_has_a_driver_that_answers_under_its_name() -> None:
    found = drivers({"qemu": Path("/nowhere/qemu"), "cloud-hypervisor": Path("/nowhere/ch")})
    assert set(found) == set(get_args(RuntimeName))
    for name, driver in found.items():
        report = await driver.probe()
        assert (driver.name, report.name) == (name, name)
        assert (report.binary, report.target, report.runnable) == (None, None, False)  # as configured, not from PATH
        assert report.limitations
