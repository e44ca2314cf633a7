"""What a pull does about signatures: fetch them, ask the policy before the blobs, and keep them with the artifact."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import structlog

from cache.artifact import Artifact
from cache.registry.client import Repository
from cache.store import Store
from cache.trust.gate import Gate
from cache.trust.local_signatures import keep_signatures, local_signatures
from cache.trust.remote_signatures import remote_signatures
from cache.trust.signature_manifest import SignatureManifest
from spec.digest import Digest
from spec.errors import OvmsError, PolicyRejected
from spec.reference import Reference

_log: Final = structlog.get_logger(__name__)


class PulledSignatures:
    """For one pull: :meth:`approve` is its ``approve``, :meth:`keep` comes when the artifact is in the store.

    An async context manager, which ends before the connections to registries do.
    """

    def __init__(
        self, store: Store, gate: Gate, reference: Reference, *, verify: bool, ram_snapshot: bool = True
    ) -> None:
        """``verify``: ask the gate before blobs are fetched. ``ram_snapshot``: whether its RAM may be used."""
        self._store, self._gate, self._reference = store, gate, reference
        self._verify, self._ram_snapshot = verify, ram_snapshot
        self._fetching: asyncio.Task[list[SignatureManifest]] | None = None

    async def approve(self, artifact: Artifact, repository: Repository) -> None:
        """Begin to fetch the signatures, and if the policy is to be asked, ask it.

        Raises PolicyRejected, InvalidPolicy; and RegistryError and its kinds only if signatures are needed to decide.
        """
        self._fetching = asyncio.create_task(remote_signatures(repository, artifact.digest), name="fetch signatures")
        if not self._verify or self._gate.policy.is_absent():
            return
        fetched = await self._fetching
        gate, digest = self._gate, artifact.digest
        with_ram = self._ram_snapshot and artifact.manifest.ram_snapshot is not None

        def ask() -> None:
            def signatures() -> list[SignatureManifest]:
                return [*fetched, *local_signatures(self._store, digest)]

            decision = gate.decide(
                digest, self._reference, ram_snapshot=with_ram, signatures=signatures, unpinned=artifact.unpinned
            )
            try:
                decision.require(str(self._reference))
            except PolicyRejected as error:
                _log.warning(
                    "not admitted to be pulled", artifact=str(self._reference), digest=digest, why=error.detail
                )
                raise

        await asyncio.to_thread(ask)

    async def keep(self, digest: Digest) -> int:
        """Store the signatures beside the artifact; how many manifests were new.

        What can't be had or stored is logged: the artifact is here, and without its signatures no policy that demands
        one will admit it.
        """
        if self._fetching is None:
            return 0
        try:
            if self._reference.tag is None:
                await asyncio.to_thread(self._gate.note_pulled, digest, self._reference.name)
            return await asyncio.to_thread(self._keep, digest, await self._fetching)
        except OvmsError as error:
            _log.warning("what tells of trust could not be had", artifact=str(self._reference), why=error.detail)
            return 0

    def _keep(self, digest: Digest, signatures: list[SignatureManifest]) -> int:
        return sum(keep_signatures(self._store, digest, self._reference.name, each) for each in signatures)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            with suppress(asyncio.CancelledError, OvmsError):
                await self._fetching
