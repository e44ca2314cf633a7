"""Text from guests and artifacts, made harmless for a terminal.

A terminal obeys what it prints: escape sequences retitle windows, redefine keys, answer into the user's shell; and
bidirectional overrides make text read as something else. What a guest prints is therefore shown, not obeyed. Colours
(SGR sequences) are taken out, since in caret notation they would bury the text.
"""

from __future__ import annotations

import codecs
import re

_COLOUR = re.compile(r"\x1b\[[0-9;:]{0,32}m")
_UNFINISHED = re.compile(r"(?:\x1b(?:\[[0-9;:]{0,32})?|\r)\Z")
"""What may yet turn out to be a colour or a line end."""
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 but tab and newline, DEL, C1, the characters that change direction or break lines, lone surrogates."""


def neutral(text: str) -> str:
    """The text with colours removed and other control characters made visible (``^[``, ``\\u202e``)."""
    return _ACTIVE.sub(_visible, _COLOUR.sub("", text.replace("\r\n", "\n")))


def neutral_line(text: str) -> str:
    """The same for one line of a table: tabs and line breaks are made visible too."""
    return neutral(text).replace("\n", "^J").replace("\t", "^I")


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return "^" + chr(code + 0x40)
    return "^?" if code == 0x7F else f"\\u{code:04x}"


class NeutralStream:
    """A stream of bytes cut anywhere, decoded as UTF-8 (bytes that are not are shown as ``\\xff``) and made harmless.

    The result does not depend on where the stream was cut.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """The text that is certain so far."""
        text = self._held + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text)
        cut = unfinished.start() if unfinished else len(text)
        self._held = text[cut:]
        return neutral(text[:cut])

    def finish(self) -> str:
        """What was held back for an ending that did not come."""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return neutral(text)
