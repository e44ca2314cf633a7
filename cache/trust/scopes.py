"""Scopes of a policy: which names of artifacts a rule is about, and which of several rules is nearest to a name.

::

    registry.example.com/team/app      one repository
    registry.example.com/team          a namespace, with all below it
    registry.example.com               a registry, with or without a port
    *.example.com                      all registries below a domain (an IP address has none)
    local:demo, local:                 names without a registry: demo and demo/…, or all of them

Only the nearest scope counts. Hosts are compared without regard to case and without the port 443, which is implied.
"""

from __future__ import annotations

import re
from typing import Final

from spec.errors import InvalidReference
from spec.reference import Reference, parse_reference

DEFAULT: Final = "default"
"""What stands for a scope where none applies."""
LOCAL: Final = "local:"
_WILDCARD: Final = re.compile(r"\*\.[a-z0-9.-]+(?::[0-9]{1,5})?")


def parse_scope(text: str) -> str:
    """A scope as :func:`scopes_of` writes it. Raises InvalidReference."""
    try:
        if text == LOCAL:
            return text
        if text.startswith(LOCAL):
            local = parse_reference(f"{text.removeprefix(LOCAL)}:tag")
            if local.registry is None:
                return f"{LOCAL}{local.repository}"
        host, slash, path = text.partition("/")
        if _WILDCARD.fullmatch(host.lower()) and not slash:
            return _host(host)
        named = parse_reference(f"{host}/{path or 'any'}:tag")
        if named.registry is not None and (path or not slash):
            return f"{_host(host)}/{path}" if path else _host(host)
    except InvalidReference:
        pass
    raise InvalidReference(
        f"{text[:200]!r} is not a scope",
        remedy="Write HOST[:PORT][/NAMESPACE…][/REPOSITORY], *.DOMAIN, or local:NAME for names without a registry; "
        "tags and digests have no scopes.",
    )


def scopes_of(reference: Reference) -> list[str]:
    """The scopes that a name is in, nearest first."""
    parts = reference.repository.split("/")
    paths = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    if reference.registry is None:
        return [*(f"{LOCAL}{path}" for path in paths), LOCAL]
    host = _host(reference.registry)
    labels = host.split(".")
    is_address = labels[-1].partition(":")[0].isdigit() or host.startswith("[")
    domains = [] if is_address else [f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels))]
    return [*(f"{host}/{path}" for path in paths), host, *domains]


def _host(text: str) -> str:
    return text.lower().removesuffix(":443")
