"""Listening on TCP, which nobody does by accident: only with TLS, and with a way to tell who calls."""

from __future__ import annotations

import hmac
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ovms_supervisor.api.caller import Caller, caller_of
from spec.errors import InvalidConfig, NotAuthenticated

if TYPE_CHECKING:
    from aiohttp import web

    from ovms_supervisor.config.settings import Listen

_TOKEN_BYTES: Final = range(16, 4097)
_REMEDY: Final = "See 'Security' in the README for what 'listen' takes."


@dataclass(frozen=True, slots=True)
class Remote:
    """A listening TCP socket and what is asked of those who come in there."""

    listening: socket.socket
    tls: ssl.SSLContext
    token: bytes | None

    def authenticate(self, request: web.BaseRequest) -> None:
        """Raise NotAuthenticated unless the caller has shown a certificate, which TLS has checked, or the token."""
        caller: Caller = caller_of(request)
        if any(each.startswith("cert:") for each in caller.principals):
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        right = self.token is not None and hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token)
        if scheme.lower() != "bearer" or not right:
            raise NotAuthenticated("the request has neither the token nor a client certificate with a common name")


def listen_remotely(settings: Listen) -> Remote:
    """Listen as configured. Blocks (files). Raises InvalidConfig, also for what would let in anybody."""
    if settings.cert is None or settings.key is None:
        raise InvalidConfig(
            "listen.address takes listen.cert and listen.key: there is no TCP without TLS", remedy=_REMEDY
        )
    if settings.client_ca is None and settings.token_file is None:
        raise InvalidConfig(
            "listen.address takes listen.client_ca or listen.token_file: else anybody could call", remedy=_REMEDY
        )
    token = None if settings.token_file is None else _token(settings.token_file)
    _check_secret(settings.key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols(["http/1.1"])
    try:
        tls.load_cert_chain(settings.cert, settings.key)
        if settings.client_ca is not None:
            tls.load_verify_locations(settings.client_ca)
            tls.verify_mode = ssl.CERT_REQUIRED if token is None else ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfig(f"listen: certificate, key or authority cannot be used: {error}", remedy=_REMEDY) from None
    return Remote(_bound(settings.address), tls, token)


def _bound(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise InvalidConfig(f"listen.address is {address[:80]!r}, which is not HOST:PORT", remedy=_REMEDY)
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listening = socket.create_server(found[0][4][:2], family=found[0][0])
    except OSError as error:
        raise InvalidConfig(f"listen.address: cannot listen on {address}: {error.strerror}", remedy=_REMEDY) from None
    listening.setblocking(False)
    return listening


def _token(path: Path) -> bytes:
    _check_secret(path)
    token = path.read_bytes().strip()
    if len(token) not in _TOKEN_BYTES or not token.isascii():
        raise InvalidConfig(
            f"{path}: a token has {_TOKEN_BYTES[0]} to {_TOKEN_BYTES[-1]} ASCII characters", remedy=_REMEDY
        )
    return token


def _check_secret(path: Path) -> None:
    """Raise InvalidConfig unless it is a file of ours, or root's, that nobody else can read."""
    try:
        status = path.lstat()
    except OSError as error:
        raise InvalidConfig(f"{path}: {error.strerror}", remedy=_REMEDY) from None
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a plain file"
    elif status.st_uid not in (0, os.geteuid()):
        problem = f"belongs to user {status.st_uid}"
    elif status.st_mode & 0o077:
        problem = f"can be read by others (mode {stat.S_IMODE(status.st_mode):04o})"
    else:
        return
    raise InvalidConfig(f"{path} {problem}", remedy=f"It holds a secret: chown and chmod 0600 {path}.")
