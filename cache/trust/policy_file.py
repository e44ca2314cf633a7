"""The policy file: TOML, decoded strictly, since a misspelt rule is a rule that is not there (spec/policy.md)."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from cache.host_errors import host_errors, open_regular
from cache.trust.claim import Format
from cache.trust.keys import MAX_KEY_FILE_BYTES, decode_public_key
from cache.trust.scopes import parse_scope
from cache.trust.verification import FORMATS, NamedKey
from spec.decoding import NotDecodable, from_builtins
from spec.errors import InvalidPolicy, OvmsError

MAX_POLICY_BYTES: Final = 1 << 20
What = Literal["artifact", "ramSnapshot"]
LocalSnapshots = Literal["accept", "reject"]
FileIdentity = tuple[int, int, int, int, int]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something that must hold. ``signedBy`` holds if one of the keys made one of the signatures."""

    kind: Literal["accept", "reject", "signedBy"]
    keys: tuple[NamedKey, ...] = ()
    formats: frozenset[Format] = FORMATS


@dataclass(frozen=True, slots=True)
class Rules:
    """What must hold for a scope, all of it; ``default`` where no scope applies."""

    default: tuple[Requirement, ...]
    scopes: Mapping[str, tuple[Requirement, ...]]


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy file with the keys that it names."""

    path: Path
    rules: Mapping[What, Rules]
    local_snapshots: LocalSnapshots
    """Whether a snapshot that this store has made needs no signature."""
    files: Mapping[Path, FileIdentity]
    """What was read, as it was just before: a file that is another one by now has been changed since."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class _Accept(_Part, frozen=True, tag_field="type", tag="accept"):
    pass


class _Reject(_Part, frozen=True, tag_field="type", tag="reject"):
    pass


class _SignedBy(_Part, frozen=True, tag_field="type", tag="signedBy"):
    keys: Annotated[list[str], Meta(min_length=1, max_length=64)]
    formats: Annotated[tuple[Format, ...], Meta(min_length=1)] = ("v2", "v3")


_Requirements = Annotated[list[_Accept | _Reject | _SignedBy], Meta(min_length=1, max_length=16)]


class _RamSnapshot(_Part, frozen=True):
    default: _Requirements
    scopes: dict[str, _Requirements] = {}


class _Document(_Part, frozen=True):
    version: Literal[1]
    default: _Requirements
    ram_snapshot: _RamSnapshot
    scopes: dict[str, _Requirements] = {}
    local_snapshots: LocalSnapshots = "accept"


def read_policy(path: Path) -> Policy:
    """Read the file and the keys that it names. Raises InvalidPolicy for whatever keeps it from being used."""
    files: dict[Path, FileIdentity] = {}
    document = _decode(_read(path, MAX_POLICY_BYTES, files), path)
    keys: dict[str, NamedKey] = {}
    for requirement in _all_requirements(document):
        for name in requirement.keys if isinstance(requirement, _SignedBy) else ():
            if name not in keys:
                keys[name] = _key(path.parent / name, files)  # an absolute name stays as it is
    return Policy(
        path,
        {
            "artifact": _rules(path, document.default, document.scopes, keys),
            "ramSnapshot": _rules(path, document.ram_snapshot.default, document.ram_snapshot.scopes, keys),
        },
        document.local_snapshots,
        files,
    )


def _decode(data: bytes, path: Path) -> _Document:
    try:
        return from_builtins(tomllib.loads(data.decode()), _Document)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidPolicy(f"{path} is not TOML: {error}", path=str(path)) from error
    except NotDecodable as error:
        raise InvalidPolicy(f"{path}: {error}", path=str(path)) from error


def _all_requirements(document: _Document) -> list[Any]:
    ram = document.ram_snapshot
    lists = [document.default, *document.scopes.values(), ram.default, *ram.scopes.values()]
    return [requirement for each in lists for requirement in each]


def _rules(path: Path, default: list[Any], scopes: Mapping[str, list[Any]], keys: Mapping[str, NamedKey]) -> Rules:
    found: dict[str, tuple[Requirement, ...]] = {}
    for text, requirements in scopes.items():
        scope = _explained(path, lambda text=text: parse_scope(text))  # type: ignore[misc]
        if scope in found:
            raise InvalidPolicy(f"{path}: the scope {scope!r} has two rules", path=str(path), scope=scope)
        found[scope] = tuple(_requirement(each, keys) for each in requirements)
    return Rules(tuple(_requirement(each, keys) for each in default), found)


def _requirement(each: _Accept | _Reject | _SignedBy, keys: Mapping[str, NamedKey]) -> Requirement:
    if isinstance(each, _SignedBy):
        return Requirement("signedBy", tuple(keys[name] for name in each.keys), frozenset(each.formats))
    return Requirement("accept" if isinstance(each, _Accept) else "reject")


def _key(path: Path, files: dict[Path, FileIdentity]) -> NamedKey:
    data = _read(path, MAX_KEY_FILE_BYTES, files)
    return NamedKey(str(path), _explained(path, lambda: decode_public_key(data)))


def file_identity(status: os.stat_result) -> FileIdentity:
    """Changes with the file: who writes to it changes its times, who replaces it the inode."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def path_identity(path: Path) -> FileIdentity | None:
    """Of the file at a path; None if there is none, or none that we may look at."""
    try:
        return file_identity(path.stat())
    except OSError:
        return None


def _read(path: Path, max_bytes: int, files: dict[Path, FileIdentity]) -> bytes:
    """A file that nobody but its owner, this user or root, can write to: whoever can write to it makes the policy."""

    def read() -> bytes:
        with os.fdopen(open_regular(path), "rb") as file, host_errors(path):
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()):
                raise InvalidPolicy(f"{path} belongs to user {status.st_uid}, who could change it", path=str(path))
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                mode = stat.S_IMODE(status.st_mode)
                remedy = f"chmod go-w {path}"
                raise InvalidPolicy(f"others can write to {path} (mode {mode:04o})", remedy=remedy, path=str(path))
            files[path] = file_identity(status)
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise InvalidPolicy(f"{path} has more than {max_bytes} bytes", path=str(path))
        return data

    return _explained(path, read)


def _explained(path: Path, work: Callable[[], T]) -> T:
    try:
        return work()
    except InvalidPolicy:
        raise
    except OvmsError as error:
        where = "" if str(path) in error.detail else f"{path}: "
        raise InvalidPolicy(f"{where}{error.detail}", remedy=error.remedy or None, path=str(path)) from error
