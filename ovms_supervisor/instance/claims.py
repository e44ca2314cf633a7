"""What an instance needs of the store, from the moment it exists until it is removed, whether or not a daemon runs."""

from __future__ import annotations

from collections.abc import Iterable

from cache.store import Store
from ovms_supervisor.layout import InstancePaths
from spec.digest import Digest


def claim(store: Store, paths: InstancePaths, digests: Iterable[Digest]) -> None:
    """Keep artifacts for as long as the directory of the instance exists, in place of those before (blocks)."""
    store.claim(_owner(paths), paths.directory, digests)


def disclaim(store: Store, paths: InstancePaths) -> None:
    """The directory is gone: say so now, rather than have it found out (blocks)."""
    store.disclaim(_owner(paths))


def _owner(paths: InstancePaths) -> str:
    return f"instance-{paths.directory.name}"
