"""spec/ovms-manifest.schema.json, generated from the structs of :mod:`spec.manifest` (JSON Schema 2020-12).

``python -m spec.schema`` writes the file, ``--check`` tells whether it is what would be written. The schema says what
:func:`spec.manifest.decode_manifest` says, but for two things that JSON Schema has no words for: an integer
must be written as one (``1``, not ``1.0``), and the document has at most 4 MiB. What of a well-formed manifest v0.1
does not support (RFC §9) is decided by :mod:`spec.admission`, after the schema.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from spec.manifest import Manifest

PATH = Path(__file__).with_name("ovms-manifest.schema.json")

_HEAD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "urn:ovms:manifest:v1",
    "title": "OVMS v0.1 manifest.json",
}
_ROLE = re.compile(r":\w+:`([^`]*)`")


def manifest_schema() -> dict[str, Any]:
    """The schema as a JSON value."""
    return {**_HEAD, **_for_readers(msgspec.json.schema(Manifest))}


def schema_text() -> str:
    """The content of the file."""
    return json.dumps(manifest_schema(), indent=2, ensure_ascii=False) + "\n"


def _for_readers(value: Any) -> Any:
    """Take the markup out of descriptions, and say of every object that fields unknown to v0.1 are allowed."""
    if isinstance(value, list):
        return [_for_readers(each) for each in value]
    if not isinstance(value, dict):
        return value
    shown = {
        name: _ROLE.sub(r"\1", each).replace("``", "`") if name == "description" and isinstance(each, str) else each
        for name, each in ((name, _for_readers(each)) for name, each in value.items())
    }
    if value.get("type") == "object":
        shown["additionalProperties"] = True
    return shown


def main(arguments: list[str]) -> int:
    """Write the file, or with ``--check`` only compare; the exit code."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m spec.schema [--check]\n")
        return 2
    text = schema_text()
    if not arguments:
        PATH.write_text(text, encoding="utf-8")
        return 0
    if PATH.is_file() and PATH.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{PATH.name} is not what the structs say: run 'python -m spec.schema' and commit the result\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
