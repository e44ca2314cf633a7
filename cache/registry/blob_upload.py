"""Bringing a blob to a repository with as few bytes as possible: not at all, mounted, or sent and resumed."""

from __future__ import annotations

import asyncio
from typing import Final, Literal, NoReturn

from cache.registry.body import Source, check_source
from cache.registry.client import Repository
from cache.registry.progress import BlobProgress, Report, no_report
from cache.registry.session import PUSH
from cache.registry.upload import Interrupted, Sizes, Upload, begin
from spec.errors import AuthenticationFailed, RegistryError, RegistryRefused, RegistryUnreachable
from spec.oci import Descriptor

Outcome = Literal["there", "mounted", "done"]


async def push_blob(
    repository: Repository,
    blob: Descriptor,
    source: Source,
    *,
    mount_from: str | None = None,
    report: Report = no_report,
    sizes: Sizes | None = None,
) -> Outcome:
    """See to it that the repository has the blob; ``mount_from``: another of that registry that is said to have it.

    Sent in chunks if it is large; after a broken connection it goes on from where the registry says.
    Raises RegistryError and its kinds, BlobNotFound, SizeMismatch, DigestMismatch.
    """
    outcome = await _Push(repository, blob, source, report, sizes or Sizes()).run(mount_from)
    report(BlobProgress(blob, outcome, blob.size))
    return outcome


class _Push:
    def __init__(self, repository: Repository, blob: Descriptor, source: Source, report: Report, sizes: Sizes) -> None:
        self._repository: Final = repository
        self._blob: Final = blob
        self._source: Final = source
        self._sizes = sizes
        self._report = report
        self._failed = 0
        self._best = 0
        self._restarts = 0
        self._resumed = False

    async def run(self, mount_from: str | None) -> Outcome:
        if await self._is_there():
            return "there"
        await asyncio.to_thread(check_source, self._source, self._blob)
        upload = await self._begin_or_mount(None if mount_from == self._repository.name else mount_from)
        if upload is None:
            return "mounted"
        self._moved(0)
        try:
            while not upload.finished:
                upload = await self._step(upload)
        except BaseException:
            await upload.give_up()
            raise
        return "done"

    async def _step(self, upload: Upload) -> Upload:
        """One chunk, or the end. Returns the upload to go on with."""
        try:
            await upload.advance(self._source, self._moved)
        except (Interrupted, RegistryUnreachable) as error:
            wait_s = self._wait_s(error)
            await asyncio.sleep(wait_s or 0)
            if upload.is_ending and await self._is_there():
                upload.finished = True  # it was the reply that got lost
            elif wait_s is None:
                _give_up(error)
            else:
                upload = await self._go_on(upload, error)
        except RegistryRefused as error:
            if self._resumed:  # what arrived before may not be what we think: all of it is sent again
                self._resumed = False
                upload = await self._restart(upload, error)
            elif upload.is_ending:
                raise
            else:  # it takes no chunks, or not this many: once, in one piece
                self._sizes = Sizes(single_bytes=self._blob.size)
                upload = await self._restart(upload, error)
        self._note(upload)
        return upload

    async def _begin_or_mount(self, mount_from: str | None) -> Upload | None:
        if mount_from is not None:
            try:
                return await begin(self._repository, self._blob, mount_from=mount_from, sizes=self._sizes)
            except (AuthenticationFailed, RegistryRefused):
                pass  # we may not read there, or it knows no mounting: it can still be sent
        return await self._begin()

    async def _begin(self) -> Upload:
        upload = await begin(self._repository, self._blob, sizes=self._sizes)
        assert upload is not None  # noqa: S101 - no mounting was asked for
        return upload

    async def _go_on(self, upload: Upload, error: Interrupted | RegistryUnreachable) -> Upload:
        """The same upload, as far as it got; or another, if the registry can't go on with it."""
        if not upload.is_single and not (isinstance(error, Interrupted) and error.lost):
            try:
                await upload.ask()
            except Interrupted:
                pass
            else:
                self._resumed = True
                self._moved(upload.offset)
                return upload
        return await self._restart(upload, error)

    async def _restart(self, upload: Upload, error: Interrupted | RegistryError) -> Upload:
        """From the beginning; docker-registry (2.8), for one, gives an upload up when a chunk breaks off.

        Raises what it is that went wrong, once that has happened too often.
        """
        self._restarts += 1
        if self._restarts >= self._repository.retry.tries:
            _give_up(error)
        await upload.give_up()
        self._best = 0
        self._moved(0)
        return await self._begin()

    def _wait_s(self, error: Interrupted | RegistryUnreachable) -> float | None:
        """How long to wait before the next try; None: it has gone wrong too often."""
        self._failed += 1
        asked_s = error.asked_s if isinstance(error, Interrupted) else None
        return self._repository.retry.wait_s(self._failed, asked_s)

    def _note(self, upload: Upload) -> None:
        if upload.offset > self._best:  # as long as it gets on, it may be interrupted as often as it likes
            self._best, self._failed = upload.offset, 0

    async def _is_there(self) -> bool:
        return await self._repository.has_blob(self._blob.content_digest, actions=PUSH)

    def _moved(self, offset: int) -> None:
        self._report(BlobProgress(self._blob, "sending", offset))


def _give_up(error: Interrupted | RegistryError) -> NoReturn:
    """Raise what it is that went wrong, as the user is told it."""
    raise error.error if isinstance(error, Interrupted) else error
