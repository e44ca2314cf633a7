"""Credentials from files that docker and podman write, and from helpers that are real processes."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.registry.credential_helper import ask_helper
from cache.registry.credentials import Credential, Credentials, credential_files
from spec.errors import AuthenticationFailed, InvalidConfig, MissingTool

HOST = "registry.example:5000"
Install = Callable[[str, str], None]


def basic(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a helper written in sh on the PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory), prepend=":")

    def install(name: str, script: str) -> None:
        path = directory / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return install


def config(path: Path, **content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


async def test_a_password_with_a_colon(tmp_path: Path) -> None:
    file = config(tmp_path / "config.json", auths={HOST: basic("me", "a:b")})

    assert await Credentials([tmp_path / "missing", file]).find(HOST) == Credential("me", "a:b")
    assert await Credentials([file]).find("other.example") is None


@pytest.mark.parametrize("key", [f"https://{HOST}", f"https://{HOST}/v1/", f"http://{HOST}/v2", HOST])
async def test_docker_writes_urls_too(tmp_path: Path, key: str) -> None:
    file = config(tmp_path / "config.json", auths={key: basic("me", "x")})

    assert await Credentials([file]).find(HOST, "a/b") == Credential("me", "x")


async def test_podman_has_credentials_by_repository(tmp_path: Path) -> None:
    auths = {HOST: basic("host", "1"), f"{HOST}/team": basic("team", "2"), f"{HOST}/team/app": basic("app", "3")}
    found = Credentials([config(tmp_path / "auth.json", auths=auths)])

    for repository, user in (("team/app", "app"), ("team/other", "team"), ("teams", "host"), ("", "host")):
        credential = await found.find(HOST, repository)
        assert credential is not None
        assert credential.username == user


async def test_tokens_are_read_and_not_shown(tmp_path: Path) -> None:
    file = config(tmp_path / "c", auths={HOST: {"identitytoken": "secret1"}, "b": {"registrytoken": "secret2"}})
    identity, registry = await Credentials([file]).find(HOST), await Credentials([file]).find("b")

    assert identity == Credential(identity_token="secret1")
    assert registry == Credential(registry_token="secret2")
    assert "secret" not in repr((identity, registry))


async def test_the_first_file_that_knows_the_host_counts(tmp_path: Path) -> None:
    first = config(tmp_path / "1", auths={"x": basic("first", "1"), HOST: {}})
    second = config(tmp_path / "2", auths={"x": basic("second", "2"), HOST: basic("second", "2")})
    found = Credentials([first, second])

    assert await found.find("x") == Credential("first", "1")
    assert await found.find(HOST) == Credential("second", "2")


@pytest.mark.parametrize(
    "content", ["{", '{"auths": []}', json.dumps({"auths": {HOST: {"auth": "c2VjcmV0"}}}), "[" * 9999]
)
async def test_a_damaged_file_is_an_error_that_names_it_and_no_secret(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)

    with pytest.raises(InvalidConfig) as caught:
        await Credentials([path]).find(HOST)
    assert str(path) in caught.value.detail
    assert "secret" not in caught.value.detail


async def test_a_helper_goes_before_the_file(tmp_path: Path, install: Install) -> None:
    install("one", 'read host; echo "{\\"Username\\": \\"$1\\", \\"Secret\\": \\"$host\\", \\"ServerURL\\": \\"x\\"}"')
    install("two", 'echo \'{"Username": "<token>", "Secret": "t"}\'')
    file = config(
        tmp_path / "c", credHelpers={HOST: "one"}, credsStore="two", auths={HOST: basic("file", "1"), "z": {}}
    )

    assert await Credentials([file]).find(HOST) == Credential("get", HOST)
    assert await Credentials([file]).find("z") == Credential(identity_token="t")


async def test_a_helper_that_knows_nothing_leaves_it_to_the_file(tmp_path: Path, install: Install) -> None:
    install("none", "echo credentials not found in native keychain; exit 1")
    file = config(tmp_path / "c", credsStore="none", auths={HOST: basic("file", "1")})

    assert await Credentials([file]).find(HOST) == Credential("file", "1")


@pytest.mark.parametrize("script", ["echo locked >&2; exit 3", "echo nonsense", "yes", "exec >&-; exit 0"])
async def test_a_helper_that_fails_is_an_error(install: Install, script: str) -> None:
    install("bad", script)

    with pytest.raises(AuthenticationFailed) as caught:
        await ask_helper("bad", HOST)
    assert "docker-credential-bad" in caught.value.remedy


async def test_a_helper_that_hangs_is_killed(install: Install) -> None:
    install("slow", "exec sleep 60")
    before = time.monotonic()

    with pytest.raises(AuthenticationFailed):
        await ask_helper("slow", HOST, limit_s=0.2)
    task = asyncio.create_task(ask_helper("slow", HOST))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - before < 10


@pytest.mark.parametrize("name", ["missing", "../evil", ""])
async def test_a_helper_must_be_installed_under_a_plain_name(name: str) -> None:
    with pytest.raises(MissingTool):
        await ask_helper(name, HOST)


def test_the_files_of_podman_come_first() -> None:
    home = Path("/home/me")
    assert credential_files({}, home) == (home / ".config/containers/auth.json", home / ".docker/config.json")
    assert credential_files({"XDG_RUNTIME_DIR": "/run/user/1"}, home)[0] == Path("/run/user/1/containers/auth.json")
    named = {"REGISTRY_AUTH_FILE": "/a.json", "DOCKER_CONFIG": "/d", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert credential_files(named, home) == (Path("/a.json"), Path("/d/config.json"))
