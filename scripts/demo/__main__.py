"""Make the demo artifact and put it into the local store; prints its digest. Run by scripts/demo-image."""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from scripts.demo.build import KERNEL_ARGS, DemoFiles, default_cache, demo_files
from scripts.demo.packages import PackageError


def pack_command(files: DemoFiles, tag: str) -> list[str]:
    """The ``ovm pack`` that makes the artifact: the same files give the same digest."""
    made_at = datetime.fromtimestamp(int(files.kernel.stat().st_mtime), UTC).replace(tzinfo=None).isoformat()
    disks = [word for disk in files.disks for word in ("--disk", str(disk))]
    return [
        *("ovm", "pack", "-t", tag, "--kernel", str(files.kernel), "--initrd", str(files.initrd), *disks),
        *("--args", KERNEL_ARGS, "--memory", "256M", "--cpus", "1", "--ivshmem", "mmio0:64K", "--created", made_at),
    ]


def main() -> int:
    """Exit code 1, with a sentence on stderr, if a package cannot be had."""
    parser = argparse.ArgumentParser(prog="scripts/demo-image", description=__doc__)
    parser.add_argument("-t", "--tag", default="demo:latest", help="its name in the store (default: demo:latest)")
    parser.add_argument("--root", help="the store (default: that of ovm)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the files are kept (%(default)s)")
    arguments = parser.parse_args()
    try:
        files = demo_files(arguments.cache)
    except PackageError as error:
        sys.stderr.write(f"demo-image: {error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        detail = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else ""
        sys.stderr.write(f"demo-image: {' '.join(map(str, error.cmd))} failed\n{detail}")
        return 1
    sys.stderr.write(f"kernel, initrd and disk layers of {files.kernel_package}: {files.kernel.parent}\n")
    command = pack_command(files, arguments.tag)
    return subprocess.run([*command, *(["--root", arguments.root] if arguments.root else [])], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
