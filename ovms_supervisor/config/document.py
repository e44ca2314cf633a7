"""The keys a configuration may have, in the shape of the TOML file; the environment and flags are given this shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from ovms_supervisor.config.settings import EventLoop, IsolationMode, LogFormat, LogLevel, MlockPolicy, OnExit
from spec.decoding import NotDecodable, from_builtins
from spec.errors import InvalidConfig

Size = int | str
ENV_PREFIX = "OVMS_"


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Runtime(_Part, frozen=True, kw_only=True):
    """``[runtimes.NAME]``."""

    binary: str | UnsetType = UNSET


class Runtimes(_Part, frozen=True, kw_only=True):
    """``[runtimes]``."""

    qemu: Runtime | UnsetType = UNSET
    cloud_hypervisor: Runtime | UnsetType = field(name="cloud-hypervisor", default=UNSET)


class Registries(_Part, frozen=True, kw_only=True):
    """``[registries]``."""

    plain_http: list[str] | str | UnsetType = UNSET
    """Hosts; as text, with commas between them."""
    ca_file: str | UnsetType = UNSET


class Roles(_Part, frozen=True, kw_only=True):
    """``[roles]``: users by name or number, groups with ``@`` before it; as text, with commas between them."""

    operators: list[str | int] | str | UnsetType = UNSET
    readers: list[str | int] | str | UnsetType = UNSET


class Listen(_Part, frozen=True, kw_only=True):
    """``[listen]``."""

    address: str | UnsetType = UNSET
    cert: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    client_ca: str | UnsetType = UNSET
    token_file: str | UnsetType = UNSET


class Document(_Part, frozen=True, kw_only=True):
    """ovms.toml; what is not set comes from elsewhere."""

    root: str | UnsetType = UNSET
    run_dir: str | UnsetType = UNSET
    socket: str | UnsetType = UNSET
    socket_group: str | UnsetType = UNSET
    store_limit: Size | UnsetType = UNSET
    image_dir: str | UnsetType = UNSET
    image_budget: Size | UnsetType = UNSET
    huge_pages: bool | UnsetType = UNSET
    clone_budget: Size | UnsetType = UNSET
    policy: str | UnsetType = UNSET
    verify_on_pull: bool | UnsetType = UNSET
    max_connections: Annotated[int, Meta(ge=1, le=65536)] | UnsetType = UNSET
    nice: Annotated[int, Meta(ge=-20, le=19)] | UnsetType = UNSET
    max_starts: Annotated[int, Meta(ge=1, le=65536)] | UnsetType = UNSET
    mlock: MlockPolicy | UnsetType = UNSET
    isolation: IsolationMode | UnsetType = UNSET
    log_limit: Size | UnsetType = UNSET
    stop_grace_s: Annotated[float, Meta(ge=0, le=3600)] | UnsetType = UNSET
    on_exit: OnExit | UnsetType = UNSET
    event_loop: EventLoop | UnsetType = UNSET
    log_format: LogFormat | UnsetType = UNSET
    log_level: LogLevel | UnsetType = UNSET
    warm: str | list[str] | UnsetType = UNSET
    warm_reserve: Size | UnsetType = UNSET
    memory: Size | UnsetType = UNSET
    cpus: Annotated[int, Meta(ge=1, le=255)] | UnsetType = UNSET
    listen: Listen | UnsetType = UNSET
    roles: Roles | UnsetType = UNSET
    registries: Registries | UnsetType = UNSET
    runtimes: Runtimes | UnsetType = UNSET


def all_keys(struct: type[msgspec.Struct] = Document, prefix: str = "") -> Iterator[str]:
    """Every key in dotted form, in the order of the document: ``root``, …, ``runtimes.qemu.binary``."""
    for each in msgspec.structs.fields(struct):
        nested = next((kind for kind in getattr(each.type, "__args__", ()) if _is_part(kind)), None)
        if nested is None:
            yield prefix + each.encode_name
        else:
            yield from all_keys(nested, f"{prefix}{each.encode_name}.")


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _Part)


def variable_of(key: str) -> str:
    """The environment variable of a key: ``runtimes.qemu.binary`` is ``OVMS_RUNTIMES_QEMU_BINARY``."""
    return ENV_PREFIX + key.replace(".", "_").replace("-", "_").upper()


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as the tables of a TOML document."""
    document: dict[str, Any] = {}
    for key, value in flat.items():
        *tables, last = key.split(".")
        table = document
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
    return document


def flat(document: Document) -> dict[str, Any]:
    """The values that are set, by dotted key."""
    return dict(_flat(msgspec.to_builtins(document), ""))


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def decode(document: Mapping[str, Any], where: str, *, from_text: bool) -> Document:
    """Check the shape. ``from_text``: values are strings that stand for numbers where the key is one.

    Raises InvalidConfig with ``where`` (a file, a variable) and the key in the detail and the fields.
    """
    try:
        return from_builtins(document, Document, strict=not from_text)
    except NotDecodable as error:
        message = error.message
        key = error.path.removeprefix("$").removeprefix(".")
        if "unknown field `" in message:
            unknown = message.partition("`")[2].rstrip("`")
            key = f"{key}.{unknown}" if key else unknown
            message = f"unknown key {key!r}"
        else:
            message = f"{key}: {message[:1].lower()}{message[1:]}{_choices(key)}"
        raise InvalidConfig(f"{where}: {message}", source=where, key=key) from error


def _choices(key: str) -> str:
    """The words that a key may have, for the error; nothing if it takes any."""
    for each in msgspec.structs.fields(Document):
        if each.encode_name == key:
            words = [
                word for kind in each.type.__args__ for word in getattr(kind, "__args__", ()) if isinstance(word, str)
            ]
            return f"; it may be {' or '.join(words)}" if words else ""
    return ""
