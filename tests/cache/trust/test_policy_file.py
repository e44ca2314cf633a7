"""The policy file: what it may say, everything that refuses to load, and that changes are seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.trust.keys import PrivateKey
from cache.trust.policy_file import read_policy
from cache.trust.policy_source import PolicySource
from cache.trust.scopes import parse_scope, scopes_of
from spec.errors import InvalidPolicy, InvalidReference
from spec.reference import parse_reference

REJECT = 'version = 1\ndefault = [{type = "reject"}]\n'
RAM = '[ramSnapshot]\ndefault = [{type = "reject"}]\n'
MINIMAL = REJECT + RAM


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "team.pub").write_bytes(PrivateKey.generate().public.pem)
    (tmp_path / "other.pub").write_bytes(PrivateKey.generate().public.pem)
    return tmp_path / "policy.toml"


def test_a_whole_policy(policy: Path) -> None:
    other = policy.parent / "other.pub"
    policy.write_text(
        f"""
        version = 1
        localSnapshots = "reject"
        default = [{{ type = "reject" }}]
        [scopes]
        "Registry.Example.com:443/team" = [{{ type = "signedBy", keys = ["keys/team.pub", "{other}"] }}]
        "local:" = [{{ type = "accept" }}]
        [ramSnapshot]
        default = [{{ type = "reject" }}]
        [ramSnapshot.scopes]
        "*.example.com" = [
            {{ type = "signedBy", keys = ["keys/team.pub"], formats = ["v3"] }},
            {{ type = "signedBy", keys = ["{other}"] }},
        ]
        """
    )
    read = read_policy(policy)
    assert read.local_snapshots == "reject"
    team = read.rules["artifact"].scopes["registry.example.com/team"]
    assert [key.name for key in team[0].keys] == [str(policy.parent / "keys/team.pub"), str(other)]
    assert team[0].formats == {"v2", "v3"}
    both = read.rules["ramSnapshot"].scopes["*.example.com"]
    assert [each.kind for each in both] == ["signedBy", "signedBy"]
    assert both[0].formats == {"v3"}
    assert set(read.files) == {policy, policy.parent / "keys/team.pub", other}


def test_the_example_of_the_document_is_one(tmp_path: Path) -> None:
    document = (Path(__file__).parents[3] / "spec" / "policy.md").read_text()
    example = document.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "policy.toml").write_text(example)
    (tmp_path / "keys").mkdir()
    for name in ("team", "old-team", "release"):
        (tmp_path / "keys" / f"{name}.pub").write_bytes(PrivateKey.generate().public.pem)
    read = read_policy(tmp_path / "policy.toml")
    assert read.rules["artifact"].default[0].kind == read.rules["ramSnapshot"].default[0].kind == "reject"
    assert len(read.rules["artifact"].scopes) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing required field"),
        ("default = [", "not TOML"),
        (RAM, "missing required field"),
        ("version = 1\n" + RAM, "`default`"),
        (REJECT, "`ramSnapshot`"),
        (MINIMAL.replace("1", "2", 1), "version"),
        (REJECT + "scope = {}\n" + RAM, "unknown field `scope`"),
        (MINIMAL + "defaults = []\n", "unknown field `defaults`"),
        (MINIMAL.replace('"reject"', '"rejct"', 1), "rejct"),
        (MINIMAL.replace('{type = "reject"}', "", 1), "length >= 1"),
        (MINIMAL.replace('{type = "reject"}', '{type = "reject", keys = []}', 1), "unknown field `keys`"),
        (MINIMAL.replace('{type = "reject"}', '{type = "signedBy"}', 1), "`keys`"),
        (MINIMAL.replace('{type = "reject"}', '{type = "signedBy", keys = []}', 1), "length >= 1"),
        (MINIMAL.replace('{type = "reject"}', '{type = "signedBy", keys = ["no.pub"]}', 1), r"no\.pub"),
        (MINIMAL.replace('{type = "reject"}', '{type = "signedBy", keys = ["."]}', 1), "regular file"),
        (MINIMAL.replace('{type = "reject"}', '{type = "signedBy", keys = ["policy.toml"]}', 1), "PEM blocks"),
        (MINIMAL.replace('{type = "reject"}', '{type = "signedBy", keys = ["other.pub"], formats = ["v1"]}', 1), "v1"),
        (MINIMAL + '[scopes]\n"demo" = [{type = "accept"}]\n', "'demo' is not a scope"),
        (MINIMAL + '[scopes]\n"a.b" = [{type = "accept"}]\n"A.b:443" = [{type = "reject"}]\n', "two rules"),
        (REJECT + 'localSnapshots = "yes"\n' + RAM, "localSnapshots"),
    ],
)
def test_what_is_not_understood_is_not_loaded(policy: Path, text: str, words: str) -> None:
    policy.write_text(text)
    with pytest.raises(InvalidPolicy, match=words) as caught:
        read_policy(policy)
    assert caught.value.remedy


@pytest.mark.parametrize("which", ["policy.toml", "keys/team.pub"])
@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_files_that_others_can_write_to_are_not_trusted(policy: Path, which: str, mode: int) -> None:
    policy.write_text(MINIMAL.replace('{type = "reject"}', '{type = "signedBy", keys = ["keys/team.pub"]}'))
    read_policy(policy)
    (policy.parent / which).chmod(mode)
    with pytest.raises(InvalidPolicy, match="others can write to") as caught:
        read_policy(policy)
    assert "chmod" in caught.value.remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_trusted(policy: Path) -> None:
    policy.write_text(MINIMAL)
    os.chown(policy, 12345, -1)
    with pytest.raises(InvalidPolicy, match="belongs to user 12345"):
        read_policy(policy)


def test_a_changed_policy_or_key_is_read_again(policy: Path) -> None:
    source = PolicySource(policy.parent, policy)
    with pytest.raises(InvalidPolicy, match="configuration names it"):
        source.current()
    key = policy.parent / "keys" / "team.pub"
    policy.write_text(MINIMAL.replace('{type = "reject"}', '{type = "signedBy", keys = ["keys/team.pub"]}'))
    first = source.current()
    assert first is not None
    assert source.current() is first
    key.write_bytes(PrivateKey.generate().public.pem)
    os.utime(key, ns=(1, 1))
    second = source.current()
    assert second is not None
    assert second is not first
    assert second.rules["artifact"].default[0].keys[0].key.spki != first.rules["artifact"].default[0].keys[0].key.spki
    key.unlink()
    for _ in range(2):  # and not the old one
        with pytest.raises(InvalidPolicy):
            source.current()
    key.write_bytes(PrivateKey.generate().public.pem)
    assert source.current() is not None
    policy.unlink()
    with pytest.raises(InvalidPolicy):
        source.current()


def test_without_a_policy_there_is_none_until_there_is(tmp_path: Path) -> None:
    source = PolicySource(tmp_path, None)
    assert source.path == tmp_path / "etc" / "policy.toml"
    assert source.current() is None
    source.path.parent.mkdir()
    source.path.symlink_to(tmp_path / "nowhere")  # somebody meant there to be one
    with pytest.raises(InvalidPolicy):
        source.current()
    source.path.unlink()
    source.path.write_text(MINIMAL)
    assert source.current() is not None
    source.path.write_text("version = 1")
    with pytest.raises(InvalidPolicy):
        source.current()


@pytest.mark.parametrize(
    ("name", "scopes"),
    [
        (
            "Reg.Example.com:443/a/b:1",
            ["reg.example.com/a/b", "reg.example.com/a", "reg.example.com", "*.example.com", "*.com"],
        ),
        (
            "reg.example.com:5000/a",
            ["reg.example.com:5000/a", "reg.example.com:5000", "*.example.com:5000", "*.com:5000"],
        ),
        ("localhost/a", ["localhost/a", "localhost"]),
        ("127.0.0.1:5000/a", ["127.0.0.1:5000/a", "127.0.0.1:5000"]),
        ("[::1]:5000/a", ["[::1]:5000/a", "[::1]:5000"]),
        ("demo:base", ["local:demo", "local:"]),
        ("team/app", ["local:team/app", "local:team", "local:"]),
    ],
)
def test_the_scopes_of_a_name_nearest_first(name: str, scopes: list[str]) -> None:
    assert scopes_of(parse_reference(name)) == scopes
    assert [parse_scope(each) for each in scopes] == scopes


@pytest.mark.parametrize(
    "text",
    ["", "demo", "default", "a.b/", "a.b//c", "a.b/C", "a.b/c:tag", "a.b/c@sha256:00", "*.b/c", "*", "*.*.b", "local",
     "local:a.b/", "local:A", "local:/a", "https://a.b", "a.b c", "local:a.b/c"],
)  # fmt: skip
def test_what_is_no_scope(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_scope(text)


@given(st.text(alphabet="ab.:/*-locA0", max_size=20))
def test_a_scope_is_normal_or_refused(text: str) -> None:
    try:
        scope = parse_scope(text)
    except InvalidReference:
        return
    assert parse_scope(scope) == scope


WORDS = st.sampled_from(["reject", "accept", "signedBy", "v2", "other.pub", "local:", "a.b", ""])
VALUES = st.recursive(
    WORDS | st.integers(-1, 2) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "keys", "formats", "default", "scopes", "a.b"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {toml(each)}' for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


@given(default=VALUES, scopes=VALUES, ram=VALUES)
def test_no_document_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, default: object, scopes: object, ram: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-policy.toml"
    path.write_text(f"version = 1\ndefault = {toml(default)}\nscopes = {toml(scopes)}\nramSnapshot = {toml(ram)}\n")
    try:
        read = read_policy(path)
    except InvalidPolicy:
        return
    assert read.rules["artifact"].default
    assert read.rules["ramSnapshot"].default
