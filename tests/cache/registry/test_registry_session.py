"""Requests against a registry in this process: who is shown what, what is tried again, where we let it lead us."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest
from aiohttp import web

from cache.registry.replies import read_bounded, refusal
from cache.registry.session import Session
from cache.registry.transport import Transport
from spec.errors import AuthenticationFailed, InvalidConfig, RateLimited, RegistryGarbage, RegistryUnreachable
from tests.cache.registry.conftest import log_in
from tests.cache.registry.small_registry import IDENTITY, PASSWORD, USER, SmallRegistry, basic, serving


async def get(session: Session, registry: SmallRegistry, path: str = "a/b") -> int:
    digest = registry.add_blob(b"blob")
    async with session.open("GET", registry.url / f"v2/{path}/blobs/{digest}", path) as response:
        await response.read()
        return response.status


async def test_a_password_is_shown_only_when_asked_for(
    session: Session, registry: SmallRegistry, auth_file: Path
) -> None:
    log_in(auth_file, registry, auth=basic(USER, PASSWORD))
    assert await get(session, registry) == 200
    assert "Authorization" not in registry.requests[-1].headers

    registry.auth = "basic"
    assert [await get(session, registry), await get(session, registry)] == [200, 200]
    assert len(registry.requests) == 4, "the second time it is sent at once"


@pytest.mark.parametrize("entry", [{"auth": basic(USER, PASSWORD)}, {"identitytoken": IDENTITY}])
async def test_a_token_is_fetched_once_for_many(
    session: Session, registry: SmallRegistry, auth_file: Path, entry: dict[str, str]
) -> None:
    log_in(auth_file, registry, **entry)
    registry.auth = "token"

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(get(session, registry)) for _ in range(5)]
    assert {task.result() for task in tasks} == {200}
    assert len(registry.seen("/token")) == 1

    assert await get(session, registry, "other") == 200
    assert len(registry.seen("/token")) == 2
    if "auth" in entry:
        assert registry.seen("/token")[-1].query.getall("scope") == ["repository:other:pull"]


async def test_a_token_is_renewed_when_it_is_refused_or_over(
    session: Session, registry: SmallRegistry, auth_file: Path
) -> None:
    log_in(auth_file, registry, auth=basic(USER, PASSWORD))
    registry.auth, registry.token_reply = "token", {"access_token": "access", "expires_in": 0}

    assert [await get(session, registry), await get(session, registry)] == [200, 200]
    assert len(registry.seen("/token")) == 2


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_wrong_or_no_credentials_fail(
    session: Session, registry: SmallRegistry, auth_file: Path, auth: str
) -> None:
    registry.auth = auth
    with pytest.raises(AuthenticationFailed):
        await get(session, registry)
    log_in(auth_file, registry, auth=basic(USER, "wrong"))
    try:
        assert await get(session, registry) == 401
    except AuthenticationFailed:
        assert auth == "token"


@pytest.mark.parametrize(
    "reply", [{"token": "a\r\nX-Evil: 1"}, {"token": ""}, {}, [], {"token": 5}, {"token": "x" * 140_000}]
)
async def test_a_token_service_that_answers_nonsense(
    session: Session, registry: SmallRegistry, auth_file: Path, reply: object
) -> None:
    log_in(auth_file, registry, auth=basic(USER, PASSWORD))
    registry.auth, registry.token_reply = "token", reply
    with pytest.raises(RegistryGarbage):
        await get(session, registry)


@pytest.mark.parametrize(
    "realm", ["http://169.254.169.254/latest", "http://localhost:1/token", "file:///etc", "", "//"]
)
async def test_a_realm_that_leads_inward_is_not_asked(
    session: Session, registry: SmallRegistry, auth_file: Path, realm: str
) -> None:
    log_in(auth_file, registry, auth=basic(USER, PASSWORD))
    registry.auth, registry.realm = "token", realm or "http:"
    with pytest.raises(RegistryGarbage):
        await get(session, registry)


async def test_a_redirect_to_another_port_loses_the_authorization(
    session: Session, registry: SmallRegistry, auth_file: Path
) -> None:
    log_in(auth_file, registry, auth=basic(USER, PASSWORD))
    registry.auth = "basic"
    async with serving(SmallRegistry()) as other:
        digest = other.add_blob(b"blob")
        for target in (registry.url, other.url):
            location = str(target / f"v2/a/b/blobs/{digest}")
            registry.faults.append(web.Response(status=307, headers={"Location": location}))
            assert await get(session, registry) == 200
        assert [each.headers.get("Authorization") for each in other.requests] == [None]
        assert registry.requests[-1].headers["Authorization"]


@pytest.mark.parametrize(
    "location", ["http://10.0.0.1/", "http://[::1]:9/", "gopher://x/", "http://u:p@127.0.0.1/", None]
)
async def test_a_hostile_redirect_is_not_followed(
    session: Session, registry: SmallRegistry, location: str | None
) -> None:
    headers = {} if location is None else {"Location": location}
    registry.faults.extend(web.Response(status=302, headers=headers) for _ in range(11))
    with pytest.raises(RegistryGarbage):
        await get(session, registry)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_passes_is_tried_again(session: Session, registry: SmallRegistry, status: int) -> None:
    registry.faults.extend(web.Response(status=status) for _ in range(4))
    assert await get(session, registry) == 200
    assert len(registry.requests) == 5


async def test_what_does_not_pass_is_given_up(session: Session, registry: SmallRegistry) -> None:
    registry.faults.extend(web.Response(status=503) for _ in range(9))
    assert await get(session, registry) == 503
    assert len(registry.requests) == 5


async def test_retry_after_is_waited_for_or_reported(session: Session, registry: SmallRegistry) -> None:
    registry.faults.append(web.Response(status=429, headers={"Retry-After": "1"}))
    before = time.monotonic()
    assert await get(session, registry) == 200
    assert time.monotonic() - before >= 1

    registry.faults.append(web.Response(status=429, headers={"Retry-After": "3600"}))
    async with session.open("GET", registry.url / "v2/a/blobs/x", "a") as response:
        error = await refusal(response, "blob x")
    assert isinstance(error, RateLimited)
    assert error.fields["retry_after_s"] == 3600


async def test_a_refusal_tells_what_the_registry_said(session: Session, registry: SmallRegistry) -> None:
    async with session.open("GET", registry.url / "v2/a/blobs/x", "a") as response:
        error = await refusal(response, "blob x")
    assert error.detail == f"{registry.host} answered 404 to blob x: UNKNOWN: not here"
    assert error.fields["status"] == 404


async def test_a_body_is_read_up_to_its_bound(session: Session, registry: SmallRegistry) -> None:
    url = registry.url / f"v2/a/blobs/{registry.add_blob(bytes(1000))}"
    async with session.open("GET", url, "a") as response:
        assert await read_bounded(response, 1000, "it") == bytes(1000)
    async with session.open("GET", url, "a") as response:
        with pytest.raises(RegistryGarbage):
            await read_bounded(response, 999, "it")


async def test_nobody_there(session: Session) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        registry = SmallRegistry()
        registry.url = registry.url.build(scheme="http", host="127.0.0.1", port=free.getsockname()[1])
        with pytest.raises(RegistryUnreachable):
            await get(session, registry)


async def test_certificate_authorities_are_read(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("nothing")
    with pytest.raises(InvalidConfig):
        async with Transport(ca_file=ca):
            pass
