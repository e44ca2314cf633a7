"""Logins are tried first, kept where docker and podman look, and shown to nobody."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from cache.registry.auth_file import file_for, remove_credential, write_credential
from cache.registry.credential_helper import store_in_helper
from cache.registry.credentials import Credential, Credentials
from cache.registry.login import check_credential, log_in, log_out
from cache.registry.origin import registry_url
from cache.registry.transport import Transport
from spec.errors import AuthenticationFailed, InvalidConfig, InvalidInput, OvmsError, RegistryRefused
from tests.cache.docker_registry import PASSWORD as REAL_PASSWORD
from tests.cache.docker_registry import USER as REAL_USER
from tests.cache.docker_registry import docker_registry
from tests.cache.registry.small_registry import PASSWORD, USER, SmallRegistry

HOST = "registry.example:5000"
CANARY = "c4n4ry-in-the-password"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Podman's and docker's, neither of which is there yet."""
    return tmp_path / "podman" / "auth.json", tmp_path / "docker" / "config.json"


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_a_login_that_is_taken_is_kept(
    transport: Transport, registry: SmallRegistry, files: tuple[Path, Path], auth: str
) -> None:
    registry.auth = auth
    made = await log_in(transport, registry.url, files, registry.host, USER, PASSWORD)
    assert (made.place, made.is_plain, made.is_checked) == (str(files[1]), True, True)
    assert files[1].stat().st_mode & 0o777 == 0o600
    assert files[1].parent.stat().st_mode & 0o777 == 0o700
    assert not files[0].exists()
    assert await Credentials(files).find(registry.host) == Credential(USER, PASSWORD)

    assert await log_out(files, registry.host) == [str(files[1])]
    assert await log_out(files, registry.host) == []
    assert await Credentials(files).find(registry.host) is None


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_a_login_that_is_denied_changes_nothing_and_tells_no_secret(
    transport: Transport,
    registry: SmallRegistry,
    files: tuple[Path, Path],
    auth: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry.auth = auth
    caplog.set_level("DEBUG")
    with pytest.raises(AuthenticationFailed) as caught:
        await log_in(transport, registry.url, files, registry.host, USER, CANARY)
    assert not files[1].exists()
    encoded = base64.b64encode(f"{USER}:{CANARY}".encode()).decode()
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.fields) + caplog.text
    assert CANARY not in told
    assert encoded not in told


async def test_a_registry_for_everybody_is_told(
    transport: Transport, registry: SmallRegistry, files: tuple[Path, Path]
) -> None:
    made = await log_in(transport, registry.url, files, registry.host, USER, PASSWORD)
    assert not made.is_checked
    assert files[1].exists()


async def test_what_is_no_registry(transport: Transport, registry: SmallRegistry, files: tuple[Path, Path]) -> None:
    registry.faults.append(web.Response(status=404))
    with pytest.raises(RegistryRefused):
        await log_in(transport, registry.url, files, registry.host, USER, PASSWORD)
    assert not files[1].exists()


@pytest.mark.parametrize(("user", "password"), [("", "x"), ("a:b", "x"), ("me", ""), ("me", "x\0")])
async def test_what_can_be_no_login(
    transport: Transport, registry: SmallRegistry, files: tuple[Path, Path], user: str, password: str
) -> None:
    with pytest.raises(InvalidInput):
        await log_in(transport, registry.url, files, registry.host, user, password)
    assert not registry.requests


def test_everything_else_in_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    before = {
        "auths": {
            "other": {"auth": "b3RoZXI6MQ==", "email": "x"},
            f"https://{HOST}/v1/": {"auth": "bWU6b2xk", "identitytoken": "old", "email": "me@example"},
        },
        "HttpHeaders": {"X": "y"},
        "psFormat": "table",
    }
    path.write_text(json.dumps(before))
    path.chmod(0o644)
    write_credential(path, HOST, Credential("me", "new"))
    after = json.loads(path.read_text())
    encoded = base64.b64encode(b"me:new").decode()
    assert after["auths"] == {
        "other": before["auths"]["other"],  # type: ignore[index]
        f"https://{HOST}/v1/": {"auth": encoded, "email": "me@example"},
    }
    assert after["HttpHeaders"] == {"X": "y"}
    assert after["psFormat"] == "table"
    assert path.stat().st_mode & 0o777 == 0o600

    assert remove_credential(path, HOST)
    assert set(json.loads(path.read_text())["auths"]) == {"other"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    link = tmp_path / "config.json"
    link.symlink_to(tmp_path / "dotfiles" / "docker.json")
    write_credential(link, HOST, Credential("me", "x"))
    assert link.is_symlink()
    assert HOST in json.loads((tmp_path / "dotfiles" / "docker.json").read_text())["auths"]


async def test_logins_at_once_do_not_lose_each_other(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    hosts = [f"host{n}.example" for n in range(8)]
    await asyncio.gather(*(asyncio.to_thread(write_credential, path, host, Credential("me", host)) for host in hosts))
    assert set(json.loads(await asyncio.to_thread(path.read_text))["auths"]) == set(hosts)


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": []}', '{"auths": {"x": 1}}'])
def test_a_damaged_file_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InvalidConfig, match=r"config\.json"):
        write_credential(path, HOST, Credential("me", "x"))
    assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


async def test_docker_hub_has_other_names(tmp_path: Path) -> None:
    """The reference says docker.io, the API is at registry-1.docker.io, and docker keeps its login under a third."""
    path = tmp_path / "config.json"
    await asyncio.to_thread(write_credential, path, "docker.io", Credential("me", "x"))
    assert list(json.loads(path.read_bytes())["auths"]) == ["https://index.docker.io/v1/"]
    assert str(registry_url("docker.io", {})) == "https://registry-1.docker.io"
    for name in ("docker.io", "index.docker.io", "registry-1.docker.io"):
        assert await Credentials([path]).find(name, "me/app") == Credential("me", "x")
    assert await Credentials([path]).find("other.docker.io") is None
    assert await asyncio.to_thread(remove_credential, path, "docker.io")
    assert json.loads(path.read_bytes())["auths"] == {}


def test_the_file_that_decides_about_the_host_is_written(tmp_path: Path) -> None:
    podman, docker = tmp_path / "auth.json", tmp_path / "config.json"
    assert file_for((podman, docker), HOST) == docker
    podman.write_text("")
    assert file_for((podman, docker), HOST) == podman
    docker.write_text(json.dumps({"auths": {HOST: {"auth": "bWU6b2xk"}}}))
    assert file_for((podman, docker), HOST) == docker
    podman.write_text(json.dumps({"auths": {f"https://{HOST}": {}}}))
    assert file_for((podman, docker), HOST) == podman


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper that keeps one login in a file, which is returned."""
    kept, program = tmp_path / "kept", tmp_path / "bin" / "docker-credential-box"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
case $1 in
    store) cat > {kept}; [ ! -e {kept}.full ] || {{ cat {kept}; exit 1; }} ;;
    get) [ -e {kept} ] && cat {kept} || {{ echo credentials not found in native keychain; exit 1; }} ;;
    erase) rm {kept} ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return kept


async def test_a_helper_keeps_it_if_one_is_configured(
    transport: Transport, registry: SmallRegistry, files: tuple[Path, Path], helper: Path
) -> None:
    registry.auth = "basic"
    files[1].parent.mkdir()
    files[1].write_text(json.dumps({"credsStore": "box", "auths": {registry.host: {"auth": "bWU6b2xk"}}}))
    made = await log_in(transport, registry.url, files, registry.host, USER, PASSWORD)
    assert (made.place, made.is_plain) == ("docker-credential-box", False)
    assert json.loads(helper.read_text()) == {"ServerURL": registry.host, "Username": USER, "Secret": PASSWORD}
    assert json.loads(files[1].read_text()) == {"credsStore": "box", "auths": {registry.host: {}}}
    assert await Credentials(files).find(registry.host) == Credential(USER, PASSWORD)

    assert await log_out(files, registry.host) == ["docker-credential-box", str(files[1])]
    assert not helper.exists()
    assert await log_out(files, registry.host) == []


async def test_a_helper_that_fails_shows_no_secret(helper: Path) -> None:
    Path(f"{helper}.full").touch()
    with pytest.raises(AuthenticationFailed) as caught:
        await store_in_helper("box", HOST, "me", CANARY)
    assert "docker-credential-box failed" in caught.value.detail
    assert CANARY not in "".join(traceback.format_exception(caught.value))


# --- real peers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def real_registry(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path, login=True) as address:
        yield address


@pytest.mark.real
async def test_docker_registry_takes_it_and_skopeo_reads_it(
    transport: Transport, real_registry: str, files: tuple[Path, Path]
) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    url = URL(f"http://{real_registry}")
    with pytest.raises(OvmsError) as caught:
        await check_credential(transport, url, Credential(REAL_USER, CANARY))
    assert isinstance(caught.value, AuthenticationFailed)
    await log_in(transport, url, files, real_registry, REAL_USER, REAL_PASSWORD)
    shown = await asyncio.to_thread(
        subprocess.run,
        ["skopeo", "login", "--get-login", "--authfile", str(files[1]), real_registry],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.stdout.strip() == REAL_USER
    command = ["skopeo", "list-tags", "--tls-verify=false", "--authfile", str(files[1]), f"docker://{real_registry}/x"]
    tags = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert "404" in tags.stderr, "it got past the login"
