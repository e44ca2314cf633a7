"""The OpenAPI document as a judge: of itself, of the structs, and of every exchange that a test makes.

``judged`` is an aiohttp client middleware; conftest.py puts it into every session, so that no test can have an
exchange that breaks the document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import aiohttp
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

PATH = Path(__file__).parents[2] / "spec/api/ovms-runtime.openapi.yaml"
URI = "urn:ovms:openapi"
_LOADED: dict[str, Any] = yaml.safe_load(PATH.read_text())


def document() -> dict[str, Any]:
    return _LOADED


@cache
def _registry() -> Registry[Any]:
    registry: Registry[Any] = Registry().with_resource(URI, DRAFT202012.create_resource(document()))
    return registry


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    """Follow a local ``$ref``."""
    while "$ref" in node:
        target: Any = document()
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]
        node = target
    return node


def violations(schema: dict[str, Any], value: Any) -> list[str]:
    """What is wrong with a value, by a schema of the document."""
    absolute = json.loads(json.dumps(schema).replace('"#/', f'"{URI}#/'))
    validator = Draft202012Validator(absolute, registry=_registry())
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def check_frame(frame: str | bytes, schema: str) -> dict[str, Any]:
    """A WebSocket frame against a schema by name; returns it decoded."""
    value: dict[str, Any] = json.loads(frame)
    found = violations({"$ref": f"#/components/schemas/{schema}"}, value)
    assert not found, f"{frame!r} breaks {schema}: {found}"
    return value


@dataclass(frozen=True)
class Operation:
    method: str
    template: str
    node: dict[str, Any]
    shared: tuple[dict[str, Any], ...]

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return [resolve(each) for each in (*self.shared, *self.node.get("parameters", ()))]

    def response(self, status: int) -> dict[str, Any]:
        responses = self.node["responses"]
        return resolve(responses.get(str(status)) or responses["default"])


@cache
def operations() -> list[Operation]:
    return [
        Operation(method.upper(), template, node, tuple(item.get("parameters", ())))
        for template, item in document()["paths"].items()
        for method, node in item.items()
        if method in ("get", "post", "put", "delete", "patch")
    ]


def operation_for(method: str, path: str) -> Operation | None:
    for operation in operations():
        pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(operation.template))
        if operation.method == method and re.fullmatch(pattern, path):
            return operation
    return None


def check_request(operation: Operation, query: str, body: bytes | None) -> list[str]:
    """Only for requests that the daemon accepted: what it accepts, the document must allow."""
    found = []
    known = {each["name"]: each for each in operation.parameters if each["in"] == "query"}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            found.append(f"query parameter {name} is not in the document")
            continue
        schema = resolve(known[name]["schema"])
        value: Any = text
        if schema.get("type") in ("number", "integer"):
            value = json.loads(text)
        found += violations(schema, value)
    if (expected := operation.node.get("requestBody")) is not None:
        schema = resolve(expected)["content"]["application/json"]["schema"]
        found += violations(schema, json.loads(body or b"null"))
    elif body:
        found.append("a body where the document has none")
    return found


def check_response(operation: Operation | None, status: int, content_type: str, body: bytes) -> list[str]:
    if operation is None:
        content = resolve({"$ref": "#/components/responses/Problem"})["content"]
    else:
        content = operation.response(status).get("content", {})
    if not content:
        return ["a body where the document has none"] if body else []
    if content_type not in content:
        return [f"content type {content_type} is not in the document for status {status}"]
    schema = content[content_type].get("schema", {})
    if content_type in ("application/json", "application/problem+json"):
        found = violations(schema, json.loads(body))
        if content_type == "application/problem+json" and json.loads(body).get("status") != status:
            found.append("the problem's status is not the reply's")
        return found
    if content_type == "application/x-ndjson":
        return [text for line in body.splitlines() for text in violations(schema, json.loads(line))]
    return []


async def judged(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Client middleware: fails the test whose exchange breaks the document."""
    response = await handler(request)
    body_object = request.body
    sent = body_object if isinstance(body_object, bytes) else await body_object.as_bytes()
    streamed = response.status == 101 or response.headers.get("Transfer-Encoding") == "chunked"
    content = None if streamed else await response.read()
    headers = {name.lower() for name in response.headers}
    judge(request.method, request.url.raw_path_qs, sent, response.status, headers, response.content_type, content)
    return response


def judge(
    method: str,
    target: str,
    sent: bytes | None,
    status: int,
    headers: Container[str],
    content_type: str,
    content: bytes | None,
) -> None:
    """Fail if an exchange breaks the document; ``content`` is None if it comes piece by piece."""
    path, _, query = target.partition("?")
    operation = operation_for(method, unquote(path))
    found = []
    if operation and status < 400:
        found += check_request(operation, query, sent)
    if "x-request-id" not in headers and status != 101:
        found.append("no X-Request-Id")
    if status == 101:
        assert operation is not None
        if "101" not in operation.node["responses"]:
            found.append("an upgrade that the document does not have")
    elif content is not None:
        found += check_response(operation, status, content_type, content)
    elif operation and content_type not in operation.response(status).get("content", {}):
        found.append(f"content type {content_type} is not in the document")
    assert not found, f"{method} {target} → {status}: {found}"
