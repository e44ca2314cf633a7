"""Bring the layers together: defaults < file < environment < flags; a value's origin is kept beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ovms_supervisor.config import directories, document, host
from ovms_supervisor.config.settings import DEFAULT_IMAGE_SHARE, DEFAULT_WARM_RESERVE_SHARE, KeptWarm, Listen, Settings
from spec import fault_points
from spec.errors import FileMissing, InvalidConfig, InvalidReference, InvalidSize, PermissionMissing
from spec.reference import PathSource, Reference, Source, is_registry_host, parse_source
from spec.sizes import KIB, MIB, parse_size

MAX_SOCKET_PATH_BYTES = 107
"""unix(7): sun_path has 108 bytes, one of which is the closing NUL."""
_MIN_MEMORY_BYTES = MIB
_MIN_LOG_BYTES = 64 * KIB
_NOT_A_SETTING = frozenset({"OVMS_CONFIG", fault_points.VARIABLE})


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each key its value and where it comes from, in the order of the document."""

    settings: Settings
    values: Mapping[str, Any]
    origins: Mapping[str, str]
    """``default``, ``file PATH``, ``environment VARIABLE`` or ``flag --NAME``; a default may give its reason."""
    file: Path
    file_exists: bool
    unknown_variables: tuple[str, ...]
    """``OVMS_…`` in the environment that are no key. Not refused: container platforms inject such names."""


class _Layers:
    """The values given so far, last writer wins, with origins."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def add(self, flat: Mapping[str, Any], origin: Callable[[str], str]) -> None:
        for key, value in flat.items():
            self.values[key], self.origins[key] = value, origin(key)

    def take(self, key: str, default: Any, why: str = "") -> Any:
        if key not in self.values:
            self.values[key] = default
            self.origins[key] = f"default ({why})" if why else "default"
        return self.values[key]

    def error(self, key: str, problem: str) -> InvalidConfig:
        return InvalidConfig(f"{self.origins[key]}: {key}: {problem}", key=key, source=self.origins[key])

    def path(self, key: str, default: Path, why: str = "") -> Path:
        text = self.take(key, str(default), why)
        if not text or "\0" in text:
            raise self.error(key, "the path is empty" if not text else "a path has no NUL byte")
        try:
            path = Path(text).expanduser()
        except RuntimeError as error:
            raise self.error(key, f"{text[:100]!r} is in the home of a user that there isn't") from error
        if not path.is_absolute():
            if self.origins[key].startswith("file "):
                raise self.error(key, f"{text!r} is relative; a path in a file must be absolute or start with ~")
            path = Path.cwd() / path
        path = Path(os.path.normpath(path))
        self.values[key] = str(path)
        return path

    def size(self, key: str, default: int, *, minimum: int, share_of: int | None = None, why: str = "") -> int:
        given = self.take(key, default, why)
        try:
            size_bytes = given if isinstance(given, int) else _size_or_share(given, share_of)
        except InvalidSize as error:
            raise self.error(key, error.detail) from error
        if size_bytes < minimum:
            raise self.error(key, f"{given} is less than the minimum of {minimum} bytes")
        self.values[key] = size_bytes
        return size_bytes


def load(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, file: Path | None = None
) -> Loaded:
    """Resolve the settings. ``flags`` are by dotted key, None values are ignored; ``file`` is that of ``--config``.

    Without ``file`` and ``OVMS_CONFIG`` the default file is read if it exists. Raises InvalidConfig, FileMissing (a
    named file that isn't there), PermissionMissing (a run directory in /tmp that isn't ours). Reads the file, /proc
    and the mounts; makes nothing.
    """
    environ = os.environ if environ is None else environ
    layers = _Layers()
    named = file or (Path(environ["OVMS_CONFIG"]) if environ.get("OVMS_CONFIG") else None)
    path = (named or directories.default_config_file()).absolute()
    exists = _add_file(layers, path, must_exist=named is not None)
    unknown = _add_environment(layers, environ)
    given = {key: str(value) for key, value in (flags or {}).items() if value is not None}
    decoded = document.decode(document.nested(given), "flags", from_text=True)
    layers.add(document.flat(decoded), lambda key: f"flag --{key.replace('_', '-')}")
    settings = _resolve(layers, environ)
    order = list(document.all_keys())
    return Loaded(
        settings,
        {key: layers.values[key] for key in order},
        {key: layers.origins[key] for key in order},
        path,
        exists,
        unknown,
    )


def _add_file(layers: _Layers, path: Path, *, must_exist: bool) -> bool:
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if must_exist:
            raise FileMissing(f"configuration file {path}: {error.strerror}", path=str(path)) from error
        return False
    except OSError as error:
        raise PermissionMissing(f"configuration file {path}: {error.strerror}", path=str(path)) from error
    import tomllib  # deferred: 12 ms that hosts without a file don't need

    try:
        tables = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} is not TOML: {error}", source=str(path)) from error
    decoded = document.decode(tables, str(path), from_text=False)
    layers.add(document.flat(decoded), lambda _: f"file {path}")
    return True


def _add_environment(layers: _Layers, environ: Mapping[str, str]) -> tuple[str, ...]:
    variables = {document.variable_of(key): key for key in document.all_keys()}
    for variable, key in variables.items():
        if environ.get(variable):  # set but empty is unset, as for XDG variables
            one = document.decode(
                document.nested({key: environ[variable]}), f"environment variable {variable}", from_text=True
            )
            layers.add(document.flat(one), lambda key: f"environment {document.variable_of(key)}")
    return tuple(
        sorted(
            name
            for name in environ
            if name.startswith(document.ENV_PREFIX) and name not in variables and name not in _NOT_A_SETTING
        )
    )


def _resolve(layers: _Layers, environ: Mapping[str, str]) -> Settings:
    total = host.memory_total_bytes()
    root = layers.path("root", directories.default_root())
    run_default, run_why = directories.default_run_dir(environ)
    run_dir = layers.path("run_dir", run_default, run_why)
    if run_dir.parent == Path("/tmp"):
        directories.check_ours(run_dir)  # somebody else may have made it to catch our commands
    socket = layers.path("socket", run_dir / "ovms.sock")
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
        raise layers.error(
            "socket", f"{socket} has more than {MAX_SOCKET_PATH_BYTES} bytes, the limit of a UNIX socket path"
        )
    budget = layers.size(
        "image_budget",
        int(total * DEFAULT_IMAGE_SHARE),
        minimum=MIB,
        share_of=total,
        why=f"{DEFAULT_IMAGE_SHARE:.0%} of memory",
    )
    image_default, image_why = directories.default_image_dir(run_dir, budget)
    defaults = Settings(
        root=root,
        run_dir=run_dir,
        socket=socket,
        image_dir=layers.path("image_dir", image_default, image_why),
        image_budget_bytes=budget,
    )
    policy, policy_why = ("required", "root") if os.geteuid() == 0 else ("best-effort", "not root")
    return msgspec.structs.replace(
        defaults,
        policy=_optional_path(layers, "policy", "etc/policy.toml below root, if it is there"),
        verify_on_pull=layers.take("verify_on_pull", defaults.verify_on_pull),
        clone_budget_bytes=layers.size("clone_budget", total, minimum=MIB, share_of=total, why="all of memory"),
        socket_group=layers.take("socket_group", None),
        huge_pages=layers.take("huge_pages", defaults.huge_pages),
        store_limit_bytes=layers.size("store_limit", 0, minimum=0, share_of=_disk_bytes(layers, root), why="no limit"),
        max_connections=layers.take("max_connections", defaults.max_connections),
        nice=layers.take("nice", defaults.nice),
        max_starts=layers.take("max_starts", defaults.max_starts),
        listen=_listen(layers),
        operators=_names(layers, "roles.operators"),
        readers=_names(layers, "roles.readers") or (),
        mlock=layers.take("mlock", policy, policy_why),
        isolation=layers.take("isolation", defaults.isolation),
        log_limit_bytes=layers.size("log_limit", defaults.log_limit_bytes, minimum=_MIN_LOG_BYTES),
        stop_grace_s=layers.take("stop_grace_s", defaults.stop_grace_s),
        on_exit=layers.take("on_exit", defaults.on_exit),
        event_loop=layers.take("event_loop", defaults.event_loop),
        log_format=layers.take("log_format", defaults.log_format),
        log_level=layers.take("log_level", defaults.log_level),
        warm=_kept_warm(layers),
        warm_reserve_bytes=layers.size(
            "warm_reserve",
            int(total * DEFAULT_WARM_RESERVE_SHARE),
            minimum=0,
            share_of=total,
            why=f"{DEFAULT_WARM_RESERVE_SHARE:.0%} of memory",
        ),
        default_memory_bytes=layers.size("memory", defaults.default_memory_bytes, minimum=_MIN_MEMORY_BYTES),
        default_cpus=layers.take("cpus", defaults.default_cpus),
        plain_http=_hosts(layers, "registries.plain_http"),
        ca_file=_optional_path(layers, "registries.ca_file"),
        binaries={name: _binary(layers, f"runtimes.{name}.binary") for name in defaults.binaries},
    )


def _hosts(layers: _Layers, key: str) -> tuple[str, ...]:
    """Names of registries, as a list or with commas between them."""
    given = layers.take(key, [])
    hosts = [each.strip() for each in (given.split(",") if isinstance(given, str) else given)]
    for host_name in hosts:
        if not is_registry_host(host_name):
            raise layers.error(key, f"{host_name[:100]!r} is not NAME or NAME:PORT")
    layers.values[key] = hosts
    return tuple(hosts)


def _listen(layers: _Layers) -> Listen | None:
    address = layers.take("listen.address", None)
    files = {name: _optional_path(layers, f"listen.{name}") for name in ("cert", "key", "client_ca", "token_file")}
    return None if address is None else Listen(address=address, **files)


def _names(layers: _Layers, key: str) -> tuple[str, ...] | None:
    """Users and groups, as a list or with commas between them; None if not set."""
    given = layers.take(key, None)
    if given is None:
        return None
    names = [str(each).strip() for each in (given.split(",") if isinstance(given, str) else given)]
    if not all(names):
        raise layers.error(key, "a name is empty")
    layers.values[key] = names
    return tuple(names)


def _optional_path(layers: _Layers, key: str, why: str = "") -> Path | None:
    return None if layers.take(key, None, why) is None else layers.path(key, Path())


def _kept_warm(layers: _Layers) -> tuple[KeptWarm, ...]:
    """``REF=COUNT`` or ``REF=MIN..MAX``; several as a list, or with commas between them."""
    given = layers.take("warm", [])
    kept: dict[str, KeptWarm] = {}
    for text in given.split(",") if isinstance(given, str) else given:
        if not text.strip():
            continue
        name, _, count = text.strip().rpartition("=")
        least, _, most = count.partition("..")
        try:
            source = parse_source(name)
            one = KeptWarm(reference=_listed(source), least=int(least), most=int(most or least))
        except (ValueError, InvalidReference) as error:
            raise layers.error("warm", f"{text.strip()[:80]!r} is neither REF=COUNT nor REF=MIN..MAX") from error
        if not 0 <= one.least <= one.most:
            raise layers.error("warm", f"{text.strip()[:80]!r}: the least is more than the most")
        kept[one.reference] = one
    layers.values["warm"] = [str(each) for each in kept.values()]
    return tuple(kept.values())


def _listed(source: Source) -> str:
    if isinstance(source, PathSource):
        raise InvalidReference(f"{source} is a path")
    return source.local_name if isinstance(source, Reference) and source.digest is None else str(source)


def _binary(layers: _Layers, key: str) -> Path | None:
    """A program by path; a bare name is left to PATH."""
    text = layers.take(key, None, "searched in PATH")
    if text is None or "/" not in text:
        return Path(text) if text else None
    return layers.path(key, Path(text))


def _disk_bytes(layers: _Layers, root: Path) -> int | None:
    """The size of the store's file system, looked at only if somebody gave a limit."""
    return host.filesystem_of(root).size_bytes if "store_limit" in layers.values else None


def _size_or_share(text: str, share_of: int | None) -> int:
    if share_of is None or not text.endswith("%"):
        return parse_size(text)
    try:
        share = float(text.removesuffix("%"))
    except ValueError as error:
        raise InvalidSize(f"{text[:40]!r} is neither a size nor a percentage") from error
    if not 0 < share <= 100:
        raise InvalidSize(f"{text[:40]!r} is not between 0% and 100%")
    return int(share_of * share / 100)
