"""What an operator wants to be kept parked, and the file that lets it outlive the daemon."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from cache.durable import write_durably
from cache.temp_area import TempArea
from ovms_supervisor.pool.names import pinned
from spec.api import Overrides, RuntimeWish, StartRequest
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest

_log = structlog.get_logger(__name__)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Keep clones of an artifact parked: ``usual`` at first, then by demand between ``least`` and ``most``."""

    reference: str
    """As the store lists it: ``name:tag``, or with a digest."""
    usual: int
    least: int
    most: int
    runtime: RuntimeWish | None = None

    def request(self, digest: Digest) -> StartRequest:
        """What starts one of its clones; by digest, whatever the reference comes to mean meanwhile.

        It keeps its name, by which the policy goes.
        """
        return StartRequest(manifest=pinned(self.reference, digest), overrides=Overrides(runtime=self.runtime))


def none_of(reference: str) -> Order:
    """Overrules an order of the configuration."""
    return Order(reference=reference, usual=0, least=0, most=0)


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    version: int = 1
    orders: list[Order]


def read(path: Path) -> list[Order]:
    """The orders that were in force (blocks). A file that can't be read is as good as none, and logged."""
    try:
        return from_json(path.read_bytes(), _Document).orders
    except FileNotFoundError:
        return []
    except (OSError, NotDecodable) as error:
        _log.warning("the orders of parked clones are lost", path=str(path), why=str(error))
        return []


def write(path: Path, orders: Iterable[Order], temp: TempArea) -> None:
    """Replace the file (blocks). Raises NoSpace, PermissionMissing."""
    write_durably(path, msgspec.json.encode(_Document(orders=list(orders))) + b"\n", temp)
