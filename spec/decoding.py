"""Typed decoding: the one place where bytes and plain data become our Structs.

msgspec works out what a type looks like at its first use, and keeps the result on the type before it is complete. A
second thread that decodes the same type at that moment works with the half of it, and the process dies of SIGSEGV
(msgspec 0.22; two threads that read their first manifest at once are enough). So every type is prepared here, under a
lock, before anybody decodes with it; from then on the decoder is shared freely. A linter rule keeps others from calling
msgspec for this themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
DecHook = Callable[[type, Any], Any]

_lock = threading.Lock()
_decoders: dict[tuple[Any, DecHook | None], msgspec.json.Decoder[Any]] = {}


class NotDecodable(ValueError):
    """What was read is no document of the type; to be turned into an error of the tree by who knows what it is.

    ``path`` is the JSON path of what is wrong; ``is_json`` is false if already the syntax is.
    """

    def __init__(self, message: str, path: str = "$", *, is_json: bool = True) -> None:
        super().__init__(f"{message} at {path}" if is_json else message)
        self.message = message
        self.path = path
        self.is_json = is_json


def from_json(data: bytes | bytearray | str, kind: type[T], *, dec_hook: DecHook | None = None) -> T:
    """Decode a JSON document of a type. Raises NotDecodable, for whatever the bytes may be."""
    decoder = _decoders.get((kind, dec_hook)) or _prepared(kind, dec_hook)
    try:
        decoded: T = decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _not_decodable(error) from error
    return decoded


def from_builtins(value: Any, kind: type[T], *, strict: bool = True, dec_hook: DecHook | None = None) -> T:
    """Turn plain data (dicts, lists, …) into a type. Raises NotDecodable.

    ``strict=False``: texts may stand for numbers and truth values.
    """
    if (kind, dec_hook) not in _decoders:
        _prepared(kind, dec_hook)
    try:
        return msgspec.convert(value, kind, strict=strict, dec_hook=dec_hook)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _not_decodable(error) from error


def _prepared(kind: Any, dec_hook: DecHook | None) -> msgspec.json.Decoder[Any]:
    with _lock:
        decoder = _decoders.get((kind, dec_hook))
        if decoder is None:
            decoder = msgspec.json.Decoder(kind, dec_hook=dec_hook)
            _decoders[kind, dec_hook] = decoder
        return decoder


def _not_decodable(error: Exception) -> NotDecodable:
    if not isinstance(error, msgspec.ValidationError):
        return NotDecodable(str(error) or type(error).__name__, is_json=False)
    text, found, path = str(error).rpartition(" - at `")
    return NotDecodable(text, path.rstrip("`")) if found else NotDecodable(str(error))
