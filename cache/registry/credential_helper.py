"""Programs that keep passwords for docker and podman: ``docker-credential-NAME get|store|erase``.

The protocol: the host on stdin (to store: JSON with ``ServerURL``, ``Username``, ``Secret``); on stdout JSON with
``Username`` and ``Secret``, or a sentence and a failure.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from contextlib import suppress
from typing import Final

import msgspec

from spec.decoding import NotDecodable, from_json
from spec.errors import AuthenticationFailed, MissingTool

HELPER_LIMIT_S: Final = 20.0
"""A helper may ask a keyring or a cloud, but not the user."""
_MAX_REPLY_BYTES: Final = 128 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNKNOWN: Final = b"credentials not found"


class HelperReply(msgspec.Struct, frozen=True, rename="pascal"):
    """What a helper knows of a host."""

    username: str = ""
    secret: str = ""


class _Stored(msgspec.Struct, frozen=True):
    ServerURL: str
    Username: str
    Secret: str


async def ask_helper(name: str, host: str, *, limit_s: float = HELPER_LIMIT_S) -> HelperReply | None:
    """What the helper knows of ``host``; None: nothing. It is killed at the limit, or when we are cancelled.

    Raises MissingTool, AuthenticationFailed.
    """
    output = await _run(name, "get", host, host.encode(), limit_s)
    if output is None:
        return None
    try:
        return from_json(output, HelperReply)
    except NotDecodable as error:
        raise _failure(name, host, "answered what is no JSON of a credential") from error


async def store_in_helper(name: str, host: str, username: str, secret: str, *, limit_s: float = HELPER_LIMIT_S) -> None:
    """Let the helper keep a password, in place of the one that it has. Raises MissingTool, AuthenticationFailed."""
    data = msgspec.json.encode(_Stored(host, username, secret))
    if await _run(name, "store", host, data, limit_s, hidden=secret) is None:
        raise _failure(name, host, "did not store the credentials")


async def erase_from_helper(name: str, host: str, *, limit_s: float = HELPER_LIMIT_S) -> bool:
    """Let the helper forget ``host``; whether it knew it. Raises MissingTool, AuthenticationFailed."""
    if await ask_helper(name, host, limit_s=limit_s) is None:
        return False
    return await _run(name, "erase", host, host.encode(), limit_s) is not None


async def _run(name: str, verb: str, host: str, data: bytes, limit_s: float, *, hidden: str = "") -> bytes | None:
    """The helper's output; None: it does not know the host. ``hidden`` is taken out of what is shown of a failure."""
    program = await asyncio.to_thread(shutil.which, f"docker-credential-{name}") if _NAME.fullmatch(name) else None
    if program is None:
        raise MissingTool(
            f"the credential helper docker-credential-{name[:100]} is not installed",
            remedy="Install it, or take it out of the configuration of docker or podman.",
            tool=f"docker-credential-{name[:100]}",
        )
    process = await asyncio.create_subprocess_exec(
        program,
        verb,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # it is killed together with what it started
    )
    try:
        async with asyncio.timeout(limit_s):
            output = await _converse(process, name, host, data)
            status = await process.wait()
    except TimeoutError as error:
        raise _failure(name, host, f"did not answer within {limit_s:g} s") from error
    finally:
        await _end(process)
    if not status:
        return output
    if _UNKNOWN in output.lower():
        return None
    said = output.decode(errors="replace")
    if hidden:
        said = said.replace(hidden, "…")
    raise _failure(name, host, f"failed: {said[:200].strip()}")


async def _converse(process: asyncio.subprocess.Process, name: str, host: str, data: bytes) -> bytes:
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    with suppress(BrokenPipeError, ConnectionResetError):  # one that knows nothing may not even read
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.close()
    output = b""
    while len(output) < _MAX_REPLY_BYTES and (chunk := await process.stdout.read(_MAX_REPLY_BYTES - len(output))):
        output += chunk
    if len(output) == _MAX_REPLY_BYTES:
        raise _failure(name, host, f"answered more than {_MAX_REPLY_BYTES} bytes")
    return output


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        if process.returncode is None:  # once it is reaped, its number may be another's
            os.killpg(process.pid, signal.SIGKILL)
    # Without this the end of a helper that still has output for us would never be seen.
    process._transport.close()  # type: ignore[attr-defined]
    await asyncio.shield(process.wait())


def _failure(name: str, host: str, what: str) -> AuthenticationFailed:
    return AuthenticationFailed(
        f"docker-credential-{name} {what}",
        remedy=f"Try it by hand: echo {host} | docker-credential-{name} get",
        host=host,
    )
