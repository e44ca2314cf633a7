"""How VMMs are confined (RFC §6): what is asked of the drivers, and what came of it by the word of the kernel.

``isolation = "auto"``: as much as this host gives; what is missing degrades the instance. ``"required"``: all of it, or
the machine does not start. ``"off"``: VMMs run as the daemon does.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import anyio
import structlog
from anyio.to_thread import run_sync

from ovms_supervisor.config.settings import IsolationMode
from spec.errors import IsolationMissing
from spec.instance import IsolationLayer
from vmm.driver import Confinement, Vm
from vmm.sandbox.launching import Launcher
from vmm.sandbox.probing import probe
from vmm.sandbox.readback import read_layers

FIRST_UID = 0x70000000
"""A range that neither distributions nor systemd use (https://systemd.io/UIDS-GIDS)."""
_UIDS = 1 << 28

_log = structlog.get_logger(__name__)


class Isolation:
    """One per daemon. ``launcher`` None: the drivers have none, and confine nothing."""

    def __init__(self, mode: IsolationMode, launcher: Launcher | None) -> None:
        self.mode = mode
        self._launcher = launcher if mode != "off" else None
        self._turn = anyio.Lock()
        self._unavailable: str | None = None
        self._probed = False

    @property
    def required(self) -> bool:
        """Whether a machine that cannot be confined must not run."""
        return self.mode == "required"

    async def available(self) -> bool:
        """Whether this host confines anything at all; tried once. Raises IsolationMissing if it must."""
        if self._launcher is None:
            return False
        async with self._turn:
            if not self._probed:
                self._unavailable = await probe(self._launcher)
                self._probed = True
                if self._unavailable:
                    _log.warning("VMMs cannot be confined on this host", why=self._unavailable)
        if self._unavailable and self.required:
            raise IsolationMissing(f"VMMs cannot be confined on this host: {self._unavailable}")
        return self._unavailable is None

    def confinement(self, instance_id: str, image: Path | None, staging: Path) -> Confinement | None:
        """For a VMM of an instance; ``image`` is the directory of its image, ``staging`` where states are saved.

        None if it is not to be confined, or can't be.
        """
        if self._launcher is None or not self._probed or self._unavailable:
            return None
        return Confinement(
            uid=uid_of(instance_id) if os.geteuid() == 0 else None,
            read_only=(image,) if image else (),
            writable=(staging,),
            strict=self.required,
        )

    def of_running(self, instance_id: str, layers: Sequence[IsolationLayer]) -> Confinement | None:
        """Of a VMM that was started before, under whatever setting: confined if layers of it were read back."""
        if not layers:
            return None
        return Confinement(uid=uid_of(instance_id) if os.geteuid() == 0 else None)

    async def layers(self, vm: Vm, image: Path | None) -> list[IsolationLayer]:
        """What holds for a VMM that runs. Raises VmmExited, and IsolationMissing for less than is required."""
        found = await run_sync(
            lambda: read_layers(vm.pid, image=image, told_missing=vm.unconfined, confined=self._launcher is not None)
        )
        layers = [IsolationLayer(name=each.name, holds=each.holds, detail=each.detail) for each in found]
        if self.required and (missing := missing_layers(layers)):
            raise IsolationMissing(f"the VMM would run without {missing}", layers=[each.name for each in layers])
        return layers


def missing_layers(layers: Sequence[IsolationLayer]) -> str:
    """The layers that do not hold, and why, for a sentence; empty if all do."""
    return ", ".join(f"{each.name} ({each.detail})" for each in layers if not each.holds)


def uid_of(instance_id: str) -> int:
    """The user of an instance's VMM: the same for each daemon, so that it need not be written down.

    Of 5,000 machines two share one with a chance of 5 %; being in namespaces and views of their own, they would still
    not see each other.
    """
    return FIRST_UID + uuid.UUID(instance_id).int % _UIDS
