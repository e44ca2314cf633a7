"""Keys, signatures and policy from the command line, on real files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
