"""CPU virtualisation, KVM and what the kernel offers to confine processes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from ovms_supervisor.cli.doctor.finding import Finding, ok, read_number, read_text, warn
from vmm.cpu import host_cpu

if TYPE_CHECKING:
    from ovms_supervisor.config import Settings

_SYS_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_CREATE_RULESET_VERSION = 1
_TUN = "/dev/net/tun"


def cpu_virtualisation(_: Settings) -> Finding:
    """The vmx or svm flag: whether guests run on the CPU itself."""
    cpu = host_cpu()
    if cpu.has_hardware_virtualisation:
        return ok("cpu virtualisation", f"{'vmx' if 'vmx' in cpu.flags else 'svm'}, {cpu.model}")
    return warn(
        "cpu virtualisation",
        f"no vmx, no svm, {cpu.model}",
        "guests are emulated: everything works, some ten times slower",
        "Enable VT-x or AMD-V in the firmware, or nested virtualisation for this machine.",
    )


def kvm_device(_: Settings) -> Finding:
    """Whether /dev/kvm opens for this user."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return warn("/dev/kvm", "not there", "KVM cannot be used", "Load the module: modprobe kvm_intel or kvm_amd.")
    except PermissionError:
        remedy = "Join its group: usermod -aG kvm $USER, then log in again."
        return warn("/dev/kvm", "permission denied", "KVM cannot be used by this user", remedy)
    except OSError as error:
        return warn("/dev/kvm", error.strerror or "error", "KVM cannot be used", "See dmesg.")
    return ok("/dev/kvm", "opens")


def tun_device(_: Settings) -> Finding:
    """Whether taps could be made."""
    if not Path(_TUN).exists():
        return warn("tun device", "not there", "guests can't have taps", "Load the module: modprobe tun.")
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return warn("tun device", "permission denied", "guests can't have taps", "Run the daemon as root.")
    return ok("tun device", _TUN)


def landlock(_: Settings) -> Finding:
    """The Landlock ABI, asked of the kernel."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION)
    if abi >= 1:
        return ok("landlock", f"ABI {abi}")
    reason = os.strerror(ctypes.get_errno())
    return warn("landlock", reason, "VMMs can't be confined by it", "Boot a kernel with lsm=…,landlock.")


def user_namespaces(_: Settings) -> Finding:
    """Whether this user can make a user namespace: tried, since several switches may forbid it."""
    check, remedy = "user namespaces", "Set kernel.unprivileged_userns_clone=1 and user.max_user_namespaces above 0."
    tool = shutil.which("unshare")
    if tool is None:
        limit = read_number("/proc/sys/user/max_user_namespaces") or 0
        return ok(check, f"up to {limit}") if limit else warn(check, "0 allowed", "VMMs run without one", remedy)
    tried = subprocess.run([tool, "--user", "--map-root-user", "true"], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return ok(check, "can be made")
    return warn(check, tried.stderr.strip().rpartition(": ")[2] or "refused", "VMMs run without one", remedy)


def cgroups(_: Settings) -> Finding:
    """The cgroup version, and whether this user may make groups in its own."""
    check = "cgroups"
    own = next((line for line in (read_text("/proc/self/cgroup") or "").splitlines() if line.startswith("0::")), None)
    if own is None or not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        remedy = "Boot with systemd.unified_cgroup_hierarchy=1."
        return warn(check, "no version 2", "machines can't be given limits of memory and processes", remedy)
    group = Path("/sys/fs/cgroup") / own.removeprefix("0::/")
    controllers = read_text(f"{group}/cgroup.controllers") or "no controllers"
    if not os.access(group, os.W_OK):
        remedy = "Run the daemon as a service with Delegate=yes."
        return warn(check, "version 2, not delegated", "machines can't be given limits", remedy)
    return ok(check, f"version 2, delegated: {controllers}")
