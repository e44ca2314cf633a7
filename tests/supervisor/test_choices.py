"""Which runtime, cold or restored, what fits, and how an ending is told."""

from __future__ import annotations

import signal
from pathlib import Path

import msgspec
import pytest

from ovms_supervisor.instance.capacity import Capacity
from ovms_supervisor.instance.clone_memory import CloneMemory
from ovms_supervisor.instance.endings import conclude, oom_kills
from ovms_supervisor.instance.runtimes import choose, choose_for_restore
from spec.api import Overrides, StartRequest
from spec.compatibility import Compatibility, RestoreTarget
from spec.errors import CapacityExceeded, IncompatibleSnapshot, NoUsableRuntime
from spec.instance import InstanceState
from tests.supervisor.conftest import Site, start
from tests.supervisor.fake_vmm import TARGET, FakeDriver
from vmm.driver import Ending, Limitation, RuntimeName, RuntimeReport

NOTHING: frozenset[str] = frozenset()
IVSHMEM = frozenset({"ivshmem"})


def report(
    name: RuntimeName,
    *,
    usable: bool = True,
    accelerator: str = "tcg",
    named: bool = False,
    features: str = "ivshmem restore",
) -> RuntimeReport:
    return RuntimeReport(
        name=name,
        usable=usable,
        binary=Path("/x"),
        target=RestoreTarget(
            runtime=name, version="1", machine_type="m", accelerator=accelerator, cpu_model="max", cpu_flags=[]
        ),
        features=frozenset(features.split()),
        limitations=() if usable else (Limitation(code="kvm.missing", detail="/dev/kvm is missing", remedy="get one"),),
        usable_if_named=named,
    )


def of(*reports: RuntimeReport) -> dict[str, RuntimeReport]:
    return {each.name: each for each in reports}


BOTH = of(report("qemu"), report("cloud-hypervisor", accelerator="kvm"))


@pytest.mark.parametrize("preferred", [[], ["generic"], ["firecracker"], ["generic", "qemu"]])
def test_without_a_preference_the_accelerated_one(preferred: list[str]) -> None:
    choice = choose(BOTH, asked=None, preferred=preferred, features=NOTHING)
    assert choice.report.name == "cloud-hypervisor"
    assert "kvm" in choice.reason
    assert choice.unmet_wish == ("firecracker" if preferred == ["firecracker"] else None)


def test_acceleration_counts_more_than_the_kind() -> None:
    reports = of(report("qemu", accelerator="kvm"), report("cloud-hypervisor", accelerator="tcg"))
    assert choose(reports, asked="generic", preferred=[], features=NOTHING).report.name == "qemu"


def test_wishes_and_orders() -> None:
    assert choose(BOTH, asked=None, preferred=["firecracker", "qemu"], features=NOTHING).report.name == "qemu"
    assert (
        choose(BOTH, asked="qemu", preferred=["cloud-hypervisor"], features=NOTHING).reason == "asked for by the caller"
    )


def test_one_that_is_not_usable() -> None:
    weak = of(report("qemu"), report("cloud-hypervisor", usable=False))
    choice = choose(weak, asked=None, preferred=["cloud-hypervisor"], features=NOTHING)
    assert (choice.report.name, choice.unmet_wish) == ("qemu", "cloud-hypervisor")
    assert "/dev/kvm is missing" in choice.reason
    with pytest.raises(NoUsableRuntime, match="/dev/kvm is missing"):
        choose(weak, asked="cloud-hypervisor", preferred=[], features=NOTHING)
    named = of(report("cloud-hypervisor", usable=False, named=True))
    assert choose(named, asked="cloud-hypervisor", preferred=[], features=NOTHING).report.name == "cloud-hypervisor"
    with pytest.raises(NoUsableRuntime):
        choose(named, asked=None, preferred=[], features=NOTHING)
    with pytest.raises(NoUsableRuntime, match="no driver"):
        choose({}, asked="qemu", preferred=[], features=NOTHING)


def test_one_that_lacks_a_feature() -> None:
    reports = of(report("qemu"), report("cloud-hypervisor", accelerator="kvm", features="restore"))
    assert choose(reports, asked=None, preferred=[], features=IVSHMEM).report.name == "qemu"
    with pytest.raises(NoUsableRuntime, match="ivshmem"):
        choose(reports, asked="cloud-hypervisor", preferred=[], features=IVSHMEM)


def test_who_restores() -> None:
    recorded = Compatibility(
        runtime="qemu", version="1", machine_type="m", accelerator="tcg", cpu_model="max",
        memory_bytes=1 << 20, cpus=1, regions=[],
    )  # fmt: skip
    assert choose_for_restore(BOTH, recorded, asked=None, features=NOTHING).report.name == "qemu"
    with pytest.raises(IncompatibleSnapshot, match=r"'qemu'.*'cloud-hypervisor'"):
        choose_for_restore(BOTH, recorded, asked="cloud-hypervisor", features=NOTHING)
    with pytest.raises(IncompatibleSnapshot, match="version"):
        choose_for_restore(BOTH, msgspec.structs.replace(recorded, version="2"), asked=None, features=NOTHING)
    with pytest.raises(IncompatibleSnapshot, match="not usable here"):
        choose_for_restore(of(report("cloud-hypervisor")), recorded, asked=None, features=NOTHING)


async def test_a_snapshot_of_another_version_is_refused_or_booted_cold(site: Site) -> None:
    async with site.daemon() as supervisor:
        await supervisor.snapshot(await start(supervisor, "guest:disk"), "warm")
    site.fake.target = msgspec.structs.replace(TARGET, version="8.0")
    async with site.daemon() as supervisor:
        request = StartRequest(manifest="guest:warm", overrides=Overrides(name="x"))
        with pytest.raises(IncompatibleSnapshot, match=r"'7\.2'.*'8\.0'"):
            await supervisor.start(request)
        instance = await start(supervisor, "guest:warm", boot="restore-or-cold", name="x", memory="64M")
        info = await instance.info()
        assert (info.status, info.boot, info.memory_bytes) == (InstanceState.RUNNING, "cold", 64 << 20)
        assert [each.code for each in info.degraded] == ["restore.incompatible"]
        instance = await start(supervisor, "guest:warm", boot="cold")
        assert (instance.record.boot, instance.record.degraded) == ("cold", [])


async def test_a_runtime_that_was_installed_meanwhile(site: Site) -> None:
    site.fake.usable = False
    async with site.daemon() as supervisor:
        with pytest.raises(NoUsableRuntime):
            await start(supervisor)
        assert "no runtime can run here" in await supervisor.readiness()
        site.fake.usable = True
        assert (await start(supervisor)).state is InstanceState.RUNNING


async def test_two_runtimes(site: Site) -> None:
    other = FakeDriver(name="cloud-hypervisor", target=msgspec.structs.replace(TARGET, runtime="cloud-hypervisor"))
    site.drivers = {"qemu": site.fake, "cloud-hypervisor": other}
    async with site.daemon() as supervisor:
        assert (await start(supervisor)).record.runtime.name == "cloud-hypervisor"
        assert (await start(supervisor, runtime="qemu")).record.runtime.name == "qemu"


async def test_capacity(tmp_path: Path) -> None:
    clones = CloneMemory(budget_bytes=1 << 60, reserve_bytes=0, available_bytes=lambda: 1 << 60)
    capacity = Capacity(tmp_path, clones)
    with pytest.raises(CapacityExceeded) as caught:
        await capacity.reserve(1 << 60, tmp_path / "a")
    assert caught.value.fields["needed_bytes"] == 1 << 60
    assert capacity.promised_bytes == 0
    free = caught.value.fields["free_bytes"]
    first = await capacity.reserve(free // 2, tmp_path / "a")
    with pytest.raises(CapacityExceeded) as caught:
        await capacity.reserve(free // 2 + (256 << 20), tmp_path / "b")
    assert caught.value.fields["promised_bytes"] == free // 2
    capacity.release(first)
    capacity.release(first)
    capacity.release(await capacity.reserve(free // 2, tmp_path / "b"))


async def test_a_start_that_does_not_fit(site: Site) -> None:
    async with site.daemon() as supervisor:
        with pytest.raises(CapacityExceeded):
            await start(supervisor, memory="8T")
        assert supervisor.instances() == []
        assert await site.leaks([]) == []


@pytest.mark.parametrize(
    ("ending", "state", "words"),
    [
        (Ending(code=0, signal=None), "stopped", "exited with code 0"),
        (Ending(code=3, signal=None), "failed", "code 3, see vmm.log"),
        (Ending(code=0, signal=None, guest="shutdown"), "stopped", "powered itself off"),
        (Ending(code=0, signal=None, guest="panic"), "failed", "panicked"),
        (Ending(code=0, signal=None, guest="reset"), "failed", "reset itself"),
        (Ending(code=None, signal=None), "failed", "an earlier daemon"),
        (Ending(code=None, signal=signal.SIGSYS), "failed", "SIGSYS: a seccomp filter"),
        (Ending(code=None, signal=signal.SIGKILL), "failed", "SIGKILL: somebody outside"),
        (Ending(code=None, signal=64), "failed", "SIGRTMAX"),
        (Ending(code=None, signal=40), "failed", "signal 40"),
    ],
)
def test_endings(ending: Ending, state: str, words: str) -> None:
    seen = conclude(ending, ordered=None, failure=None, oom_kills_before=oom_kills())
    assert seen.state == state
    assert words in seen.reason
    ordered = conclude(ending, ordered="on request", failure=None, oom_kills_before=None)
    assert ordered.state == "stopped"
    assert ordered.reason.startswith("on request")


def test_the_kernel_may_have_killed_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovms_supervisor.instance.endings.oom_kills", lambda: 4)
    killed = Ending(code=None, signal=signal.SIGKILL)
    assert "want of memory" in conclude(killed, ordered=None, failure=None, oom_kills_before=3).reason
    adopted = Ending(code=None, signal=None, guest=None)  # of a process that an earlier daemon had started
    assert "want of memory" in conclude(adopted, ordered=None, failure=None, oom_kills_before=3).reason
    assert "want of memory" not in conclude(adopted, ordered=None, failure=None, oom_kills_before=4).reason
