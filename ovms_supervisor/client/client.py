"""All that the API does, as methods."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import NoneType, TracebackType
from typing import Literal, Self
from urllib.parse import quote

import msgspec

from ovms_supervisor.client.connection import Connection, decode_line
from spec.api import (
    Event,
    Health,
    ImageInfo,
    ImageList,
    InjectContent,
    InjectReply,
    InjectRequest,
    InstanceList,
    InstanceRequest,
    LogEnd,
    LogGap,
    LogLine,
    MmioWrite,
    Overrides,
    PruneReply,
    PruneRequest,
    PullReply,
    PullRequest,
    PushReply,
    PushRequest,
    Readiness,
    SnapshotReply,
    SnapshotRequest,
    StartReply,
    StartRequest,
    StatusReply,
    StopRequest,
    Version,
    WarmList,
    WarmPool,
    WarmRequest,
)
from spec.decoding import from_json
from spec.instance import InstanceInfo, InstanceState

ANSWER_S = 30.0
"""What a daemon may take for a call that starts nothing long."""
WAIT_S = 120.0
"""What ``wait`` waits for unless told otherwise."""
_JSON_LINES = "application/x-ndjson"


class Client:
    """An async context manager; may be shared by any number of tasks of one event loop.

    Every method raises the class of ``spec.errors`` that the daemon named, with its remedy and fields, or
    DaemonUnreachable. Instances are named by id, unique prefix of at least 4 characters, or name.
    """

    def __init__(self, socket: str | os.PathLike[str]) -> None:
        self._connection = Connection(Path(socket))

    async def __aenter__(self) -> Self:
        self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def start(
        self,
        request: StartRequest | str,
        overrides: Overrides | None = None,
        *,
        wait: Literal["running"] | None = None,
        timeout_s: float | None = None,
    ) -> StartReply:
        """Start a manifest. With ``wait`` the reply has the info, and a start that fails raises its error.

        If it neither runs nor failed after ``timeout_s`` (120), the reply's status says ``starting``.
        """
        if isinstance(request, str):
            request = StartRequest(manifest=request, overrides=overrides or Overrides())
        query, limit_s = _waiting(wait, timeout_s)
        return await self._connection.call("POST", "/start", StartReply, body=request, query=query, limit_s=limit_s)

    async def pull(
        self,
        reference: str,
        *,
        policy: Literal["missing", "always"] = "always",
        wait: bool = True,
        resident: bool = False,
        verify: bool | None = None,
    ) -> PullReply:
        """Have an artifact of a registry in the daemon's store; takes as long as it takes, unless without ``wait``.

        With ``resident`` its RAM image is made in memory while it arrives: a start then need not wait for it.
        ``verify``: whether the policy is asked before blobs are fetched; None: as the daemon is configured.
        """
        body = PullRequest(reference=reference, policy=policy, wait=wait, resident=resident, verify=verify)
        return await self._connection.call("POST", "/pull", PullReply, body=body, limit_s=None if wait else ANSWER_S)

    async def push(self, reference: str, *, source: str | None = None, wait: bool = True) -> PushReply:
        """Store an artifact of the daemon's store (``source``, else the one of that name) in a registry."""
        body = PushRequest(reference=reference, source=source, wait=wait)
        return await self._connection.call("POST", "/push", PushReply, body=body, limit_s=None if wait else ANSWER_S)

    async def stop(
        self,
        instance_id: str,
        *,
        timeout_s: float | None = None,
        wait: Literal["stopped"] | None = None,
        wait_s: float | None = None,
    ) -> str:
        """Stop an instance and return its status. ``timeout_s`` is the guest's, to power itself off."""
        body = StopRequest(instance_id=instance_id, timeout_s=timeout_s)
        query, limit_s = _waiting(wait, wait_s if wait_s is not None else WAIT_S + (timeout_s or 0))
        reply = await self._connection.call("POST", "/stop", StatusReply, body=body, query=query, limit_s=limit_s)
        return reply.status

    async def pause(self, instance_id: str) -> str:
        """Let the vCPUs stand still; returns the status."""
        return await self._change("/pause", instance_id)

    async def resume(self, instance_id: str) -> str:
        """Let the vCPUs go on; returns the status."""
        return await self._change("/resume", instance_id)

    async def remove(self, instance_id: str, *, force: bool = False) -> None:
        """Forget an ended instance; ``force`` ends a live one first."""
        await self._connection.call(
            "DELETE", f"/instances/{quote(instance_id, safe='')}", NoneType, query={"force": force}
        )

    async def snapshot(self, instance_id: str, tag: str, *, push: bool | None = None) -> SnapshotReply:
        """Make an artifact of an instance. Takes as long as storing it takes; the guest stands still for less.

        ``push``: to the registry of its name; None: if ``tag`` names one.
        """
        body = SnapshotRequest(instance_id=instance_id, tag=tag, push=push)
        return await self._connection.call("POST", "/snapshot", SnapshotReply, body=body)

    async def inject(self, instance_id: str, writes: Sequence[MmioWrite]) -> list[bytes]:
        """Write to and read from shared-memory devices; returns what the reads gave, in order."""
        body = InjectRequest(instance_id=instance_id, content=InjectContent(mmio=list(writes)))
        reply = await self._connection.call("POST", "/inject", InjectReply, body=body, limit_s=ANSWER_S)
        return reply.read

    async def status(self, instance_id: str) -> InstanceInfo:
        """All about an instance."""
        path = f"/status/{quote(instance_id, safe='')}"
        return await self._connection.call("GET", path, InstanceInfo, limit_s=ANSWER_S)

    async def warm(
        self,
        request: WarmRequest | str,
        count: int = 0,
        *,
        wait: Literal["parked"] | None = None,
        timeout_s: float | None = None,
    ) -> WarmPool:
        """Keep clones of a manifest parked; ``wait`` until they are, or something keeps them from being so."""
        if isinstance(request, str):
            request = WarmRequest(manifest=request, count=count)
        query, limit_s = _waiting(wait, timeout_s)
        return await self._connection.call("POST", "/warm", WarmPool, body=request, query=query, limit_s=limit_s)

    async def pools(self) -> list[WarmPool]:
        """The pools of parked clones."""
        return (await self._connection.call("GET", "/warm", WarmList, limit_s=ANSWER_S)).pools

    async def dissolve(self, manifest: str) -> None:
        """Keep no clones of an artifact any more; those that are parked end in the background."""
        await self._connection.call("DELETE", "/warm", NoneType, query={"manifest": manifest}, limit_s=ANSWER_S)

    async def instances(
        self, *, everything: bool = True, status: InstanceState | None = None, parked: bool = False
    ) -> list[InstanceInfo]:
        """Instances, oldest first: all, only those that live, or only those in one state; parked clones if wanted."""
        query = {"all": everything, "status": status, "parked": parked}
        reply = await self._connection.call("GET", "/instances", InstanceList, query=query, limit_s=ANSWER_S)
        return reply.instances

    async def logs(
        self,
        instance_id: str,
        *,
        follow: bool = False,
        tail: int | str | None = None,
        since: str | None = None,
        until: str | None = None,
        timestamps: bool = False,
    ) -> AsyncGenerator[bytes, None]:
        """The console as the guest's own bytes, in chunks that need not end where lines do."""
        query = {
            "follow": follow, "tail": tail, "since": since, "until": until, "timestamps": timestamps, "format": "plain"
        }  # fmt: skip
        async with self._connection.stream(_logs_path(instance_id), query, accept="text/plain") as reply:
            async for chunk in reply.pieces():
                yield chunk

    async def log_lines(
        self,
        instance_id: str,
        *,
        follow: bool = False,
        tail: int | str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> AsyncGenerator[LogLine | LogGap | LogEnd, None]:
        """The console line by line, with numbers, times, gaps, and the end of the instance."""
        query = {"follow": follow, "tail": tail, "since": since, "until": until, "format": "json"}
        async with self._connection.stream(_logs_path(instance_id), query, accept=_JSON_LINES) as reply:
            async for line in reply.lines():
                yield _log_item(line)

    async def events(self, *, since: int | None = None) -> AsyncGenerator[Event, None]:
        """What happens from now on; with ``since`` first what happened after the event of that number."""
        async with self._connection.stream("/events", {"since": since}, accept=_JSON_LINES) as reply:
            async for line in reply.lines():
                yield decode_line(line, Event)

    async def images(self) -> list[ImageInfo]:
        """The RAM images that are resident, the least recently used first."""
        return (await self._connection.call("GET", "/images", ImageList, limit_s=ANSWER_S)).images

    async def free_image(self, digest: str) -> None:
        """Give the memory of an image back. Raises BlobNotFound, InUse."""
        await self._connection.call("DELETE", f"/images/{quote(digest, safe='')}", NoneType, limit_s=ANSWER_S)

    async def prune(self, *, everything: bool = False, dry_run: bool = False) -> PruneReply:
        """Remove what nobody refers to; ``everything``: also what could be fetched or made again."""
        body = PruneRequest(all=everything, dry_run=dry_run)
        return await self._connection.call("POST", "/prune", PruneReply, body=body)

    async def version(self) -> Version:
        """The daemon's versions."""
        return await self._connection.call("GET", "/version", Version, limit_s=ANSWER_S)

    async def health(self) -> Health:
        """That the daemon answers."""
        return await self._connection.call("GET", "/healthz", Health, limit_s=ANSWER_S)

    async def readiness(self) -> Readiness:
        """Whether starts can succeed, or why not."""
        return await self._connection.call("GET", "/readyz", Readiness, limit_s=ANSWER_S, accept_status=(503,))

    async def metrics(self) -> str:
        """The figures for Prometheus, as text."""
        return (await self._connection.call("GET", "/metrics", bytes, limit_s=ANSWER_S)).decode()

    async def openapi(self) -> str:
        """The OpenAPI document that the daemon was built with."""
        return (await self._connection.call("GET", "/openapi.yaml", bytes, limit_s=ANSWER_S)).decode()

    async def _change(self, path: str, instance_id: str) -> str:
        body = InstanceRequest(instance_id=instance_id)
        reply = await self._connection.call("POST", path, StatusReply, body=body, limit_s=ANSWER_S)
        return reply.status


def _waiting(wait: str | None, timeout_s: float | None) -> tuple[dict[str, str | float | None], float]:
    """The query for waiting, and how long the client then waits for the reply."""
    if wait is None:
        return {}, ANSWER_S
    timeout_s = WAIT_S if timeout_s is None else timeout_s
    return {"wait": wait, "timeout": timeout_s}, timeout_s + ANSWER_S


def _logs_path(instance_id: str) -> str:
    return f"/logs/{quote(instance_id, safe='')}"


def _log_item(line: bytes) -> LogLine | LogGap | LogEnd:
    """Which of the three a JSON line is shows in its fields."""
    fields = from_json(line, dict[str, msgspec.Raw])
    if "lost" in fields:
        return decode_line(line, LogGap)
    if "end" in fields:
        return decode_line(line, LogEnd)
    return decode_line(line, LogLine)
