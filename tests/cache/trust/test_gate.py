"""Decisions: nearest scope, all requirements, separate rules for RAM, what was made here, and nothing that slips by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.pack import pack
from cache.prune import prune
from cache.store import Store
from cache.trust.decision import Decision
from cache.trust.gate import Gate
from cache.trust.keys import PrivateKey
from cache.trust.local_signatures import keep_signatures, local_signatures
from cache.trust.policy_source import PolicySource
from cache.trust.signature_manifest import sign_v2, sign_v3
from spec.digest import Digest, digest_of, hex_of
from spec.errors import CorruptStore, PolicyRejected
from spec.reference import DigestSource, PathSource, parse_reference
from tests.cache.conftest import Packing

TEAM = PrivateKey.generate()
CI = PrivateKey.generate()
BASE = digest_of(b"base")
Write = Callable[..., None]


@pytest.fixture
def policy(store: Store) -> Path:
    directory = store.root / "etc"
    directory.mkdir()
    (directory / "team.pub").write_bytes(TEAM.public.pem)
    (directory / "ci.pub").write_bytes(CI.public.pem)
    return directory / "policy.toml"


@pytest.fixture
def gate(store: Store, policy: Path) -> Gate:
    return Gate(store, PolicySource(store.root, None))


@pytest.fixture
def write(policy: Path) -> Write:
    """Write a policy; rules are ``accept``, ``reject``, or the names of keys that must all have signed."""

    def rule(words: str) -> str:
        kinds = [
            f'{{type = "{word}"}}' if word in ("accept", "reject") else f'{{type = "signedBy", keys = ["{word}.pub"]}}'
            for word in words.split()
        ]
        return f"[{', '.join(kinds)}]"

    def document(
        default: str = "reject", ram: str = "reject", *, local: str = "accept", **scopes: dict[str, str]
    ) -> None:
        lines = ["version = 1", f'localSnapshots = "{local}"', f"default = {rule(default)}"]
        for table, of, first in (
            ("scopes", "artifact", ""),
            ("ramSnapshot.scopes", "ram_scopes", f"default = {rule(ram)}"),
        ):
            lines += ["[ramSnapshot]", first] if first else []
            lines += [f"[{table}]", *(f'"{scope}" = {rule(words)}' for scope, words in scopes.get(of, {}).items())]
        policy.write_text("\n".join(lines))

    return document


@pytest.fixture
def digest(store: Store, packing: Packing) -> Digest:
    return pack(store, packing("reg.example.com/team/app:1"))


def decide(
    gate: Gate, digest: Digest, name: str | None = "reg.example.com/team/app:1", *, ram: bool = False
) -> Decision:
    source = parse_reference(name) if name else DigestSource(hex_of(digest))
    return gate.decide(digest, source, ram_snapshot=ram)


def sign(store: Store, digest: Digest, key: PrivateKey, format_: str = "v3") -> None:
    made = sign_v3(store.artifact(digest).descriptor, key) if format_ == "v3" else sign_v2(digest, "demo", key)
    keep_signatures(store, digest, "demo", made)


def test_without_a_policy_everything_is_admitted(gate: Gate, digest: Digest) -> None:
    decision = decide(gate, digest, ram=True)
    assert decision.refused is None
    assert decision.require("it").policy is None


def test_a_policy_that_says_nothing_else_refuses(gate: Gate, digest: Digest, write: Write) -> None:
    write()
    with pytest.raises(PolicyRejected, match="the default rejects it") as caught:
        decide(gate, digest).require("app:1")
    assert caught.value.fields["scope"] == "default"
    assert caught.value.fields["rule"] == "reject"
    assert "[scopes]" in caught.value.remedy
    assert "ovm policy check app:1" in caught.value.remedy


def test_the_nearest_scope_alone_counts(gate: Gate, digest: Digest, write: Write) -> None:
    write(artifact={"reg.example.com": "accept", "reg.example.com/team": "reject", "*.example.com": "accept"})
    refused = decide(gate, digest).refused
    assert refused is not None
    assert refused.scope == "reg.example.com/team"
    assert decide(gate, digest, "reg.example.com/teams/app").refused is None
    assert decide(gate, digest, "REG.example.com:443/other").refused is None
    wild = decide(gate, digest, "eu.example.com/app")
    assert [each.scope for each in wild.rulings] == ["*.example.com"]
    assert decide(gate, digest, "example.com/app").refused is not None
    assert decide(gate, digest, "team/app").refused is not None, "a local name is not in a registry's scope"


@pytest.mark.parametrize("format_", ["v2", "v3"])
def test_a_signature_by_the_demanded_key(store: Store, gate: Gate, digest: Digest, write: Write, format_: str) -> None:
    write("team")
    assert "it has no signature" in str(decide(gate, digest).refused)
    sign(store, digest, CI, format_)
    with pytest.raises(PolicyRejected, match="not made by the key") as caught:
        decide(gate, digest).require("app:1")
    assert "ovm sign" in caught.value.remedy
    sign(store, digest, TEAM, format_)
    (check,) = decide(gate, digest).require("app:1").checks
    assert (check.what, check.by, check.scope, check.signature) == ("artifact", "signedBy", "default", format_)
    assert check.fingerprint == TEAM.public.fingerprint
    assert check.key == str(store.root / "etc" / "team.pub")


def test_a_decision_is_remembered_until_something_changes(
    store: Store, gate: Gate, digest: Digest, write: Write, policy: Path
) -> None:
    write("team")
    sign(store, digest, TEAM)
    first = decide(gate, digest)
    assert first.refused is None
    assert decide(gate, digest) is first
    store.tag("copy:1", digest)  # another index
    again = decide(gate, digest)
    assert again is not first
    assert again.refused is None
    (policy.parent / "team.pub").write_bytes(CI.public.pem)
    assert decide(gate, digest).refused is not None
    (policy.parent / "team.pub").write_bytes(TEAM.public.pem)
    assert decide(gate, digest).refused is None
    for each in store.referrers(digest):
        store.unlist(each.digest)
    assert decide(gate, digest).refused is not None


def test_a_record_that_is_taken_away_is_missed(store: Store, gate: Gate, digest: Digest, write: Write) -> None:
    write()
    gate.note_made_here(digest, BASE)
    assert decide(gate, digest).refused is None
    record_of(store, digest).unlink()
    assert decide(gate, digest).refused is not None


def test_all_requirements_must_hold(store: Store, gate: Gate, digest: Digest, write: Write) -> None:
    write("team ci")
    sign(store, digest, TEAM)
    refused = decide(gate, digest).refused
    assert refused is not None
    assert "ci.pub" in refused.reason
    sign(store, digest, CI)
    assert decide(gate, digest).refused is None
    write("team reject")
    assert decide(gate, digest).refused is not None


def test_ram_snapshots_have_rules_of_their_own(store: Store, gate: Gate, digest: Digest, write: Write) -> None:
    write("accept", "team")
    assert decide(gate, digest).refused is None
    with pytest.raises(PolicyRejected, match="the RAM snapshot") as caught:
        decide(gate, digest, ram=True).require("app:1")
    assert caught.value.fields["what"] == "ramSnapshot"
    sign(store, digest, TEAM)
    assert [each.what for each in decide(gate, digest, ram=True).require("app:1").checks] == ["artifact", "ramSnapshot"]
    write("reject", "accept")
    assert decide(gate, digest, ram=True).refused is not None, "the rules for artifacts count for those with RAM too"


def test_by_digest_every_name_has_to_be_admitted(store: Store, gate: Gate, digest: Digest, write: Write) -> None:
    write("reject", artifact={"reg.example.com": "accept"})
    assert decide(gate, digest, None).refused is None
    from_path = gate.decide(digest, PathSource(Path("/x.tar")), ram_snapshot=False)
    assert from_path.refused is not None, "what comes from a path has no name, whatever its manifest says"
    store.tag("copy:1", digest)
    refused = decide(gate, digest, None).refused
    assert refused is not None
    assert refused.name == "copy:1"
    assert decide(gate, digest).refused is None
    store.unlist(digest)
    refused = decide(gate, digest, None).refused
    assert refused is not None
    assert (refused.name, refused.scope) == (None, "default")


def test_a_digest_beside_a_name_has_that_name_only_if_the_store_says_so(
    store: Store, gate: Gate, digest: Digest, packing: Packing, write: Write
) -> None:
    other = pack(store, packing("evil:1", args="evil"))
    write("reject", artifact={"reg.example.com": "accept"})
    assert decide(gate, digest, f"reg.example.com/team/app@{digest}").refused is None
    assert decide(gate, digest, f"reg.example.com/team/app:2@{digest}").refused is None
    for name in (f"reg.example.com/team/app@{other}", f"reg.example.com/team/app:1@{other}"):
        refused = decide(gate, other, name).refused
        assert refused is not None, "else any artifact could be started under any name"
        assert refused.name == "evil:1"
    gate.note_pulled(other, "reg.example.com/elsewhere")
    assert decide(gate, other, f"reg.example.com/team/app@{other}").refused is not None
    assert decide(gate, other, f"reg.example.com/elsewhere@{other}").refused is None


def test_signatures_of_another_artifact_do_not_count(
    store: Store, gate: Gate, digest: Digest, packing: Packing, write: Write
) -> None:
    write("team")
    other = pack(store, packing("other:1", args="quiet"))
    sign(store, other, TEAM)
    keep_signatures(store, digest, "demo", sign_v2(other, "demo", TEAM))
    assert decide(gate, other, "other:1").refused is None
    refused = decide(gate, digest).refused
    assert refused is not None
    assert f"not {digest}" in refused.reason


def test_a_part_that_is_told_by_a_tag_is_vouched_for_by_nobody(gate: Gate, write: Write) -> None:
    write("accept")
    name = parse_reference("reg.example.com/new:1")
    unpinned = ["reg.example.com/kernels:latest"]
    decision = gate.decide(BASE, name, ram_snapshot=False, signatures=list, unpinned=unpinned)
    with pytest.raises(PolicyRejected, match="kernels:latest by tag") as caught:
        decision.require("new:1")
    assert "by digest" in caught.value.remedy


def test_signatures_can_be_given_for_what_is_not_here_yet(gate: Gate, write: Write) -> None:
    write("team")
    name = parse_reference("reg.example.com/new:1")
    made = sign_v2(BASE, "reg.example.com/new", TEAM)
    assert gate.decide(BASE, name, ram_snapshot=False, signatures=lambda: [made]).refused is None
    assert gate.decide(BASE, name, ram_snapshot=False, signatures=list).refused is not None


# --- made here -----------------------------------------------------------------------------------------------------


def test_what_was_made_here_needs_no_signature(gate: Gate, digest: Digest, write: Write) -> None:
    write("team", "team")
    assert decide(gate, digest, ram=True).refused is not None
    gate.note_made_here(digest, BASE)
    assert [each.by for each in decide(gate, digest, ram=True).require("app:1").checks] == ["madeHere", "madeHere"]
    write()
    assert decide(gate, digest, "local/name:1", ram=True).refused is None
    write("team", "team", local="reject")
    assert decide(gate, digest).refused is not None


def test_what_is_refused_by_name_is_refused_though_made_here(gate: Gate, digest: Digest, write: Write) -> None:
    gate.note_made_here(digest, BASE)
    write(artifact={"reg.example.com": "reject"})
    assert decide(gate, digest).refused is not None


def record_of(store: Store, digest: Digest) -> Path:
    return store.trust_dir / "made-here" / f"sha256-{hex_of(digest)}.json"


def test_the_record_and_its_key_are_private(store: Store, gate: Gate, digest: Digest) -> None:
    gate.note_made_here(digest, BASE)
    assert (store.trust_dir / "key").stat().st_mode & 0o777 == 0o600
    assert store.trust_dir.stat().st_mode & 0o077 == 0
    assert json.loads(record_of(store, digest).read_bytes())["record"]["base"] == BASE


def test_an_edited_record_says_nothing(store: Store, gate: Gate, digest: Digest, write: Write) -> None:
    write()
    gate.note_made_here(digest, BASE)
    path = record_of(store, digest)
    good = path.read_bytes()
    for at in range(0, len(good), 5):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert decide(gate, digest).refused is not None, good[at:]
    for bad in (b"", good[:-1], b"[" * 10000, b"\xff" * 100, good.replace(b'"mac":"', b'"mac":"\xc3\xa9')):
        path.write_bytes(bad)
        assert decide(gate, digest).refused is not None
    path.write_bytes(good)
    assert decide(gate, digest).refused is None


def test_a_record_copied_to_another_digest_or_store_says_nothing(
    store: Store, gate: Gate, digest: Digest, packing: Packing, write: Write, tmp_path: Path
) -> None:
    write()
    gate.note_made_here(digest, BASE)
    other = pack(store, packing("other:1", args="quiet"))
    record_of(store, other).write_bytes(record_of(store, digest).read_bytes())
    assert decide(gate, other, "other:1").refused is not None

    second = Store(tmp_path / "second")
    second.create()
    elsewhere = Gate(second, PolicySource(store.root, None))
    assert pack(second, packing("reg.example.com/team/app:1")) == digest
    assert pack(second, packing("other:1", args="quiet")) == other
    elsewhere.note_made_here(other, BASE)
    record_of(second, digest).write_bytes(record_of(store, digest).read_bytes())
    assert decide(elsewhere, digest).refused is not None
    assert decide(elsewhere, other, "other:1").refused is None
    second.close()


def test_a_record_goes_with_its_artifact(store: Store, gate: Gate, digest: Digest) -> None:
    gate.note_made_here(digest, BASE)
    prune(store, everything=True)
    assert record_of(store, digest).exists()
    store.unlist(digest)
    prune(store, everything=True)
    assert not record_of(store, digest).exists()


def test_a_key_that_others_can_read_is_not_used(store: Store, gate: Gate, digest: Digest, write: Write) -> None:
    write()
    gate.note_made_here(digest, BASE)
    (store.trust_dir / "key").chmod(0o640)
    again = Gate(store, PolicySource(store.root, None))
    assert decide(again, digest).refused is not None
    with pytest.raises(CorruptStore, match="only this user can read"):
        again.note_made_here(digest, BASE)


def test_two_processes_agree_on_the_key(store: Store, digest: Digest, write: Write) -> None:
    write()
    first, second = (Gate(store, PolicySource(store.root, None)) for _ in range(2))
    first.note_made_here(digest, BASE)
    assert decide(second, digest).refused is None
    second.note_made_here(digest, BASE)
    assert decide(first, digest).refused is None
    assert [path.name for path in store.trust_dir.iterdir() if path.name.startswith(".")] == []
    assert local_signatures(store, digest) == []
