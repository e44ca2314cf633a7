"""Make the demo artifact and put it into the local store; prints its digest. Run by scripts/demo-image."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from scripts.demo.build import default_cache, demo_files
from scripts.demo.packages import PackageError
from scripts.demo.store import pack_demo


def main() -> int:
    """Exit code 1, with a sentence on stderr, if a package cannot be had."""
    parser = argparse.ArgumentParser(prog="scripts/demo-image", description=__doc__)
    parser.add_argument("-t", "--tag", default="demo:latest", help="its name in the store (default: demo:latest)")
    parser.add_argument("--root", help="the store (default: that of ovm)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the files are kept (%(default)s)")
    arguments = parser.parse_args()
    try:
        files = demo_files(arguments.cache)
        digest = pack_demo(files, arguments.tag, root=arguments.root)
    except PackageError as error:
        sys.stderr.write(f"demo-image: {error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
        sys.stderr.write(f"demo-image: {' '.join(map(str, error.cmd))} failed:\n{said}")
        return 1
    sys.stderr.write(f"kernel, initrd and disk layers of {files.kernel_package}: {files.kernel.parent}\n")
    print(digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
