"""What OVMS v0.1 and this implementation refuse of a well-formed manifest (RFC §9), each with the limit's name."""

from __future__ import annotations

from spec.errors import InvalidManifest, UnsupportedManifest
from spec.manifest import Device, Manifest
from spec.sizes import PAGE_BYTES, is_power_of_two

_GPU_HINTS = ("gpu", "vfio", "vga", "nvidia", "pci-passthrough")
_DISK_FORMATS = ("qcow2", "raw")


def check_supported(manifest: Manifest) -> None:
    """Raise UnsupportedManifest (or InvalidManifest for contradictions) for the first limit that is broken."""
    platform = manifest.metadata.platform
    if platform.arch not in ("x86_64", "amd64"):
        raise _limit("Linux x86_64 only", f"arch {platform.arch!r}", "$.metadata.platform.arch")
    if platform.uefi:
        raise _limit("BIOS boot only, UEFI comes with v0.2", "uefi true", "$.metadata.platform.uefi")
    for index, layer in enumerate(manifest.disk_layers):
        path = f"$.diskLayers[{index}].format"
        if layer.format not in _DISK_FORMATS:
            raise _limit("disk formats qcow2 and raw", f"format {layer.format!r}", path)
        if index > 0 and layer.format != "qcow2":
            raise InvalidManifest(f"a diff layer must be qcow2, not {layer.format!r}, at {path}", path=path)
    snapshot = manifest.ram_snapshot
    if snapshot is not None and snapshot.compression != "lz4":
        raise _limit("ramSnapshot compression lz4", repr(snapshot.compression), "$.ramSnapshot.compression")
    names: set[str] = set()
    for index, device in enumerate(manifest.devices):
        _check_device(device, f"$.devices[{index}]")
        if device.name in names:
            raise InvalidManifest(f"two devices are named {device.name!r}", path=f"$.devices[{index}].name")
        names.add(device.name)


def _check_device(device: Device, path: str) -> None:
    if any(hint in device.type.lower() for hint in _GPU_HINTS):
        raise _limit("no GPU passthrough, it comes with v0.2", f"device type {device.type!r}", f"{path}.type")
    if device.type != "ivshmem":
        raise _limit("devices of type ivshmem", f"device type {device.type!r}", f"{path}.type")
    if device.size is None:
        raise InvalidManifest(f"an ivshmem device needs a size, at {path}", path=f"{path}.size")
    if not is_power_of_two(device.size) or device.size < PAGE_BYTES:
        raise InvalidManifest(
            f"an ivshmem device is a PCI BAR: its size must be a power of two of at least {PAGE_BYTES} bytes, "
            f"not {device.size}",
            path=f"{path}.size",
        )


def _limit(limit: str, found: str, path: str) -> UnsupportedManifest:
    return UnsupportedManifest(f"{found} at {path}: OVMS v0.1 supports {limit}", path=path, limit=limit)
