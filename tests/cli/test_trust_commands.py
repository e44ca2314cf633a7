"""Keys, signatures and policy from the command line, on real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Ovm


def test_a_key_pair_is_made_once_and_for_its_owner_alone(ovm: Ovm, tmp_path: Path) -> None:
    prefix = str(tmp_path / "team")
    fingerprint = ovm.ok("generate-key-pair", "--output-key-prefix", prefix, COSIGN_PASSWORD="secret").strip()
    assert fingerprint.startswith("sha256:")
    private, public = tmp_path / "team.key", tmp_path / "team.pub"
    assert private.stat().st_mode & 0o777 == 0o600
    assert b"BEGIN PUBLIC KEY" in public.read_bytes()
    before = private.read_bytes()
    again = ovm("generate-key-pair", "--output-key-prefix", prefix, "--format=json", COSIGN_PASSWORD="secret")
    assert (again.code, again.problem["code"]) == (1, "conflict")
    assert private.read_bytes() == before


def test_without_a_terminal_the_password_comes_from_the_environment(ovm: Ovm, tmp_path: Path) -> None:
    result = ovm("generate-key-pair", "--output-key-prefix", str(tmp_path / "k"), "--format=json")
    assert (result.code, result.problem["code"]) == (1, "key.invalid")
    assert "COSIGN_PASSWORD" in result.problem["remedy"]
    assert not (tmp_path / "k.key").exists()


@pytest.fixture
def packed(ovm: Ovm, guest_kernel: Path) -> str:
    """The digest of demo:base."""
    return ovm.ok("pack", "-t", "demo:base", "--kernel", str(guest_kernel), "--memory=32M").strip()


@pytest.fixture
def keys(ovm: Ovm, tmp_path: Path) -> tuple[str, str]:
    """The files of a key pair without a password."""
    prefix = str(tmp_path / "team")
    ovm.ok("generate-key-pair", "--output-key-prefix", prefix, COSIGN_PASSWORD="")
    return f"{prefix}.key", f"{prefix}.pub"


def test_signing_and_verifying(ovm: Ovm, packed: str, keys: tuple[str, str], tmp_path: Path) -> None:
    private, public = keys
    unsigned = ovm("verify", "--key", public, "demo:base", "--format=json")
    assert (unsigned.code, unsigned.problem["code"]) == (1, "signature.not_verified")
    assert "it has no signature" in unsigned.problem["detail"]

    assert ovm.ok("sign", "--key", private, "demo:base", COSIGN_PASSWORD="").strip() == packed
    again = ovm("sign", "--key", private, packed, COSIGN_PASSWORD="")
    assert (again.code, "already signed" in again.err) == (0, True)
    verified = ovm.json("verify", "--key", public, "demo:base")
    assert verified["digest"] == packed
    assert sorted(each["signatures"] for each in verified["verified"]) == ["v2", "v3"]
    assert {each["key"] for each in verified["verified"]} == {public}
    assert [each["digest"] for each in ovm.json("ls")] == [packed], "signatures are no artifacts"

    stranger = str(tmp_path / "stranger")
    ovm.ok("generate-key-pair", "--output-key-prefix", stranger, COSIGN_PASSWORD="")
    result = ovm("verify", "--key", f"{stranger}.pub", "demo:base")
    assert (result.code, result.out) == (1, "")
    assert "it was not made by the key, or was changed since" in result.err
    assert ovm("sign", "--key", private, "demo:base", COSIGN_PASSWORD="wrong").code == 1


def write_policy(ovm: Ovm, public: str, more: str = "") -> Path:
    path = ovm.root / "etc" / "policy.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    signed = f'[{{type = "signedBy", keys = ["{public}"]}}]'
    path.write_text(f'version = 1\n{more}\ndefault = {signed}\n[ramSnapshot]\ndefault = [{{type = "reject"}}]\n')
    return path


def test_policy_check_explains(ovm: Ovm, packed: str, keys: tuple[str, str]) -> None:
    private, public = keys
    assert "admitted, like everything" in ovm.ok("policy", "check", "demo:base")
    path = write_policy(ovm, public)
    refused = ovm("policy", "check", "demo:base")
    assert refused.code == 1
    assert "demo:base: local:demo, local:" in refused.out
    assert f"refused: the default demands a signature by {public}: it has no signature" in refused.out
    assert "remedy:" in refused.err
    ovm.ok("sign", "--key", private, "demo:base", COSIGN_PASSWORD="")
    explained = ovm.json("policy", "check", packed)
    assert explained["admitted"]
    assert explained["policy"] == str(path)
    assert [(each["by"], each["key"]) for each in explained["rulings"]] == [("signedBy", public)]
    write_policy(ovm, public, "scope = {}")
    unusable = ovm("policy", "check", "demo:base", "--format=json")
    assert (unusable.code, unusable.problem["code"]) == (1, "policy.invalid")


def test_doctor_tells_of_the_policy(ovm: Ovm, keys: tuple[str, str]) -> None:
    def found() -> tuple[str, str]:
        report = json.loads(ovm("doctor", "--format=json").out)["findings"]
        (finding,) = [each for each in report if each["check"] == "policy"]
        return finding["level"], finding["why"] + finding["figure"]

    assert found()[0] == "ok"
    path = write_policy(ovm, keys[1])
    assert found() == ("ok", f"{path}: 0 scopes")
    path.write_text(path.read_text().replace("signedBy", "accept").replace(f', keys = ["{keys[1]}"]', ""))
    level, why = found()
    assert level == "warn"
    assert "its default accepts every artifact" in why
    path.write_text("version = 1")
    assert found()[0] == "fail"


@pytest.mark.real
def test_run_is_refused_with_126_and_status_names_the_key(ovm: Ovm, packed: str, keys: tuple[str, str]) -> None:
    private, public = keys
    write_policy(ovm, public, 'localSnapshots = "reject"')
    try:
        refused = ovm("run", "demo:base", "--format=json")
        assert (refused.code, refused.problem["code"]) == (126, "policy.rejected")
        assert refused.problem["fields"]["scope"] == "default"
        ovm.ok("sign", "--key", private, "demo:base", COSIGN_PASSWORD="")
        ovm.ok("run", "demo:base", "--name", "signed")
        assert f"artifact: signed by {public} (v" in ovm.ok("status", "signed")
        ovm.ok("snapshot", "signed", "-t", "demo:warm")
        ovm.ok("sign", "--key", private, "demo:warm", COSIGN_PASSWORD="")
        snapshot = ovm("run", "demo:warm")
        assert snapshot.code == 126
        assert "the default for RAM snapshots rejects it" in snapshot.err
    finally:
        left = ovm("ps", "-aq").out.split()
        if left:
            ovm.ok("rm", "-f", *left)
        ovm("serve", "--stop")
