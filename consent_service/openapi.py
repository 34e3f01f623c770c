"""The contract as an OpenAPI 3.1 file and as a page, both made from the operations and their Structs."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from consent_service import __version__, data
from consent_service.decisions import ALLOWS, REASONS
from consent_service.guard import Operation, problems
from consent_service.links import LinkEvent
from consent_service.states import Event

PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "Stable name of the problem."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "Every field that must change.",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}
_PARAMETERS = {
    "id": {"type": "string", "format": "uuid"},
    "tenant": {"type": "string", "pattern": "^[a-z0-9]+([._-][a-z0-9]+)*$", "maxLength": 64},
    "epoch": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    "tile": {
        "type": "string",
        "pattern": "^(entries|[0-9]{1,2})/(x[0-9]{3}/)*[0-9]{3}(\\.p/[0-9]{1,3})?$",
        "description": "Of several segments, such as `0/x001/234.p/5`.",
    },
}
"""Of addresses."""
_COMMON = {400, 401, 403, 404, 408, 413, 415, 422, 429, 503}
_PUBLIC = {400, 401, 403, 415, 429, 503}


@cache
def document(operations: tuple[Operation, ...]) -> bytes:
    """The OpenAPI file, the same bytes for the same code."""
    raw = msgspec.json.encode(_tree(operations))
    return msgspec.json.format(raw, indent=2) + b"\n"


def _tree(operations: Sequence[Operation]) -> dict[str, Any]:
    types = [kind for operation in operations for kind in (operation.body, operation.answer) if kind is not None]
    types += [Event, LinkEvent]  # these stand in answers as they were written
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    known = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path.replace("*}", "}"), {})[operation.method.lower()] = _operation(operation, known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Consent service",
            "version": __version__,
            "description": "Records consents, answers may-we checks, proves both.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {
            "schemas": {**dict(sorted(components.items())), "Problem": PROBLEM},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, known: dict[type, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "security": [] if operation.public else [{"key": []}],
        "responses": _responses(operation, known),
    }
    if operation.scopes:
        described["description"] = "Scope: " + " or ".join(f"`{scope}`" for scope in sorted(operation.scopes)) + "."
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {
                "application/x-www-form-urlencoded" if operation.form else "application/json": {
                    "schema": known[operation.body],
                    **_example(operation),
                }
            },
        }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name]}
        for name in re.findall(r"\{([a-z_]+)\*?\}", operation.path)
    ]
    if operation.keyed:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "Names the act, so that a retry doubles nothing; the body's `id` says the same.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 256},
            }
        )
    if operation.brief:
        parameters.append(
            {
                "name": "Prefer",
                "in": "header",
                "required": False,
                "description": "`return=minimal` leaves the record out of the answer (RFC 7240).",
                "schema": {"type": "string"},
            }
        )
    if parameters:
        described["parameters"] = parameters
    return described


def _example(operation: Operation) -> dict[str, Any]:
    """`openapi/examples/<operationId>.json`, a body that works in the example tenant."""
    file = data.folder("openapi") / "examples" / f"{operation.id}.json"
    return {"example": msgspec.json.decode(file.read_bytes())} if file.exists() else {}


def _responses(operation: Operation, known: dict[type, Any]) -> dict[str, Any]:
    content = (
        {operation.media_type: {}}
        if operation.answer is None
        else {"application/json": {"schema": known[operation.answer]}}
    )
    responses: dict[str, Any] = {str(operation.status): {"description": "Done.", "content": content}}
    if operation.pending:
        responses["202"] = {"description": "Noted; somebody else has to agree.", "content": content}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    statuses = (_PUBLIC if operation.public else _COMMON) | operation.errors
    if operation.body is not None:
        statuses |= {408, 413}
    for status in sorted(statuses):
        titles = sorted({p.title for p in problems() if p.status == status})
        responses[str(status)] = {"description": " / ".join(titles), "content": problem}
    return responses


@cache
def page(operations: tuple[Operation, ...]) -> bytes:
    """The contract for people: one page, no script, nothing loaded from anywhere."""
    tree = _tree(operations)
    rows = "".join(_section(operation) for operation in operations)
    schemas = "".join(_schema(name, schema) for name, schema in tree["components"]["schemas"].items())
    wrong = "".join(
        f"<tr id='{p.slug}'><td>{p.status}</td><td><code>/problems/{p.slug}</code></td>"
        f"<td>{html.escape(p.title)}. {html.escape(p.remedy)}</td></tr>"
        for p in problems()
    )
    reasons = "".join(
        f"<tr><td><code>{reason}</code></td><td>{'allow' if reason in ALLOWS else 'deny'}</td>"
        f"<td>{html.escape(text)}</td></tr>"
        for reason, text in REASONS.items()
    )
    filled = _PAGE.format(version=__version__, operations=rows, reasons=reasons, schemas=schemas, problems=wrong)
    return filled.encode()


def _section(operation: Operation) -> str:
    scope = "public" if operation.scopes is None else "scope " + " or ".join(sorted(operation.scopes))
    body = "" if operation.body is None else f" <a href='#{operation.body.__name__}'>{operation.body.__name__}</a>"
    answer = (
        "" if operation.answer is None else f" → <a href='#{operation.answer.__name__}'>{operation.answer.__name__}</a>"
    )
    return (
        f"<section><h3><code>{operation.method} {html.escape(operation.path)}</code></h3>"
        f"<p>{html.escape(operation.summary)} <small>({html.escape(scope)})</small></p><p>{body}{answer}</p></section>"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    text = html.escape(msgspec.json.format(msgspec.json.encode(schema), indent=2).decode())
    linked = re.sub(r"#/components/schemas/(\w+)", r"<a href='#\1'>\1</a>", text)
    return f"<details id='{name}'><summary><code>{name}</code></summary><pre>{linked}</pre></details>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Consent service {version}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
section {{ border-top: 1px solid #bbb }}
pre {{ overflow-x: auto; background: #f4f4f4; padding: 1rem }}
td {{ padding: .2rem .8rem .2rem 0; vertical-align: top }}
</style></head><body>
<h1>Consent service {version}</h1>
<p>Send <code>Authorization: Bearer &lt;key&gt;</code> and <code>Content-Type: application/json</code>.
The same as a file: <a href="/openapi.json">openapi.json</a>.</p>
<h2>Operations</h2>{operations}
<h2>Reasons</h2><p>Every decision has one; the list is closed.</p><table>{reasons}</table>
<h2>Schemas</h2>{schemas}
<h2>Problems</h2><p>Errors are <code>application/problem+json</code> (RFC 9457).</p><table>{problems}</table>
</body></html>
"""
