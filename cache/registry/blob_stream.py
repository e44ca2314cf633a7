"""The body of a blob's reply, held to what its headers and the descriptor promise."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import ClientResponse

from spec.errors import RegistryGarbage, SizeMismatch
from spec.oci import Descriptor

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


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


def _wrong_size(blob: Descriptor, what: str) -> SizeMismatch:
    return SizeMismatch(f"the registry has {what} under {blob.digest}", expected=blob.size, digest=blob.digest)
