"""A pool of parked clones in the daemon under test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from scripts.benchmarks.host import Host
from scripts.benchmarks.http import HttpError, request_bytes

_LIMIT_S = 600.0
_LOOK_S = 0.005


@dataclass(frozen=True, slots=True)
class Parked:
    """The pool of one artifact."""

    host: Host
    artifact: str
    count: int

    def full(self) -> None:
        """Return when all are parked and nothing is under way any more."""
        deadline = time.monotonic() + _LIMIT_S
        while True:
            pool = self._pool()
            if pool["trouble"]:
                raise HttpError(f"{self.artifact}: {pool['trouble']}")
            if (pool["parked"], pool["parking"]) == (self.count, 0):
                return
            if time.monotonic() > deadline:
                raise HttpError(f"{self.artifact}: {pool['parked']} of {self.count} parked after {_LIMIT_S:g} s")
            time.sleep(_LOOK_S)

    def _pool(self) -> dict[str, Any]:
        pools = self.host.control.call("GET", "/warm")["pools"]
        found: dict[str, Any] = next(each for each in pools if each["manifest"] == self.artifact)
        return found


@contextmanager
def parked(host: Host, artifact: str, runtime: str, count: int) -> Iterator[Parked]:
    """So many clones, parked; dissolved and gone at the end."""
    host.control.call("POST", "/warm", {"manifest": artifact, "count": count, "runtime": runtime})
    pool = Parked(host, artifact, count)
    try:
        pool.full()
        yield pool
    finally:
        host.control.call("DELETE", f"/warm?manifest={quote(artifact, safe='')}")
        deadline = time.monotonic() + _LIMIT_S
        while 'ovms_instances{state="parked"} 0.0' not in _metrics(host) and time.monotonic() < deadline:
            time.sleep(10 * _LOOK_S)


def _metrics(host: Host) -> str:
    _status, content = host.control.exchange(request_bytes("GET", "/metrics"))
    return content.decode()
