"""HTTP to registries: connections, proxies, certificates, redirects and retries; of registries it knows nothing.

aiohttp would follow redirects and read ~/.netrc by itself, both with other ideas of who may see a password.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp import ClientResponse
from yarl import URL

from cache.host_errors import host_errors
from cache.registry.body import Body
from cache.registry.origin import check_target, is_loopback
from cache.registry.retry import RETRIED, RetryPolicy, retry_after_s
from spec.errors import InvalidConfig, RegistryGarbage, RegistryUnreachable

_MAX_REDIRECTS: Final = 10
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PER_HOST: Final = 8
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=60)
"""No limit on the whole: a snapshot may take an hour, as long as bytes arrive."""
_TIMEOUT_OF_UPLOADS: Final = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=600)
"""From the last byte on: a registry may have to hash and move all of a blob before it answers."""
STALL_S: Final = 120.0
"""How long a chunk of a body (1 MiB) may take; aiohttp itself would wait for ever for a peer that reads nothing."""
_FOR_GOOD: Final = (aiohttp.ClientSSLError, aiohttp.InvalidURL, aiohttp.ClientResponseError)


class Transport:
    """An async context manager; one per process will do."""

    def __init__(
        self, *, ca_file: Path | None = None, retry: RetryPolicy | None = None, stall_s: float = STALL_S
    ) -> None:
        """``ca_file``: certificate authorities (PEM) besides those of the system."""
        self._stall_s = stall_s
        self._ca_file = ca_file
        self.retry: Final = retry or RetryPolicy()
        self._proxies = getproxies()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Raises FileMissing, PermissionMissing, InvalidConfig for the certificate authorities."""
        context = await asyncio.to_thread(_tls, self._ca_file)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit_per_host=_PER_HOST, ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "ovms-supervisor", "Accept-Encoding": "identity"},
            timeout=_TIMEOUT,
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        data: bytes | Body | None = None,
        once: bool = False,
    ) -> AsyncIterator[ClientResponse]:
        """The reply to a request, tried again as the policy has it and led on to where redirects point.

        ``once``: it is not tried again, for what must not be done twice before one has looked.
        Only GET and HEAD are redirected. Any status may come back, a retried one when it has outlasted the policy.
        Raises RegistryUnreachable, also in the block that reads the body, and RegistryGarbage.
        """
        response = await self._persist(method, url, headers, data, once=once)
        try:
            yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(url, error) from error
        finally:
            response.close()  # a body that was read to its end has given its connection back already

    async def _persist(
        self, method: str, url: URL, headers: Mapping[str, str], data: bytes | Body | None, *, once: bool
    ) -> ClientResponse:
        failed = 0
        while True:
            failed += 1
            try:
                response = await self._follow(method, url, headers, data)
            except _FOR_GOOD as error:
                raise _unreachable(url, error) from error
            except (aiohttp.ClientError, TimeoutError) as error:
                wait = None if once else self.retry.wait_s(failed)
                if wait is None:
                    raise _unreachable(url, error) from error
            else:
                if once or response.status not in RETRIED:
                    return response
                wait = self.retry.wait_s(failed, retry_after_s(response.headers.get("Retry-After")))
                if wait is None:
                    return response
                response.close()
            await asyncio.sleep(wait)

    async def _follow(
        self, method: str, url: URL, headers: Mapping[str, str], data: bytes | Body | None
    ) -> ClientResponse:
        sent = dict(headers)
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._send(method, url, sent, data)
            if response.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                return response
            location = response.headers.get("Location")
            response.close()
            target = _joined(url, location)
            check_target(target, url, "the place to go on")
            if target.origin() != url.origin():
                sent.pop("Authorization", None)
            url = target
        raise RegistryGarbage(f"more than {_MAX_REDIRECTS} redirects", host=url.authority)

    async def _send(
        self, method: str, url: URL, headers: Mapping[str, str], data: bytes | Body | None
    ) -> ClientResponse:
        if self._session is None:
            raise RuntimeError("the transport is used outside its context")
        request = partial(self._session.request, method, url, allow_redirects=False, proxy=self._proxy(url))
        if method in ("PUT", "PATCH"):
            request = partial(request, timeout=_TIMEOUT_OF_UPLOADS)
        if data is None or isinstance(data, bytes):
            return await request(headers=headers, data=data)
        headers = {**headers, "Content-Length": str(data.size_bytes)}  # else it would be sent chunked
        async with asyncio.timeout(None) as limit:
            return await request(headers=headers, data=_Watched(data, limit, self._stall_s))

    def _proxy(self, url: URL) -> str | None:
        host = url.host or ""
        if is_loopback(host) or proxy_bypass(f"{host}:{url.port}", self._proxies):
            return None
        return self._proxies.get(url.scheme) or self._proxies.get("all")


class _Watched(AsyncIterable[bytes]):
    """A body whose chunks have to go on their way in time."""

    def __init__(self, body: Body, limit: asyncio.Timeout, stall_s: float) -> None:
        self._body, self._limit, self._stall_s = body, limit, stall_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        now = asyncio.get_running_loop().time
        async for chunk in self._body:
            self._expect(now() + self._stall_s)
            yield chunk
        self._expect(None)  # now it is the registry's turn, for which there is another limit

    def _expect(self, when_s: float | None) -> None:
        with suppress(RuntimeError):  # the answer came before the end of the body
            self._limit.reschedule(when_s)


def _joined(url: URL, location: str | None) -> URL:
    try:
        return url.join(URL(location or "", encoded=True)).with_fragment(None)
    except ValueError as error:
        raise RegistryGarbage(f"{url.authority} redirects to what is no URL", host=url.authority) from error


def _unreachable(url: URL, error: Exception) -> RegistryUnreachable:
    said = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    return RegistryUnreachable(f"{url.authority}: {said[:300]}", host=url.authority)


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            with host_errors(ca_file):
                pem = ca_file.read_text(encoding="ascii")
            context.load_verify_locations(cadata=pem)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidConfig(f"{ca_file} has no certificates in PEM", path=str(ca_file)) from error
    return context
