"""Kernel modules: which ones are needed, in the order in which they can be loaded."""

from __future__ import annotations

import lzma
from pathlib import Path

import zstandard

WANTED = ("virtio_pci", "virtio_blk", "ext4", "button", "evdev")
"""The disk, its file system, and the power button."""


def load_order(modules: Path, wanted: tuple[str, ...] = WANTED) -> dict[str, bytes]:
    """The wanted modules and what they depend on, dependencies first: file name → uncompressed module.

    ``modules`` is ``/lib/modules/VERSION`` of the kernel package. What is built into the kernel is left out.
    Raises FileNotFoundError for a module that is neither a file nor built in.
    """
    files = {_name(path.name): path for path in modules.rglob("*.ko*")}
    built_in = {_name(Path(line).name) for line in (modules / "modules.builtin").read_text().splitlines()}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in built_in or f"{name}.ko" in found:
            return
        if name not in files:
            raise FileNotFoundError(f"the kernel package has no module {name}")
        content = _read(files[name])
        for dependency in _dependencies(content):
            add(dependency)
        found[f"{name}.ko"] = content

    for name in wanted:
        add(name)
    return found


def _name(file_name: str) -> str:
    return file_name.partition(".ko")[0].replace("-", "_")


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def _dependencies(module: bytes) -> list[str]:
    """The modules named in the ``.modinfo`` section (depmod's own source; packages come without modules.dep)."""
    _, found, rest = module.partition(b"\0depends=")
    names = rest.partition(b"\0")[0].decode() if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]
