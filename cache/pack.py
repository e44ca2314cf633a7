"""Make an artifact of files: a kernel, an initrd, a stack of disk images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cache.compose import StoredBlob, compose
from cache.disk_tar import Below, DiskFile
from cache.kernel_file import check_kernel
from cache.store import Store
from spec import media_types
from spec.admission import check_supported
from spec.digest import Digest
from spec.errors import UnsafeDisk
from spec.manifest import Device, decode_manifest
from spec.reference import DEFAULT_TAG, Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequest:
    """What to pack. The same files and the same ``created`` make the same digest on every host."""

    name: Reference
    kernel: Path
    initrd: Path | None = None
    disks: tuple[Path, ...] = ()
    """Base first; each further one is a qcow2 whose backing file is the one before it."""
    args: str = ""
    memory_bytes: int | None = None
    cpus: int | None = None
    devices: tuple[Device, ...] = ()
    created: datetime | None = None
    """None: now."""
    author: str | None = None


def pack(store: Store, request: PackRequest) -> Digest:
    """Store the files as an artifact under its name; returns the digest of its OCI manifest.

    Everything that can be told from headers is checked before the first byte is copied. Raises FileMissing,
    InvalidInput, UnsafeDisk, InvalidManifest, UnsupportedManifest, SizeMismatch (a file changes meanwhile), NoSpace.
    """
    check_kernel(request.kernel)
    with ExitStack() as stack:
        disks = [stack.enter_context(DiskFile(path)) for path in request.disks]
        _check_stack(disks)
        added = stack.enter_context(store.adding())
        blobs: dict[Digest, StoredBlob] = {}

        def put(stored: tuple[Digest, int]) -> Digest:
            digest, size = stored
            added.append(digest)
            blobs[digest] = StoredBlob(size_bytes=size)
            return digest

        kernel = put(store.put_file(request.kernel))
        initrd = put(store.put_file(request.initrd)) if request.initrd else None
        layers: list[dict[str, Any]] = []
        below: Below | None = None
        for disk in disks:
            digest = put(disk.store(store, below))
            layers.append({"ref": digest, "format": disk.format, "size": disk.size_bytes})
            below = Below(digest, disk.format)
        manifest_bytes = _manifest(request, kernel, initrd, layers)
        manifest = decode_manifest(manifest_bytes)
        check_supported(manifest)
        added.append(store.put_bytes(manifest_bytes))
        return store.put_artifact(compose(manifest, manifest_bytes, blobs), request.name.local_name)


def _check_stack(disks: list[DiskFile]) -> None:
    below: DiskFile | None = None
    for disk in disks:
        header = disk.header
        if header is not None and header.dirty:
            raise UnsafeDisk(
                f"{disk.path} was not closed cleanly, or a machine is writing to it",
                remedy="Stop that machine, or repair the image with 'qemu-img check -r all'.",
                path=str(disk.path),
            )
        backing = header.backing_name if header is not None else None
        if below is None:
            if backing is not None:
                raise _wrong_backing(disk, f"is a diff on {backing!r}; the first --disk is the base")
        elif backing is None:
            raise _wrong_backing(disk, f"has no backing file; it has to be a diff on {below.path}")
        elif not _names(disk.path, backing, below.path):
            raise _wrong_backing(disk, f"is a diff on {backing!r}, not on {below.path}")
        elif _virtual_size(disk) < _virtual_size(below):
            raise _wrong_backing(disk, "is smaller than the disk it is a diff on")
        below = disk


def _names(disk: Path, backing: str, below: Path) -> bool:
    """Whether a backing name, relative to its image's directory, means that file."""
    return (disk.parent / backing).resolve() == below.resolve()


def _virtual_size(disk: DiskFile) -> int:
    return disk.header.virtual_size_bytes if disk.header is not None else disk.size_bytes


def _wrong_backing(disk: DiskFile, problem: str) -> UnsafeDisk:
    return UnsafeDisk(
        f"{disk.path} {problem}",
        remedy="Give the layers of a disk base first: --disk BASE --disk DIFF …, each the backing file of the next.",
        path=str(disk.path),
    )


def _manifest(request: PackRequest, kernel: Digest, initrd: Digest | None, layers: list[dict[str, Any]]) -> bytes:
    created = (request.created or datetime.now(UTC)).astimezone(UTC)
    document = {
        "schemaVersion": 1,
        "mediaType": media_types.MANIFEST,
        "name": request.name.name,
        "version": request.name.tag or DEFAULT_TAG,
        "kernel": {"ref": kernel, "args": request.args},
        "initrd": {"ref": initrd} if initrd else None,
        "diskLayers": layers,
        "devices": [msgspec.to_builtins(each) for each in request.devices],
        "metadata": dict(_present(
            author=request.author,
            created=created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            platform={"arch": "x86_64", "uefi": False},
        )),
        "runtimeHints": dict(_present(
            preferredRuntime=["generic"], defaultMemoryBytes=request.memory_bytes, defaultCpus=request.cpus
        )),
    }  # fmt: skip
    return msgspec.json.format(msgspec.json.encode(dict(_present(**document))), indent=2) + b"\n"


def _present(**fields: Any) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in fields.items() if value is not None)
