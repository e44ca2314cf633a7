"""The files of the demo artifact: kernel, initrd and two disk layers, made once per kernel and cached."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.demo import cpio, disk, modules, packages

GUEST = Path(__file__).with_name("guest")
INITRD_APPLETS = ("sh", "insmod", "mount", "poweroff", "sleep", "switch_root")
KERNEL_ARGS = "console=ttyS0 quiet panic=-1 random.trust_cpu=on cryptomgr.notests audit=0"


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """What ``ovm pack`` is given, and the package that the kernel is from."""

    kernel: Path
    initrd: Path
    disks: tuple[Path, Path]
    kernel_package: str


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/ovms/demo``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ovms" / "demo"


def demo_files(cache: Path) -> DemoFiles:
    """Make the files, or take them from the cache. Raises PackageError, CalledProcessError."""
    kernel_package = packages.kernel_package()
    here = Path(__file__).parent
    sources = [*(here / f"{name}.py" for name in ("build", "cpio", "disk", "modules")), *sorted(GUEST.iterdir())]
    key = hashlib.sha256()
    for name in packages.file_names(kernel_package, "busybox-static"):
        key.update(name.encode() + b"\0")
    for source in sources:
        key.update(source.read_bytes() + b"\0")
    finished = cache / key.hexdigest()[:16]
    if not finished.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as name:
            made = Path(name) / "made"
            made.mkdir()
            _make(kernel_package, Path(name), made)
            _publish(made, finished)
    return DemoFiles(
        kernel=finished / "vmlinuz",
        initrd=finished / "initrd",
        disks=(finished / "base.qcow2", finished / "diff.qcow2"),
        kernel_package=kernel_package,
    )


def _make(kernel_package: str, scratch: Path, out: Path) -> None:
    tree = scratch / "kernel"
    packages.unpack(kernel_package, tree)
    if not any(tree.glob("**/modules.builtin")):  # Ubuntu has the modules in a package of their own
        packages.unpack(kernel_package.replace("linux-image-", "linux-modules-"), scratch / "modules")
    packages.unpack("busybox-static", scratch / "busybox")
    busybox = next(path for path in (scratch / "busybox").glob("**/bin/busybox") if path.is_file())
    (kernel,) = tree.glob("boot/vmlinuz-*")
    (builtin,) = scratch.glob("**/modules.builtin")

    shutil.copyfile(kernel, out / "vmlinuz")
    (out / "initrd").write_bytes(_initrd(busybox.read_bytes(), modules.load_order(builtin.parent)))
    disk.make_layers(busybox, GUEST, out)


def _initrd(busybox: bytes, ordered: dict[str, bytes]) -> bytes:
    entries = [cpio.directory(name) for name in ("bin", "dev", "modules", "proc", "root", "sys")]
    entries.append(cpio.file("bin/busybox", busybox, executable=True))
    entries += [cpio.symlink(f"bin/{applet}", "busybox") for applet in INITRD_APPLETS]
    entries.append(cpio.file("init", (GUEST / "initrd-init").read_bytes(), executable=True))
    entries.append(cpio.file("modules/order", "".join(f"{name}\n" for name in ordered).encode()))
    entries += [cpio.file(f"modules/{name}", content) for name, content in ordered.items()]
    return cpio.archive(entries)


def _publish(made: Path, finished: Path) -> None:
    try:
        made.rename(finished)
    except OSError:
        if not finished.is_dir():  # another process was faster: its files are the same
            raise
