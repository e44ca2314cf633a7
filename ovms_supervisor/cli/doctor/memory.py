"""Memory: how much, where images go, whether it can be locked."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from typing import TYPE_CHECKING

from ovms_supervisor.cli.doctor.finding import Finding, fail, ok, read_number, read_text, warn
from ovms_supervisor.config import host
from spec.sizes import GIB, KIB, MIB, format_size

if TYPE_CHECKING:
    from ovms_supervisor.config import Settings

_MLOCK_TRIAL_BYTES = MIB
_CAP_IPC_LOCK = 14


def memory(_: Settings) -> Finding:
    """How much there is and how much of it is free."""
    total, available = host.memory_total_bytes(), host.meminfo()["MemAvailable"]
    figure = f"{format_size(available)} of {format_size(total)} available"
    if available < GIB // 2:
        return warn("memory", figure, "hardly room for a machine", "Stop something, or add memory.")
    return ok("memory", figure)


def image_dir(settings: Settings) -> Finding:
    """The tmpfs where RAM images go: its kind, size, free space, and whether this user can write there."""
    check, path = "image directory", settings.image_dir
    found = host.filesystem_of(path)
    figure = f"{path}: {found.kind}, {format_size(found.free_bytes)} of {format_size(found.size_bytes)} free"
    if not found.is_tmpfs:
        why = "without a tmpfs the RAM of machines would be written to a disk"
        return fail(check, figure, why, "Set image_dir to a directory on a tmpfs, such as /dev/shm/ovms.")
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        return fail(check, figure, f"this user can't write to {existing}", "Set image_dir to a directory of your own.")
    if found.size_bytes < settings.image_budget_bytes:
        why = f"smaller than the image budget of {format_size(settings.image_budget_bytes)}"
        remedy = (
            f"mount -o remount,size={settings.image_budget_bytes // KIB}k {found.mount_point}, or lower image_budget"
        )
        return warn(check, figure, why, remedy)
    return ok(check, figure)


def huge_pages(settings: Settings) -> Finding:
    """Whether the tmpfs gives huge pages: first touch and population of RAM are many times faster with them."""
    found = host.filesystem_of(settings.image_dir)
    option = next((each for each in found.options.split(",") if each.startswith("huge=")), "huge=never")
    policy = read_text("/sys/kernel/mm/transparent_hugepage/shmem_enabled") or "unknown"
    chosen = policy.partition("[")[2].partition("]")[0] or policy
    if option not in ("huge=never", "huge=deny") or chosen == "force":
        return ok("huge pages", f"{option}, shmem_enabled={chosen}")
    remedy = f"huge_pages = true, for a tmpfs of their own (root); or mount -o remount,huge=advise {found.mount_point}"
    return warn("huge pages", f"{option}, shmem_enabled={chosen}", "loading images takes longer", remedy)


def memory_lock(settings: Settings) -> Finding:
    """A real mlock of 1 MiB, then the limit."""
    check = "memory lock"
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    capable = has_capability(_CAP_IPC_LOCK)
    limit = "unlimited" if capable or soft == resource.RLIM_INFINITY else format_size(soft)
    reason = _try_mlock()
    remedy = "LimitMEMLOCK=infinity in the unit, or 'memlock unlimited' in limits.conf; or CAP_IPC_LOCK."
    if reason is not None:
        why = "images can't be locked; the kernel may swap or drop them"
        return warn(check, f"{reason} (limit {limit})", why, remedy)
    if limit != "unlimited" and soft < settings.image_budget_bytes:
        if hard == resource.RLIM_INFINITY or hard >= settings.image_budget_bytes:
            remedy = "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit."
        return warn(check, f"1 MiB locked, limit {limit}", "larger images can't be locked", remedy)
    return ok(check, f"1 MiB locked, limit {limit}")


def _try_mlock() -> str | None:
    """None if it worked, else what the kernel said."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, _MLOCK_TRIAL_BYTES) as area:
        buffer = (ctypes.c_char * _MLOCK_TRIAL_BYTES).from_buffer(area)
        address, length = ctypes.c_void_p(ctypes.addressof(buffer)), ctypes.c_size_t(_MLOCK_TRIAL_BYTES)
        reason = None if libc.mlock(address, length) == 0 else os.strerror(ctypes.get_errno())
        libc.munlock(address, length)
        del buffer  # or the map could not be closed
    return reason


def has_capability(number: int) -> bool:
    """Whether the effective set has it."""
    status = read_text("/proc/self/status") or ""
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> number & 1)


def map_count(_: Settings) -> Finding:
    """vm.max_map_count; a VMM needs few, but some hosts set it very low."""
    count = read_number("/proc/sys/vm/max_map_count") or 0
    if count < 65530:
        return warn("max_map_count", str(count), "large machines may not start", "sysctl vm.max_map_count=262144")
    return ok("max_map_count", str(count))
