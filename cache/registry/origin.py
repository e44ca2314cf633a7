"""Where a registry is, and where it may lead us: the rules against downgrades and requests to our own network.

A registry chooses the URL of its token service and of its redirects. One that is hostile, or was taken over, would
have us knock at the host's own services (a cloud's metadata service, say) or send a password in clear.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from typing import Literal

from yarl import URL

from cache.registry.docker_hub import api_host
from spec.errors import InvalidReference, RegistryGarbage

Scheme = Literal["http", "https"]


def registry_url(host: str, schemes: Mapping[str, Scheme]) -> URL:
    """The origin of a registry from the host part of a reference (``name[:port]``).

    ``schemes`` has what the user said about single hosts; without that it is https, but http on loopback.
    Raises InvalidReference.
    """
    try:
        name = URL(f"https://{host}").host or ""
        scheme = schemes.get(host) or ("http" if is_loopback(name) else "https")
        return URL(f"{scheme}://{api_host(host)}").origin()
    except ValueError as error:
        raise InvalidReference(f"{host[:200]!r} is not a registry host") from error


def is_loopback(host: str) -> bool:
    """Whether a host, by its form alone, is this machine."""
    address = _address(host)
    if address is None:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback


def check_target(target: URL, source: URL, what: str) -> None:
    """Whether a registry at ``source`` may send us to ``target``. Raises RegistryGarbage.

    Names are not resolved: a name in the public DNS with a private address gets past, as it does in a browser.
    """
    if target.scheme not in ("http", "https") or not target.host:
        raise _refusal(target, source, what, "not an http(s) URL")
    if target.scheme == "http" and source.scheme == "https":
        raise _refusal(target, source, what, "a downgrade from https")
    if target.user is not None or target.password is not None:
        raise _refusal(target, source, what, "a URL with credentials in it")
    if target.host != source.host and _is_inward(target.host):
        raise _refusal(target, source, what, "an address that only this machine or its network can reach")


def _is_inward(host: str) -> bool:
    address = _address(host)
    return is_loopback(host) if address is None else not address.is_global


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:  # resolvers also take 127.1, 0x7f000001 and 2130706433 for addresses
            return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))
        except (OSError, ValueError):
            return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        return found.ipv4_mapped
    return found


def _refusal(target: URL, source: URL, what: str, why: str) -> RegistryGarbage:
    shown = str(target.with_user(None).with_query(None))[:200] if target.host else str(target)[:200]
    return RegistryGarbage(f"{source.authority} names {shown} as {what}: {why}", host=source.authority)
