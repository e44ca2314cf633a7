"""The demo's files as an artifact in a store."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime

from scripts.demo.build import KERNEL_ARGS, DemoFiles


def pack_demo(
    files: DemoFiles, tag: str, *, root: str | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run ``ovm pack`` and return the digest; the same files give the same one. Raises CalledProcessError."""
    made_at = datetime.fromtimestamp(int(files.kernel.stat().st_mtime), UTC).replace(tzinfo=None).isoformat()
    command = ["ovm", "pack", "-t", tag, "--kernel", str(files.kernel), "--initrd", str(files.initrd)]
    for disk in files.disks:
        command += ["--disk", str(disk)]
    command += ["--args", KERNEL_ARGS, "--memory", "256M", "--cpus", "1", "--ivshmem", "mmio0:64K"]
    command += ["--created", made_at, *(["--root", root] if root else [])]
    packed = subprocess.run(command, check=True, text=True, capture_output=True, env=environment)
    return packed.stdout.strip()
