"""The document is valid, its examples fit, it says what the structs say, and it has what the application has."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from ovms_supervisor.api import events, instances, logs, pulls, pushes, service, store, warm
from spec import api, instance
from spec.api import MAX_INJECT_BYTES
from tests.api.document import document, operations, resolve, violations

_ALIASES = {"InstanceState", "InstanceName", "InstanceId", "Flag", "Moment", "LogItem"}
_STRUCTS = {
    name: kind
    for module in (api, instance)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct and name[0] != "_"
}
_NULLABLE_FORMS = ("minimum", "maximum", "minLength", "maxLength", "pattern", "contentEncoding")


def test_the_document_is_openapi() -> None:
    OpenAPIV31SpecValidator(document()).validate()


def test_every_struct_has_a_schema_and_every_schema_a_struct() -> None:
    assert set(document()["components"]["schemas"]) - _ALIASES == set(_STRUCTS)


def generated() -> dict[str, Any]:
    _, components = msgspec.json.schema_components(list(_STRUCTS.values()), ref_template="#/components/schemas/{name}")
    return components


def shape(schema: dict[str, Any]) -> Any:
    """What a schema allows, however it is written: types, limits, and the shapes inside."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return name if name in _STRUCTS else shape(resolve(schema))
    if "anyOf" in schema:
        alternatives = [shape(each) for each in schema["anyOf"]]
        merged: list[Any] = []
        for each in alternatives:
            merged += each if isinstance(each, list) else [each]
        return sorted(merged, key=repr)
    types = schema.get("type")
    if isinstance(types, list) or (types is None and "enum" in schema):
        enum = schema.get("enum", [])
        types = types or (["string", "null"] if None in enum else ["string"])
        shapes = sorted(
            (
                shape({**schema, "type": each, **({"enum": [v for v in enum if v is not None]} if enum else {})})
                for each in types
            ),
            key=repr,
        )
        return shapes if len(shapes) > 1 else shapes[0]
    if types == "null":
        return "null"
    limits = {key: schema[key] for key in _NULLABLE_FORMS if key in schema}
    if "enum" in schema:
        limits["enum"] = sorted(schema["enum"])
    if types == "array":
        limits["items"] = shape(schema["items"])
    if types == "object" and isinstance(schema.get("additionalProperties"), dict):
        inner = schema["additionalProperties"]
        if inner:
            limits["values"] = shape(inner)
    return (types, tuple(sorted((key, repr(value)) for key, value in limits.items())))


@pytest.mark.parametrize("name", sorted(_STRUCTS))
def test_the_document_says_of_a_struct_what_the_code_does(name: str) -> None:
    ours, theirs = document()["components"]["schemas"][name], generated()[name]
    assert set(ours["properties"]) == set(theirs["properties"])
    assert set(ours.get("required", ())) == set(theirs.get("required", ()))
    assert (ours.get("additionalProperties") is False) == (theirs.get("additionalProperties") is False)
    for field in ours["properties"]:
        assert shape(ours["properties"][field]) == shape(theirs["properties"][field]), field


def examples() -> list[tuple[str, dict[str, Any], Any]]:
    found: list[tuple[str, dict[str, Any], Any]] = []

    def visit(path: str, node: Any) -> None:
        if isinstance(node, dict):
            if "schema" in node and "examples" in node:
                found.extend(
                    (f"{path}/{name}", node["schema"], resolve(example)["value"])
                    for name, example in node["examples"].items()
                )
            for key, value in node.items():
                visit(f"{path}/{key}", value)
        elif isinstance(node, list):
            for i, value in enumerate(node):
                visit(f"{path}/{i}", value)

    visit("", document())
    return found


@pytest.mark.parametrize(
    ("where", "schema", "value"), examples(), ids=lambda each: each if isinstance(each, str) else ""
)
def test_examples_fit_their_schemas(where: str, schema: dict[str, Any], value: Any) -> None:
    assert violations(schema, value) == []


def test_there_are_examples_for_every_body() -> None:
    assert len(examples()) > 20


def test_the_judge_finds_what_is_wrong() -> None:
    reference = {"$ref": "#/components/schemas/StartRequest"}
    assert violations(reference, {"manifest": "a"}) == []
    assert violations(reference, {"manifest": "a", "overrides": {"cpus": 0}})
    assert violations(reference, {"manifest": "a", "nonsense": 1})
    assert violations({"$ref": "#/components/schemas/InstanceInfo"}, {"instance_id": "x"})


def test_every_route_is_in_the_document_and_the_other_way_round() -> None:
    routes = {
        (route.method, route.path)
        for module in (instances, warm, pulls, pushes, store, logs, events, service)
        for route in module.routes
    }
    assert routes == {(operation.method, operation.template) for operation in operations()}


def test_limits_in_prose_and_code_agree() -> None:
    write = document()["components"]["schemas"]["MmioWrite"]
    assert write["properties"]["read"]["maximum"] == MAX_INJECT_BYTES
    assert f"{MAX_INJECT_BYTES >> 20} MiB" in write["description"]
