"""The ways a pull may have to go: through a proxy, without TLS by permission, and on to where blobs really are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from cache.registry.access import Access, Registries, open_registries
from cache.registry.download import Download, Downloads, Fetched
from cache.store import Store
from spec.digest import digest_of
from spec.errors import RegistryGarbage
from spec.oci import Descriptor
from spec.reference import parse_reference
from tests.cache.registry.conftest import FAST, log_in
from tests.cache.registry.small_registry import PASSWORD, USER, SmallRegistry, basic, serving

DATA = bytes(range(256)) * 2000
BLOB = Descriptor("x/y", digest_of(DATA), len(DATA))
HOW = Downloads(retry=FAST)


async def fetch(store: Store, registries: Registries, text: str) -> Fetched:
    repository = registries.repository(parse_reference(text))
    return await Download(store, repository, BLOB, HOW, lambda _: None).run()


@pytest.fixture
async def storage() -> AsyncIterator[SmallRegistry]:
    """Another server, on which a registry keeps its blobs."""
    async with serving(SmallRegistry()) as storage:
        storage.add_blob(DATA)
        yield storage


async def test_through_a_proxy_to_a_host_that_may_be_spoken_to_in_clear(
    store: Store, registry: SmallRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_blob(DATA)
    monkeypatch.setenv("http_proxy", str(registry.url))
    monkeypatch.setenv("no_proxy", "other.test")
    access = Access(plain_http=("registry.test",), retry=FAST)
    async with open_registries(access) as registries:
        await fetch(store, registries, "registry.test/app:1")
    assert store.has_blob(BLOB.content_digest)
    assert [each.host for each in registry.requests] == ["registry.test"]


async def test_only_loopback_and_named_hosts_go_without_tls() -> None:
    async with open_registries(Access(plain_http=("named.test:5000",))) as registries:

        def scheme(text: str) -> str:
            return registries.repository(parse_reference(text)).origin.scheme

        assert [scheme(each) for each in ("named.test:5000/a", "127.0.0.1:5000/a", "localhost/a")] == ["http"] * 3
        assert [scheme(each) for each in ("named.test/a", "named.test:5001/a", "10.0.0.1:5000/a")] == ["https"] * 3


async def test_storage_elsewhere_gets_no_password_and_goes_on_in_the_middle(
    store: Store, registry: SmallRegistry, storage: SmallRegistry, auth_file: Path
) -> None:
    log_in(auth_file, registry, auth=basic(USER, PASSWORD))
    registry.auth = "basic"
    location = {"Location": f"{storage.url}/v2/x/blobs/{BLOB.digest}?signature=1"}
    registry.faults.extend(web.Response(status=307, headers=location) for _ in range(2))
    storage.cuts.append(200_000)
    async with open_registries(Access(auth_files=(auth_file,), retry=FAST)) as registries:
        await fetch(store, registries, f"{registry.host}/app:1")
    assert store.blob_path(BLOB.content_digest).read_bytes() == DATA
    assert len(storage.requests) == 2
    assert all("Authorization" not in each.headers for each in storage.requests)
    assert storage.requests[1].headers["Range"].startswith("bytes=")


@pytest.mark.parametrize(
    "location",
    ["http://192.168.7.7/blob", "http://metadata.localhost/", "ftp://example.com/", "http://u:p@example.com/"],
)
async def test_storage_where_it_must_not_be(store: Store, registry: SmallRegistry, location: str) -> None:
    registry.faults.append(web.Response(status=302, headers={"Location": location}))
    async with open_registries(Access(retry=FAST)) as registries:
        with pytest.raises(RegistryGarbage):
            await fetch(store, registries, f"{registry.host}/app:1")
    assert not any(store.partial_dir.iterdir())
