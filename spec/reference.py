"""References: how a person names an artifact, and how a manifest names a blob.

Grammar: distribution-spec §Pulling manifests (name, tag) and the rule of docker, podman and oras for telling a host
from a path component: the part before the first ``/`` is a host if it has a ``.`` or ``:`` or is ``localhost``.
A name without a host is local: it is never expanded to a public registry behind the user's back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from spec.digest import Digest, is_digest, parse_digest
from spec.errors import InvalidReference

DEFAULT_TAG = "latest"

_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST_PATTERN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?"
_HOST = re.compile(_HOST_PATTERN)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """``[registry/]repository[:tag][@digest]``; a reference without tag and digest has the tag ``latest``."""

    registry: str | None
    repository: str
    tag: str | None
    digest: Digest | None

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}" if self.registry else self.repository

    @property
    def local_name(self) -> str:
        """What the store lists it under (``org.opencontainers.image.ref.name``): name and tag."""
        return f"{self.name}:{self.tag or DEFAULT_TAG}"

    def with_digest(self, digest: Digest) -> Reference:
        """The same reference pinned to content."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        text = self.name
        if self.tag:
            text += f":{self.tag}"
        if self.digest:
            text += f"@{self.digest}"
        return text


@dataclass(frozen=True, slots=True)
class PathSource:
    """An artifact in the §8 file layout: a directory or a tar on this host."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class DigestSource:
    """An artifact of the local store by the digest of its OCI manifest, in full or as a unique prefix of the hex."""

    hex_prefix: str

    def __str__(self) -> str:
        return f"sha256:{self.hex_prefix}"


Source = Reference | PathSource | DigestSource
"""Everything that ``ovm run`` and ``POST /start`` accept as manifest."""


def parse_reference(text: str) -> Reference:
    """Parse ``name[:tag][@digest]``. Raises InvalidReference."""
    rest, _, digest_text = text.partition("@")
    digest = None
    if "@" in text:
        if not is_digest(digest_text):
            raise InvalidReference(f"{text[:200]!r}: what follows '@' is not a sha256 digest")
        digest = parse_digest(digest_text)
    registry, path = _split_registry(rest)
    repository, colon, tag = path.partition(":")
    if registry is not None and not _HOST.fullmatch(registry):
        raise InvalidReference(f"{text[:200]!r}: {registry[:100]!r} is not a registry host")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > _MAX_NAME:
        raise InvalidReference(
            f"{text[:200]!r}: {repository[:100]!r} is not a repository name (lower case, digits, . _ - /)"
        )
    if colon and not _TAG.fullmatch(tag):
        raise InvalidReference(f"{text[:200]!r}: {tag[:140]!r} is not a tag")
    if not colon:
        tag = "" if digest else DEFAULT_TAG
    return Reference(registry, repository, tag or None, digest)


def is_registry_host(text: str) -> bool:
    """Whether it is what a reference has before its first ``/``: ``name[:port]``."""
    return _HOST.fullmatch(text) is not None


def parse_source(text: str) -> Source:
    """Tell a path, a digest and a reference apart, by form only (no look at the disk).

    A path starts with ``/``, ``./``, ``../`` or ``~``, is ``.`` or ``..``, or ends in ``.tar`` or ``/``;
    a digest is ``sha256:…`` or ``@sha256:…``. Raises InvalidReference.
    """
    if not text or "\0" in text:
        raise InvalidReference("the reference is empty" if not text else "a reference has no NUL byte")
    if text in (".", "..") or text.startswith(("/", "./", "../", "~")) or text.endswith((".tar", "/")):
        return PathSource(Path(text))
    bare = text.removeprefix("@")
    if bare.startswith("sha256:"):
        prefix = bare.removeprefix("sha256:")
        if not re.fullmatch(r"[0-9a-f]{6,64}", prefix):
            raise InvalidReference(f"{text[:200]!r}: 'sha256:' is followed by 6 to 64 lower-case hex digits")
        return DigestSource(prefix)
    return parse_reference(text)


def _split_registry(text: str) -> tuple[str | None, str]:
    first, slash, rest = text.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return None, text


@dataclass(frozen=True, slots=True)
class BlobRef:
    """How a manifest names a blob (RFC §1 notes): by digest alone, or by one of the other two."""

    digest: Digest | None = None
    """Of the content, if the ref tells it: with a URL, what its fragment says."""
    registry: str | None = None
    """A registry reference, resolved when the artifact is packed or pulled."""
    url: str | None = None
    """An https URL, without its fragment."""


_URL_PATTERN = rf'https://{_HOST_PATTERN}(?:/[!"$-~]*)?(?:#sha256:[0-9a-f]{{64}})?'
_URL = re.compile(_URL_PATTERN)
_REGISTRY_PATTERN = rf"{_HOST_PATTERN}/[!-~]+"
_REGISTRY = re.compile(_REGISTRY_PATTERN)
BLOB_REF_PATTERN = rf"^(?:sha256:[0-9a-f]{{64}}|{_URL_PATTERN}|(?!sha256:)(?![\s\S]*://){_REGISTRY_PATTERN})(?![\s\S])"
"""What :func:`parse_blob_ref` accepts, as an expression that means the same in Python and in ECMA 262."""


def parse_blob_ref(text: str) -> BlobRef:
    """Parse the ``ref`` of a kernel, initrd, disk layer or snapshot. Raises InvalidReference."""
    if text.startswith("sha256:"):
        if not is_digest(text):
            raise InvalidReference(f"{text[:100]!r} is not a sha256 digest")
        return BlobRef(digest=parse_digest(text))
    if "://" in text:
        if not _URL.fullmatch(text):
            raise InvalidReference(
                f"{text[:200]!r}: a URL must be https, with a host, without user or spaces, and end in #sha256:HEX"
            )
        url, _, fragment = text.partition("#")
        return BlobRef(url=url, digest=Digest(fragment) if fragment else None)
    if not _REGISTRY.fullmatch(text):
        raise InvalidReference(f"{text[:200]!r} is neither a digest, an https URL nor a registry reference")
    return BlobRef(registry=text)
