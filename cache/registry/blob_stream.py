"""The body of a blob's reply, held to what its headers and the descriptor promise."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from aiohttp import ClientResponse

from cache.registry.replies import refusal
from spec.errors import BlobNotFound, RegistryGarbage, SizeMismatch
from spec.oci import Descriptor

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")

_LOOK_THERE: Final = "Check the name, and that you may read it: some registries hide what you may not."


class BlobStream:
    """An async iterator of chunks: never a byte too many, and an error at the end if there were too few.

    Nothing of it is verified before the consumer has hashed all of it.
    """

    def __init__(self, response: ClientResponse, blob: Descriptor, start: int) -> None:
        self.start: Final = start
        """Offset of the first byte in the blob."""
        self._response = response
        self._blob = blob

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Raises SizeMismatch; aiohttp's errors become RegistryUnreachable at the end of the context."""
        offset = self.start
        async for chunk in self._response.content.iter_any():
            offset += len(chunk)
            if offset > self._blob.size:
                raise _wrong_size(self._blob, f"more than {self._blob.size} bytes")
            yield chunk
        if offset < self._blob.size:
            raise _wrong_size(self._blob, f"{offset} bytes instead of {self._blob.size}")


def stream_of(response: ClientResponse, blob: Descriptor, start: int) -> BlobStream:
    """The stream of a reply 200 or 206 to a request from ``start`` on.

    A 200 begins at 0, whatever was asked for. Raises SizeMismatch, RegistryGarbage.
    """
    first = 0
    if response.status == 206:
        first = start
        given = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(given)
        if match is None or [int(each) for each in match.groups()] != [start, blob.size - 1, blob.size]:
            raise RegistryGarbage(
                f"{response.url.authority} answered bytes {start}-{blob.size - 1}/{blob.size} with {given[:80]!r}",
                host=response.url.authority,
            )
    length = response.content_length
    if length is not None and length != blob.size - first:
        raise _wrong_size(blob, f"{first + length} bytes instead of {blob.size}")
    return BlobStream(response, blob, first)


@asynccontextmanager
async def open_stream(
    get: Callable[[Mapping[str, str]], AbstractAsyncContextManager[ClientResponse]], blob: Descriptor, start: int
) -> AsyncIterator[BlobStream]:
    """The stream of what ``get`` answers (it is given the headers) from ``start`` on, or else from 0.

    Raises BlobNotFound, SizeMismatch, RegistryGarbage, RegistryRefused and its like.
    """
    what = f"blob {blob.digest}"
    for first in (start, 0):
        async with get({"Range": f"bytes={first}-"} if first else {}) as response:
            if response.status == 416 and first:
                continue  # it may have nothing there, or just not know how
            if response.status == 404:
                raise _not_there(response, what)
            if response.status not in (200, 206):
                raise await refusal(response, what)
            if response.status == 206 and not first:
                raise RegistryGarbage(f"{response.url.authority} sent a part of {what}", host=response.url.authority)
            yield stream_of(response, blob, first)
            return


async def announced_bytes(response: ClientResponse, what: str) -> int:
    """The length that a reply gives for all of a blob. Raises BlobNotFound, RegistryGarbage if it gives none."""
    if response.status == 404:
        raise _not_there(response, what)
    if response.status != 200:
        raise await refusal(response, what)
    if response.content_length is None:
        raise RegistryGarbage(f"{response.url.authority} does not say how long {what} is", host=response.url.authority)
    return response.content_length


def _not_there(response: ClientResponse, what: str) -> BlobNotFound:
    return BlobNotFound(f"{response.url.authority} has no {what}", remedy=_LOOK_THERE, host=response.url.authority)


def _wrong_size(blob: Descriptor, what: str) -> SizeMismatch:
    return SizeMismatch(f"the registry has {what} under {blob.digest}", expected=blob.size, digest=blob.digest)
