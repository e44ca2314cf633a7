"""Writing what docker and podman read: their configuration file, or the credential helper that it names.

Everything else in the file stays as it is, whoever wrote it.
"""

from __future__ import annotations

import base64
import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from cache.durable import sync_directory, write_all
from cache.host_errors import host_errors
from cache.registry.credentials import MAX_FILE_BYTES, Credential, plain_key
from cache.registry.docker_hub import names_of, server_of
from spec.decoding import NotDecodable, from_json
from spec.errors import InvalidConfig

_SECRET_FIELDS: Final = ("auth", "username", "password", "identitytoken", "registrytoken")

Document = dict[str, Any]


def file_for(files: Sequence[Path], host: str) -> Path:
    """The file that a login at ``host`` belongs in: the one that decides about it, else the first that is there.

    If there is none at all it is the last: docker's, which podman reads too. Raises InvalidConfig, PermissionMissing.
    """
    found = [path for path in files if path.exists()]
    for path in found:
        document = _read(path)
        if helper_of(document, host) or any(_is_of(key, host) for key in _auths(document, path)):
            return path
    return found[0] if found else files[-1]


def helper_in(path: Path, host: str) -> str | None:
    """The credential helper that the file wants for ``host``. Raises InvalidConfig, PermissionMissing."""
    return helper_of(_read(path), host)


def helper_of(document: Document, host: str) -> str | None:
    """The credential helper that a document wants for ``host``."""
    helpers = document.get("credHelpers")
    known = helpers if isinstance(helpers, dict) else {}
    own = (known.get(each) for each in (server_of(host), *names_of(host)))
    name = next(filter(None, own), None) or document.get("credsStore")
    return name if isinstance(name, str) and name else None


def write_credential(path: Path, host: str, credential: Credential | None) -> None:
    """Keep a user and password for ``host`` in the file, in place of what it has for it.

    None: a mark that a credential helper has them, as docker leaves it. Raises InvalidConfig, PermissionMissing,
    NoSpace.
    """
    with _rewritten(path) as document:
        auths = document.setdefault("auths", {})
        keys = [key for key in auths if _is_of(key, host)] or [server_of(host)]
        for key in keys:
            entry = auths.get(key)
            kept = {name: value for name, value in (entry or {}).items() if name not in _SECRET_FIELDS}
            auths[key] = kept if credential is None else {"auth": _encoded(credential), **kept}


def remove_credential(path: Path, host: str) -> bool:
    """Forget what the file has for ``host``; whether it had anything. Raises what :func:`write_credential` does."""
    if not path.exists():
        return False
    if not any(_is_of(key, host) for key in _auths(_read(path), path)):
        return False
    with _rewritten(path) as document:
        document["auths"] = {key: entry for key, entry in document["auths"].items() if not _is_of(key, host)}
    return True


def _is_of(key: str, host: str) -> bool:
    return plain_key(key) in names_of(host)


def _encoded(credential: Credential) -> str:
    return base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()


@contextmanager
def _rewritten(path: Path) -> Iterator[Document]:
    """The document to be changed, and then written: readable by its user only, whole or not at all."""
    with host_errors(path):
        target = path.resolve()  # a link stays a link, to wherever the user keeps such files
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # two logins at once: neither gets lost
        document = _read(target)
        _auths(document, path)
        yield document
        with host_errors(path):
            _replace(target, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    finally:
        os.close(directory)


def _replace(target: Path, data: bytes) -> None:
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # made with mode 0600
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
        with suppress(FileNotFoundError, PermissionError):
            owner = target.stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)  # root may write the file of another user
        Path(name).rename(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    sync_directory(target.parent)


def _read(path: Path) -> Document:
    try:
        with host_errors(path):
            data = path.read_bytes() if path.exists() else b""
        if len(data) > MAX_FILE_BYTES:
            raise InvalidConfig(f"{path} has more than {MAX_FILE_BYTES} bytes", path=str(path))
        return from_json(data.strip() or b"{}", Document)
    except NotDecodable as error:
        raise InvalidConfig(f"{path}: {error}", path=str(path)) from error


def _auths(document: Document, path: Path) -> dict[str, Document]:
    auths = document.get("auths", {})
    if not isinstance(auths, dict) or not all(isinstance(each, dict) for each in auths.values()):
        raise InvalidConfig(f"{path}: 'auths' is not an object of objects", path=str(path))
    return auths
