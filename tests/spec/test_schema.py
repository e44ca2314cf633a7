"""The published JSON Schema and the decoder say the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec import schema
from spec.errors import InvalidManifest, UnsupportedManifest
from spec.manifest import decode_manifest

VALIDATOR = jsonschema.Draft202012Validator(schema.manifest_schema())
DIGEST = "sha256:" + "0f" * 32


def accepted_by_decoder(value: Any) -> bool:
    try:
        decode_manifest(json.dumps(value).encode())
    except (InvalidManifest, UnsupportedManifest):
        return False
    return True


def test_the_file_is_what_the_structs_say() -> None:
    assert schema.PATH.read_text(encoding="utf-8") == schema.schema_text()


def test_the_check_notices_a_difference(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schema, "PATH", tmp_path / "schema.json")

    assert schema.main(["--check"]) == 1
    assert "python -m spec.schema" in capsys.readouterr().err
    assert schema.main([]) == 0
    assert schema.main(["--check"]) == 0


def test_the_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema.manifest_schema())


def test_descriptions_are_free_of_markup() -> None:
    assert "``" not in schema.schema_text()
    assert ":func:" not in schema.schema_text()


def test_the_rfc_example_is_valid(rfc_example: dict[str, Any]) -> None:
    VALIDATOR.validate(rfc_example)
    assert accepted_by_decoder(rfc_example)


def _set(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return change


def _without(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


VALID = {
    "no initrd": _without("initrd"),
    "initrd null": _set("initrd", to=None),
    "no disk": _set("diskLayers", to=[]),
    "cold boot only": _without("ramSnapshot"),
    "no devices": _without("devices"),
    "no metadata": _without("metadata"),
    "kernel by registry reference": _set("kernel", "ref", to="myregistry.com/ovms/ubuntu:24.04/kernel"),
    "kernel by URL": _set("kernel", "ref", to="https://example.com/boot/vmlinuz?x=1"),
    "an unknown field": _set("kernel", "x-signed-by", to="someone"),
    "another arch is well-formed": _set("metadata", "platform", "arch", to="aarch64"),
    "an unknown device is well-formed": _set("devices", 0, to={"type": "gpu", "name": "gpu0"}),
    "memory and CPUs, our extension": _set("runtimeHints", to={"defaultMemoryBytes": 1 << 28, "defaultCpus": 2}),
}
INVALID = {
    "schemaVersion 2": _set("schemaVersion", to=2),
    "schemaVersion as text": _set("schemaVersion", to="1"),
    "no schemaVersion": _without("schemaVersion"),
    "another mediaType": _set("mediaType", to="application/vnd.oci.image.manifest.v1+json"),
    "no name": _without("name"),
    "an empty version": _set("version", to=""),
    "no kernel": _without("kernel"),
    "kernel null": _set("kernel", to=None),
    "a short digest": _set("kernel", "ref", to="sha256:abcd"),
    "an upper-case digest": _set("kernel", "ref", to=DIGEST.upper()),
    "another algorithm": _set("initrd", "ref", to="sha512:" + "0" * 128),
    "a URL without TLS": _set("initrd", "ref", to="http://example.com/initrd"),
    "a URL with a user": _set("initrd", "ref", to="https://user:secret@example.com/initrd"),
    "a local path": _set("kernel", "ref", to="/boot/vmlinuz"),
    "a digest with a newline": _set("kernel", "ref", to=DIGEST + "\n"),
    "diskLayers as an object": _set("diskLayers", to={}),
    "a layer without format": _without("diskLayers", 0, "format"),
    "a negative size": _set("diskLayers", 1, "size", to=-1),
    "a size as text": _set("diskLayers", 1, "size", to="32M"),
    "65 layers": _set("diskLayers", to=[{"ref": DIGEST, "format": "qcow2", "size": 1}] * 65),
    "preload_hint as text": _set("ramSnapshot", "preload_hint", to="true"),
    "a device name with a slash": _set("devices", 0, "name", to="a/b"),
    "a device name with a newline": _set("devices", 0, "name", to="a\n"),
    "a device without type": _without("devices", 0, "type"),
    "33 devices": _set("devices", to=[{"type": "ivshmem", "name": "a", "size": 4096}] * 33),
    "mmio_addr as a number": _set("devices", 0, "mmio_addr", to=0x10000000),
    "uefi as a number": _set("metadata", "platform", "uefi", to=0),
    "preferredRuntime as text": _set("runtimeHints", "preferredRuntime", to="generic"),
    "0 CPUs": _set("runtimeHints", "defaultCpus", to=0),
}


@pytest.mark.parametrize("change", VALID.values(), ids=VALID)
def test_valid_samples(rfc_example: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    change(rfc_example)

    VALIDATOR.validate(rfc_example)
    assert accepted_by_decoder(rfc_example)


@pytest.mark.parametrize("change", INVALID.values(), ids=INVALID)
def test_invalid_samples(rfc_example: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    change(rfc_example)

    assert not VALIDATOR.is_valid(rfc_example)
    assert not accepted_by_decoder(rfc_example)


REFS = (
    st.from_regex(r"sha256:[0-9a-f]{63,65}", fullmatch=True)
    | st.from_regex(r"https?://[a-z0-9.:@-]{0,9}/?[ -~]{0,6}", fullmatch=True)
    | st.from_regex(r"[a-zA-Z0-9.:\[\]-]{0,9}/[a-z0-9:/ \n]{0,8}", fullmatch=True)
    | st.text(max_size=8)
)
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{0,66}\n?", fullmatch=True) | st.text(max_size=4)
SIZES = st.integers(-2, 2) | st.sampled_from([4096, 16 << 40, (16 << 40) + 1, 64 << 30, (64 << 30) + 1])
SCALARS = st.none() | st.booleans() | SIZES | st.floats(0.1, 0.9) | NAMES | REFS
DELETE = object()
ANYTHING = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=2)


def _places(value: Any) -> list[tuple[str | int, ...]]:
    steps: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    return [each for step, inner in steps for each in ((step,), *((step, *rest) for rest in _places(inner)))]


@given(st.data())
def test_schema_and_decoder_agree_on_any_change(rfc_example_bytes: bytes, data: st.DataObject) -> None:
    document = json.loads(rfc_example_bytes)
    for _ in range(data.draw(st.integers(1, 2))):
        changed = copy.deepcopy(document)
        place = data.draw(st.sampled_from(_places(changed)))
        fitting = {"ref": REFS, "name": NAMES, "mmio_addr": NAMES | st.from_regex(r"0x[0-9a-fA-F]{0,18}\n?")}.get(
            str(place[-1]), SIZES
        )
        drawn = data.draw(fitting | ANYTHING | st.just(DELETE))
        change = _without(*place) if drawn is DELETE else _set(*place, to=drawn)
        change(changed)
        document = changed

    assert VALIDATOR.is_valid(document) == accepted_by_decoder(document)
