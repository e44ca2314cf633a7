"""Where things are kept when nobody says where, for root and for an ordinary user; and that the place is ours alone."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from ovms_supervisor.config.host import filesystem_of
from spec.errors import PermissionMissing

_SHARED_MEMORY = Path("/dev/shm")


def default_config_file() -> Path:
    """``/etc/ovms/ovms.toml`` for root, else ``$XDG_CONFIG_HOME/ovms/ovms.toml``; it need not exist."""
    if os.geteuid() == 0:
        return Path("/etc/ovms/ovms.toml")
    from platformdirs import user_config_path  # deferred: 20 ms of imports that root, and a given path, don't need

    return user_config_path("ovms") / "ovms.toml"


def default_root() -> Path:
    """``/var/lib/ovms`` for root, else ``$XDG_DATA_HOME/ovms``."""
    if os.geteuid() == 0:
        return Path("/var/lib/ovms")
    from platformdirs import user_data_path

    return user_data_path("ovms")


def default_run_dir(environ: Mapping[str, str]) -> tuple[Path, str]:
    """The directory and why: ``/run/ovms`` for root, ``$XDG_RUNTIME_DIR/ovms``, or ``/tmp/ovms-<uid>``."""
    uid = os.geteuid()
    if uid == 0:
        return Path("/run/ovms"), ""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return Path(runtime) / "ovms", "XDG_RUNTIME_DIR"
    if Path(f"/run/user/{uid}").is_dir():
        return Path(f"/run/user/{uid}/ovms"), ""
    return Path(f"/tmp/ovms-{uid}"), "no XDG_RUNTIME_DIR"


def default_image_dir(run_dir: Path, budget_bytes: int) -> tuple[Path, str]:
    """The directory for RAM images and why: a tmpfs that can hold ``budget_bytes``, best in the run directory.

    Of /dev/shm each pair of user and run directory gets a directory of its own. Where no tmpfs is large enough, the
    larger one is taken; where there is none, the run directory, which the daemon then reports.
    """
    near = run_dir / "images"
    near_fs = filesystem_of(run_dir)
    if near_fs.is_tmpfs and near_fs.size_bytes >= budget_bytes:
        return near, "run_dir is a tmpfs"
    tag = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:8]
    shared = _SHARED_MEMORY / f"ovms-{os.geteuid()}-{tag}"
    shared_fs = filesystem_of(_SHARED_MEMORY)
    if not shared_fs.is_tmpfs or not os.access(_SHARED_MEMORY, os.W_OK):
        return near, "no other tmpfs" if near_fs.is_tmpfs else "no tmpfs found"
    if not near_fs.is_tmpfs:
        return shared, "run_dir is not tmpfs"
    if shared_fs.size_bytes > near_fs.size_bytes:
        return shared, "the tmpfs of run_dir is too small"
    return near, "run_dir is the largest tmpfs"


def secure_directory(path: Path, mode: int = 0o700) -> None:
    """Make the directory, or check that the existing one is ours alone (others can neither replace nor fill it).

    For directories in places where anybody may make one (/tmp, /dev/shm). Raises PermissionMissing; blocks (disk).
    """
    try:
        path.mkdir(mode=mode, parents=True)
        path.chmod(mode)  # the umask took its part
    except FileExistsError:
        check_ours(path)
        present = stat.S_IMODE(path.stat().st_mode)
        if present & mode != mode:  # made when nobody else was to enter it
            path.chmod(present | mode)
    except PermissionError as error:
        raise PermissionMissing(
            f"{path} cannot be made: {error.strerror}",
            remedy="Choose other directories with --root and --run-dir, or run as root.",
        ) from error


def check_ours(path: Path) -> None:
    """Raise PermissionMissing unless ``path`` is a real directory of this user that only this user can write to.

    A missing directory is fine: nobody can have tampered with it.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        problem = "is not a directory"
    elif status.st_uid != os.geteuid():
        problem = f"belongs to user {status.st_uid}, not to {os.geteuid()}"
    elif status.st_mode & 0o022:
        problem = f"can be written to by others (mode {stat.S_IMODE(status.st_mode):04o})"
    else:
        return
    raise PermissionMissing(
        f"{path} {problem}", remedy="Remove it, or choose another directory with --run-dir.", path=str(path)
    )
