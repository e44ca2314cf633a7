"""What this host's Cloud Hypervisor can do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from spec.compatibility import RestoreTarget
from vmm.cpu import HostCpu, host_cpu
from vmm.driver import Limitation, RuntimeReport
from vmm.spawn import clean_environment

BINARY = "cloud-hypervisor"
_KVM = Path("/dev/kvm")
_ANSWER_LIMIT_S = 10.0
_VERSION = re.compile(r"cloud-hypervisor (v\S+)")


def probe(configured: Path | None) -> RuntimeReport:
    """Look for the binary, run it twice (``--version``, ``--help``), and look at KVM and the CPU. Blocks."""
    binary = shutil.which(configured or BINARY)
    if binary is None:
        return _report(None, None, frozenset(), (_no_binary(configured),))
    answers = [_ask(binary, option) for option in ("--version", "--help")]
    version = _VERSION.match(answers[0])
    if version is None:
        broken = Limitation(
            code="binary.broken",
            detail=f"{binary} --version answers {answers[0].strip()[:80]!r}",
            remedy="Install a release of Cloud Hypervisor for this machine.",
        )
        return _report(binary, None, frozenset(), (broken,))
    features, limitations = (
        {"snapshot", "snapshot-in-place-same-disk", "restore"},
        [*_kvm_limitations(), *cpu_limitations(host_cpu())],
    )
    if "--ivshmem" in answers[1]:
        features.add("ivshmem")
    else:
        limitations.append(
            Limitation(
                code="ivshmem.not_built",
                detail=f"{binary} was built without ivshmem",
                remedy="Build it with '--features ivshmem', or run artifacts without shared-memory devices.",
            )
        )
    return _report(binary, version[1], frozenset(features), tuple(limitations))


def restore_target(version: str, cpu: HostCpu) -> RestoreTarget:
    """The side that continues snapshots: a guest sees the host's CPU, so that is part of it."""
    return RestoreTarget(
        runtime="cloud-hypervisor",
        version=version,
        machine_type="cloud-hypervisor",
        accelerator="kvm",
        cpu_model="host",
        cpu_vendor=cpu.vendor,
        cpu_flags=sorted(cpu.flags),
    )


def cpu_limitations(cpu: HostCpu) -> list[Limitation]:
    """What the CPU lacks."""
    if cpu.has_hardware_virtualisation:
        return []
    return [
        Limitation(
            code="kvm.no_hardware_virtualisation",
            detail="the CPU shows neither vmx nor svm: KVM interprets guest kernels, and stock Linux does not boot",
            remedy="Enable (nested) virtualisation for this host, or use the qemu runtime.",
        )
    ]


def _kvm_limitations() -> list[Limitation]:
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        remedy = "Load the kvm module, or give this machine or container the device."
        return [Limitation(code="kvm.missing", detail=f"there is no {_KVM}", remedy=remedy)]
    except OSError as error:
        remedy = f"Let this user read and write {_KVM}, usually by membership in the group kvm."
        return [Limitation(code="kvm.denied", detail=f"{_KVM} can't be opened: {error.strerror}", remedy=remedy)]
    return []


def _no_binary(configured: Path | None) -> Limitation:
    where = f"{configured} is not an executable program" if configured else f"there is no {BINARY} in PATH"
    return Limitation(
        code="binary.missing",
        detail=where,
        remedy="Install Cloud Hypervisor (https://www.cloudhypervisor.org), or name its binary in the configuration.",
    )


def _ask(binary: str, option: str) -> str:
    """The standard output of the binary with an option; empty if it does not give one."""
    try:
        done = subprocess.run(
            [binary, option], capture_output=True, env=clean_environment(), timeout=_ANSWER_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def _report(
    binary: str | None, version: str | None, features: frozenset[str], limitations: tuple[Limitation, ...]
) -> RuntimeReport:
    codes = {limitation.code for limitation in limitations}
    can_run = version is not None and not codes & {"kvm.missing", "kvm.denied"}
    return RuntimeReport(
        name="cloud-hypervisor",
        usable=can_run and "kvm.no_hardware_virtualisation" not in codes,
        usable_if_named=can_run,
        binary=Path(binary) if binary else None,
        target=restore_target(version, host_cpu()) if version else None,
        features=features,
        limitations=limitations,
    )
