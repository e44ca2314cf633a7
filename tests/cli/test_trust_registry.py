"""Signed on one host, run on another under its policy: with Debian's docker-registry and real guests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cache.docker_registry import docker_registry

if TYPE_CHECKING:
    from tests.cli.conftest import Ovm

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def stopped(ovm: Ovm) -> Iterator[None]:
    """Whatever was started is removed, and the daemon ended."""
    yield
    left = ovm("ps", "-aq").out.split()
    if left:
        ovm.ok("rm", "-f", *left)
    ovm("serve", "--stop")


def on_another_host(ovm: Ovm, tmp_path: Path) -> Ovm:
    root = tmp_path / "another"
    return replace(ovm, root=root, environment={**ovm.environment, "OVMS_ROOT": str(root)})


@pytest.mark.usefixtures("stopped")
def test_what_one_host_signed_another_runs_and_nothing_else(
    ovm: Ovm, registry: str, guest_kernel: Path, tmp_path: Path
) -> None:
    made = on_another_host(ovm, tmp_path)
    name, key = f"{registry}/team/app", str(tmp_path / "team")
    made.ok("generate-key-pair", "--output-key-prefix", key, COSIGN_PASSWORD="pw")
    digests = {}
    for tag, memory in (("signed", "32M"), ("unsigned", "16M")):
        words = ("pack", "-t", f"{name}:{tag}", "--kernel", str(guest_kernel), f"--memory={memory}")
        digests[tag] = made.ok(*words).strip()
    made.ok("sign", "--key", f"{key}.key", f"{name}:signed", COSIGN_PASSWORD="pw")
    for tag in digests:
        made.ok("push", "-q", f"{name}:{tag}")

    verified = json.loads(made.ok("verify", "--remote", "--key", f"{key}.pub", f"{name}:signed", "--format=json"))
    assert verified["digest"] == digests["signed"]
    assert sorted(each["signatures"] for each in verified["verified"]) == ["v2", "v3"]
    assert made("verify", "--remote", "--key", f"{key}.pub", f"{name}:unsigned").code == 1

    policy = ovm.root / "etc" / "policy.toml"
    policy.parent.mkdir(parents=True)
    rules = f'[{{type = "signedBy", keys = ["{key}.pub"]}}]'
    text = f'version = 1\ndefault = [{{type = "reject"}}]\n[scopes]\n"{registry}/team" = {rules}\n'
    policy.write_text(text + '[ramSnapshot]\ndefault = [{type = "reject"}]\n')
    explained = ovm("policy", "check", f"{name}:unsigned", "--format=json")
    assert (explained.code, json.loads(explained.out)["digest"]) == (1, digests["unsigned"])
    assert ovm.json("policy", "check", f"{name}:signed")["admitted"]
    refused = ovm("run", f"{name}:unsigned", "--format=json")
    assert (refused.code, refused.problem["code"]) == (126, "policy.rejected")
    assert refused.problem["fields"]["scope"] == f"{registry}/team"
    assert ovm.json("ls") == [], "refused before its blobs were fetched"
    pulled = ovm("pull", f"{name}:unsigned", "--format=json")
    assert (pulled.code, pulled.problem["code"]) == (1, "policy.rejected")
    ovm.ok("pull", "-q", "--no-verify", f"{name}:unsigned")
    assert ovm("run", f"{name}:unsigned").code == 126, "the start asks in any case"

    ovm.ok("run", f"{name}:signed", "--name", "signed")
    trust = ovm.json("status", "signed")["trust"]
    assert trust["policy"] == str(policy)
    assert [(each["by"], each["key"]) for each in trust["checks"]] == [("signedBy", f"{key}.pub")]

    # Signed later: 'ovm sign --push' where it was made, then a pull brings the signature alone.
    made.ok("sign", "--key", f"{key}.key", "--push", f"{name}:unsigned", COSIGN_PASSWORD="pw")
    ovm.ok("pull", "-q", f"{name}:unsigned")
    ovm.ok("run", f"{name}:unsigned")
