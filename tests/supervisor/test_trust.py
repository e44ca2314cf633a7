"""The policy in front of real starts: what is refused does not exist, what is admitted tells why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.file_layout import export_artifact
from cache.store import Store
from cache.trust.keys import PrivateKey
from cache.trust.local_signatures import keep_signatures
from cache.trust.signature_manifest import sign_v3
from ovms_supervisor.supervisor import Supervisor
from spec.api import WarmRequest
from spec.errors import DigestMismatch, InvalidPolicy, PolicyRejected
from spec.instance import InstanceState, TrustInfo
from spec.reference import parse_reference
from tests.supervisor.conftest import Site, ended, start

KEY = PrivateKey.generate()
SIGNED = '[{type = "signedBy", keys = ["team.pub"]}]'
REJECT = '[{type = "reject"}]'
ACCEPT = '[{type = "accept"}]'
Write = Callable[..., Path]


@pytest.fixture
def write(site: Site) -> Write:
    """Write a policy."""
    directory = site.directory / "root" / "etc"
    directory.mkdir()
    (directory / "team.pub").write_bytes(KEY.public.pem)

    def policy(default: str, ram: str, more: str = "", path: Path = directory / "policy.toml") -> Path:
        path.write_text(f"version = 1\n{more}\ndefault = {default}\n[ramSnapshot]\ndefault = {ram}\n")
        return path

    return policy


def sign(site: Site, name: str) -> None:
    store = Store(site.directory / "root")
    artifact = store.artifact(store.resolve(parse_reference(name)))
    keep_signatures(store, artifact.digest, "guest", sign_v3(artifact.descriptor, KEY))
    store.close()


async def trust_of(supervisor: Supervisor, name: str, *, boot: str = "auto") -> TrustInfo:
    instance = await start(supervisor, name, boot=boot)
    assert instance.state is InstanceState.RUNNING
    trust = (await instance.info()).trust
    assert trust is not None
    await supervisor.stop(instance, 0)
    await ended(instance)
    return trust


async def test_without_a_policy_status_says_so(site: Site) -> None:
    async with site.daemon() as supervisor:
        assert await trust_of(supervisor, "guest:plain") == TrustInfo(policy=None, checks=[])


async def test_unsigned_is_refused_and_leaves_nothing_signed_starts_and_names_its_key(site: Site, write: Write) -> None:
    path = write(SIGNED, REJECT)
    async with site.daemon() as supervisor:
        events = supervisor.events.subscribe()
        with pytest.raises(PolicyRejected, match="it has no signature"):
            await start(supervisor, "guest:plain")
        told = await anext(events)
        assert (told.type, told.detail["reference"]) == ("policy.rejected", "guest:plain")
        events.close()
        assert supervisor.instances() == []
        assert await site.leaks([]) == []
        await asyncio.to_thread(sign, site, "guest:plain")
        trust = await trust_of(supervisor, "guest:plain")
        assert trust.policy == str(path)
        (check,) = trust.checks
        assert (check.by, check.key) == ("signedBy", str(path.parent / "team.pub"))
        assert check.fingerprint == KEY.public.fingerprint
        with pytest.raises(PolicyRejected):
            await start(supervisor, "guest:disk")


async def test_a_ram_snapshot_is_refused_while_its_base_starts(site: Site, write: Write) -> None:
    write(ACCEPT, SIGNED, 'localSnapshots = "reject"')
    async with site.daemon() as supervisor:
        machine = await start(supervisor, "guest:plain")
        await supervisor.snapshot(machine, "guest:warm")
        with pytest.raises(PolicyRejected, match="the RAM snapshot guest:warm") as caught:
            await start(supervisor, "guest:warm")
        assert caught.value.fields["scope"] == "default"
        cold = await trust_of(supervisor, "guest:warm", boot="cold")
        assert [each.what for each in cold.checks] == ["artifact"]
        await asyncio.to_thread(sign, site, "guest:warm")
        warm = await trust_of(supervisor, "guest:warm")
        assert [(each.what, each.by) for each in warm.checks] == [("artifact", "accept"), ("ramSnapshot", "signedBy")]


async def test_a_local_snapshot_is_trusted_as_made_here_until_its_bytes_change(site: Site, write: Write) -> None:
    async with site.daemon() as supervisor:
        machine = await start(supervisor, "guest:plain")
        reply = await supervisor.snapshot(machine, "guest:warm")
        write(REJECT, REJECT)
        assert {each.by for each in (await trust_of(supervisor, "guest:warm")).checks} == {"madeHere"}
        assert {each.by for each in (await trust_of(supervisor, reply.snapshot_ref)).checks} == {"madeHere"}
        with pytest.raises(PolicyRejected):
            await start(supervisor, "guest:plain")
        artifact = await asyncio.to_thread(_changed, site, reply.snapshot_ref)
        with pytest.raises(DigestMismatch):
            await start(supervisor, artifact)


def _changed(site: Site, digest: str) -> str:
    """Change a byte of the manifest under its digest."""
    blob = site.directory / "root" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    return digest


async def test_a_parked_clone_is_asked_about_when_it_is_claimed(site: Site, write: Write) -> None:
    async with site.daemon() as supervisor:
        machine = await start(supervisor, "guest:plain")
        await supervisor.snapshot(machine, "guest:warm")
        path = write(ACCEPT, SIGNED, 'localSnapshots = "reject"')
        with pytest.raises(PolicyRejected):
            await supervisor.order_parked(WarmRequest(manifest="guest:warm", count=1))
        await asyncio.to_thread(sign, site, "guest:warm")
        await supervisor.order_parked(WarmRequest(manifest="guest:warm", count=1))
        async with asyncio.timeout(20):
            assert (await supervisor.pool.settled("guest:warm")).parked == 1

        (path.parent / "team.pub").write_bytes(PrivateKey.generate().public.pem)
        with pytest.raises(PolicyRejected, match="not made by the key"):
            await start(supervisor, "guest:warm")
        assert [each.state for each in supervisor.instances()] == [InstanceState.RUNNING, InstanceState.PARKED]
        (path.parent / "team.pub").write_bytes(KEY.public.pem)
        claimed = await start(supervisor, "guest:warm")
        info = await claimed.info()
        assert info.metrics.start is not None
        assert info.metrics.start.path == "claimed"
        assert info.trust is not None
        assert {each.key for each in info.trust.checks} == {None, str(path.parent / "team.pub")}


def _export_plain_and_rename_disk(site: Site) -> str:
    store = Store(site.directory / "root")
    plain, disk = (store.resolve(parse_reference(name)) for name in ("guest:plain", "guest:disk"))
    export_artifact(store, plain, site.directory / "plain.tar")
    store.tag("guest:plain", disk)
    store.close()
    return disk


async def test_a_path_brings_no_name_into_the_store_and_gets_no_scope(site: Site, write: Write) -> None:
    write(REJECT, REJECT)
    disk = await asyncio.to_thread(_export_plain_and_rename_disk, site)
    path = site.directory / "root" / "etc" / "policy.toml"
    path.write_text(path.read_text().replace("[ramSnapshot]", f'[scopes]\n"local:guest" = {ACCEPT}\n[ramSnapshot]'))
    async with site.daemon() as supervisor:
        with pytest.raises(PolicyRejected, match="the default rejects it"):
            await start(supervisor, str(site.directory / "plain.tar"))
        started = await start(supervisor, "guest:plain")
        assert started.record.manifest.digest == disk, "the name in the tar took nothing over"


async def test_a_policy_that_cannot_be_read_admits_nothing(site: Site, write: Write, tmp_path: Path) -> None:
    path = write(ACCEPT, ACCEPT, "scope = 1")
    async with site.daemon() as supervisor:
        with pytest.raises(InvalidPolicy, match="unknown field"):
            await start(supervisor, "guest:plain")
        assert any("nothing is admitted" in each for each in await supervisor.readiness())
        write(ACCEPT, ACCEPT)
        assert not any("nothing is admitted" in each for each in await supervisor.readiness())
        assert [each.by for each in (await trust_of(supervisor, "guest:plain")).checks] == ["accept"]
        await asyncio.to_thread((path.parent / "team.pub").unlink)  # not named by this policy
        await trust_of(supervisor, "guest:plain")
    async with site.daemon(policy=tmp_path / "none.toml") as supervisor:
        with pytest.raises(InvalidPolicy, match="configuration names it"):
            await start(supervisor, "guest:plain")


async def test_the_decision_outlives_the_daemon(site: Site, write: Write) -> None:
    write(ACCEPT, ACCEPT)
    async with site.daemon(on_exit="leave") as supervisor:
        machine = await start(supervisor, "guest:plain")
    write(REJECT, REJECT)
    async with site.daemon() as supervisor:
        found = supervisor.find(machine.id)
        assert found.state is InstanceState.RUNNING, "a policy is asked at the start"
        trust = (await found.info()).trust
        assert trust is not None
        assert [each.by for each in trust.checks] == ["accept"]
