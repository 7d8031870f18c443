"""docs/reference: a page for each group of operations, one for the objects, and an index."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from app.api.openapi import request_examples, schema_text
from app.api.openapi.schema_text import FieldRow

NOTE = "<!-- Written by `make reference` from the OpenAPI document. Change the code, not this page. -->\n"
COMMON = "Common error responses"
Document = Mapping[str, Any]
Operation = tuple[str, str, Mapping[str, Any]]  # method, path, operation


def pages(document: Document) -> dict[str, str]:
    """{file name: text} of all pages."""
    groups, common = _groups(document), _common_errors(document)
    group_pages = {_file_of(tag): _group_page(tag, operations, document, common) for tag, operations in groups.items()}
    return {"README.md": _index(groups, common), **group_pages, "objects.md": _objects(document)}


def _common_errors(document: Document) -> dict[str, str]:
    """{status: description} of the errors that most operations have: described once instead of for each operation."""
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    counted = Counter(
        (status, response["description"])
        for operation in operations
        for status, response in operation["responses"].items()
        if status >= "4"
    )
    return {status: text for (status, text), count in sorted(counted.items()) if count > len(operations) / 2}


def _groups(document: Document) -> dict[str, list[Operation]]:
    """{tag: operations}; operations without a path parameter (create, list) come first."""
    groups: dict[str, list[Operation]] = defaultdict(list)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            groups[(operation.get("tags") or ["Others"])[0]].append((method.upper(), path, operation))
    return {tag: sorted(groups[tag], key=lambda operation: "{" in operation[1]) for tag in sorted(groups)}


def _file_of(tag: str) -> str:
    return f"{_slug(tag)}.md"


def _slug(text: str) -> str:
    """The anchor of a heading in Markdown."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _index(groups: Mapping[str, list[Operation]], common: Mapping[str, str]) -> str:
    parts = [
        f"# API reference\n\n{NOTE}",
        "Every operation, with its parameters, body, response and an example. For an introduction see\n"
        "[the API](../api.md), for errors [errors](../errors.md), for differences from OpenAI\n"
        "[coming from OpenAI](../coming-from-openai.md). Setup of the examples:\n",
        f"```sh\n{request_examples.SETUP_SH}\n```\n",
        f"```python\n{request_examples.SETUP_PYTHON}\n```\n",
        "The scope of an operation is the scope that the key requires ([scopes](../tenancy.md#scopes)).\n",
        f"## {COMMON}\n\nEach is an [ErrorBody](objects.md#errorbody).\n\n| status | description |\n|---|---|",
        *(f"| {status} | {_cell(text)} |" for status, text in common.items()),
        "",
    ]
    for tag, operations in groups.items():
        rows = [
            f"| `{method} {path}` | [{operation['summary']}]({_file_of(tag)}#{_slug(operation['summary'])}) |"
            for method, path, operation in operations
        ]
        parts.append(f"## {tag}\n\n| operation | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _group_page(tag: str, operations: list[Operation], document: Document, common: Mapping[str, str]) -> str:
    head = f"# {tag}\n\n{NOTE}\n[All operations](README.md) · [objects](objects.md) · [errors](../errors.md)\n"
    return "\n".join([head, *(_operation(*operation, document, common) for operation in operations)])


def _operation(
    method: str, path: str, operation: Mapping[str, Any], document: Document, common: Mapping[str, str]
) -> str:
    request = request_examples.example_request(method, path, operation, document)
    scope = operation.get("x-scope")
    parts = [f"## {operation['summary']}\n\n`{method} {path}`" + (f" · scope `{scope}`\n" if scope else "\n")]
    if operation.get("description"):
        parts.append(operation["description"] + "\n")
    parts += _parameters(operation)
    parts += _body(operation, document)
    parts += _examples(request)
    parts += _responses(operation, common)
    return "\n".join(parts)


def _parameters(operation: Mapping[str, Any]) -> Iterator[str]:
    parameters = operation.get("parameters", ())
    if not parameters:
        return
    yield "**Parameters**\n"
    rows = [
        FieldRow(
            f"{parameter['name']} ({parameter['in']})",
            schema_text.type_name(parameter["schema"]).removesuffix(" or null"),  # a query cannot express null
            parameter.get("required", False),
            schema_text.default_of(parameter["schema"]),
            parameter.get("description", ""),
        )
        for parameter in parameters
    ]
    yield _table("parameter", rows)


def _body(operation: Mapping[str, Any], document: Document) -> Iterator[str]:
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"**Body** (`{media_type}`)\n"
        schema = schema_text.inner_object(content["schema"], document)
        yield "The raw bytes.\n" if schema is None else _table("field", schema_text.fields(schema, document))


def _examples(request: request_examples.ExampleRequest) -> Iterator[str]:
    yield f"**Example**\n\n```sh\n{request_examples.curl(request)}\n```\n"
    python = request_examples.python(request)
    if python is not None:
        yield f"```python\n{python}\n```\n"


def _responses(operation: Mapping[str, Any], common: Mapping[str, str]) -> Iterator[str]:
    responses = operation["responses"]
    shared = [status for status, each in responses.items() if common.get(status) == each["description"]]
    yield "**Responses**\n\n| status | description | body |\n|---|---|---|"
    for status in [status for status in responses if status not in shared]:
        yield f"| {status} | {_cell(responses[status]['description'])} | {_response_body(responses[status])} |"
    yield ""
    if shared:
        yield f"Also the [{COMMON.lower()}](README.md#{_slug(COMMON)}): {', '.join(shared)}.\n"
    example = responses.get("200", {}).get("content", {}).get(request_examples.JSON)
    if example is not None:
        yield f"```json\n{request_examples.json_text(example.get('example'))}\n```\n"


def _response_body(response: Mapping[str, Any]) -> str:
    bodies = [
        _linked(content["schema"]) if media_type == request_examples.JSON else f"`{media_type}`"
        for media_type, content in response.get("content", {}).items()
    ]
    return " or ".join(bodies)


def _linked(schema: Mapping[str, Any]) -> str:
    if "$ref" not in schema:
        return _cell(schema_text.type_name(schema))
    name = schema_text.ref_name(schema)
    return f"[{name}](objects.md#{_slug(name)})"


def _objects(document: Document) -> str:
    parts = [f"# Objects\n\n{NOTE}\nAll objects, by name. Every error is an [ErrorBody](#errorbody).\n"]
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(f"## {name}\n")
        if schema.get("description"):
            parts.append(schema["description"] + "\n")
        if schema.get("properties"):
            parts.append(_object_table(schema))
    return "\n".join(parts)


def _object_table(schema: Mapping[str, Any]) -> str:
    rows = [
        f"| `{row.path}` | {_with_links(row.type, schema['properties'][row.path])} | {_cell(row.description)} |"
        for row in schema_text.own_fields(schema)
    ]
    return "| field | type | description |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _with_links(text: str, schema: Mapping[str, Any]) -> str:
    names = set(re.findall(r"#/components/schemas/(\w+)", str(schema)))
    text = _cell(text)
    for name in names:
        text = re.sub(rf"\b{name}\b", f"[{name}](#{_slug(name)})", text)
    return text


def _table(title: str, rows: list[FieldRow]) -> str:
    lines = [f"| {title} | type | default | description |", "|---|---|---|---|"]
    for row in rows:
        name = f"`{row.path}`" if " (" not in row.path else "`{}` ({}".format(*row.path.split(" (", 1))
        default = "required" if row.required else f"`{row.default}`" if row.default is not None else ""
        lines.append(f"| {name} | {_cell(row.type)} | {default} | {_cell(row.description)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
