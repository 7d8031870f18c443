"""docs/reference: a page for each group of operations, one for the objects they answer with, and a list of all."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from app.api.openapi import request_examples, schema_text
from app.api.openapi.schema_text import Field

NOTE = "<!-- Written by `make reference` from the OpenAPI document. Change the code, not this page. -->\n"
COMMON = "What every operation may answer"
Document = Mapping[str, Any]
Operation = tuple[str, str, Mapping[str, Any]]  # method, path, operation


def pages(document: Document) -> dict[str, str]:
    """{file name: text} of the whole reference."""
    groups, common = _groups(document), _common_errors(document)
    written = {_file_of(tag): _group_page(tag, operations, document, common) for tag, operations in groups.items()}
    return {"README.md": _index(groups, common), **written, "objects.md": _objects(document)}


def _common_errors(document: Document) -> dict[str, str]:
    """{status: description} of what most operations may answer: told once, instead of with each of them."""
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    counted = Counter(
        (status, answer["description"])
        for operation in operations
        for status, answer in operation["responses"].items()
        if status >= "4"
    )
    return {status: said for (status, said), count in sorted(counted.items()) if count > len(operations) / 2}


def _groups(document: Document) -> dict[str, list[Operation]]:
    """What is about no single thing (create, list) comes first."""
    found: dict[str, list[Operation]] = defaultdict(list)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            found[(operation.get("tags") or ["Others"])[0]].append((method.upper(), path, operation))
    return {tag: sorted(found[tag], key=lambda operation: "{" in operation[1]) for tag in sorted(found)}


def _file_of(tag: str) -> str:
    return f"{_slug(tag)}.md"


def _slug(text: str) -> str:
    """As a reader of Markdown makes an anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _index(groups: Mapping[str, list[Operation]], common: Mapping[str, str]) -> str:
    parts = [
        f"# API reference\n\n{NOTE}",
        "Every operation, with its parameters, its body, its answer and an example. The narrative is in\n"
        "[the API](../api.md), what can go wrong in [errors](../errors.md), what differs from OpenAI in\n"
        "[coming from OpenAI](../coming-from-openai.md). The examples take these two for given:\n",
        f"```sh\n{request_examples.SETUP_SH}\n```\n",
        f"```python\n{request_examples.SETUP_PYTHON}\n```\n",
        "The scope beside an operation is what its key must have ([scopes](../tenancy.md#scopes)).\n",
        f"## {COMMON}\n\nEach is an [ErrorBody](objects.md#errorbody).\n\n| status | what |\n|---|---|",
        *(f"| {status} | {_cell(said)} |" for status, said in common.items()),
        "",
    ]
    for tag, operations in groups.items():
        rows = [
            f"| `{method} {path}` | [{one['summary']}]({_file_of(tag)}#{_slug(one['summary'])}) |"
            for method, path, one in operations
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
    parts += _answers(operation, common)
    return "\n".join(parts)


def _parameters(operation: Mapping[str, Any]) -> Iterator[str]:
    parameters = operation.get("parameters", ())
    if not parameters:
        return
    yield "**Parameters**\n"
    rows = [
        Field(
            f"{one['name']} ({one['in']})",
            schema_text.type_name(one["schema"]).removesuffix(" or null"),  # which cannot be said in a URL
            one.get("required", False),
            schema_text.default_of(one["schema"]),
            one.get("description", ""),
        )
        for one in parameters
    ]
    yield _table("parameter", rows)


def _body(operation: Mapping[str, Any], document: Document) -> Iterator[str]:
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"**Body** (`{media_type}`)\n"
        schema = schema_text.inner_object(content["schema"], document)
        yield "The bytes as they are.\n" if schema is None else _table("field", schema_text.fields(schema, document))


def _examples(request: request_examples.Request) -> Iterator[str]:
    yield f"**Example**\n\n```sh\n{request_examples.curl(request)}\n```\n"
    python = request_examples.python(request)
    if python is not None:
        yield f"```python\n{python}\n```\n"


def _answers(operation: Mapping[str, Any], common: Mapping[str, str]) -> Iterator[str]:
    responses = operation["responses"]
    shared = [status for status, answer in responses.items() if common.get(status) == answer["description"]]
    yield "**Answers**\n\n| status | what | body |\n|---|---|---|"
    for status in [status for status in responses if status not in shared]:
        yield f"| {status} | {_cell(responses[status]['description'])} | {_answer_body(responses[status])} |"
    yield ""
    if shared:
        yield f"And [{COMMON.lower()}](README.md#{_slug(COMMON)}): {', '.join(shared)}.\n"
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            yield from _answer_examples(status, answer)


def _answer_body(answer: Mapping[str, Any]) -> str:
    said = [
        _linked(content["schema"]) if media_type == request_examples.JSON else f"`{media_type}`"
        for media_type, content in answer.get("content", {}).items()
    ]
    return " or ".join(said)


def _linked(schema: Mapping[str, Any]) -> str:
    if "$ref" not in schema:
        return _cell(schema_text.type_name(schema))
    name = schema_text.ref_name(schema)
    return f"[{name}](objects.md#{_slug(name)})"


def _answer_examples(status: str, answer: Mapping[str, Any]) -> Iterator[str]:
    for media_type, content in answer.get("content", {}).items():
        if media_type == request_examples.JSON and status == "200":
            yield f"```json\n{request_examples.json_text(content.get('example'))}\n```\n"


def _objects(document: Document) -> str:
    parts = [
        f"# Objects\n\n{NOTE}\nWhat the operations answer with, by name. Every error is an [ErrorBody](#errorbody).\n"
    ]
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(f"## {name}\n")
        if schema.get("description"):
            parts.append(schema["description"] + "\n")
        if schema.get("properties"):
            parts.append(_object_table(schema))
    return "\n".join(parts)


def _object_table(schema: Mapping[str, Any]) -> str:
    rows = [
        f"| `{one.path}` | {_with_links(one.type, schema['properties'][one.path])} | {_cell(one.meaning)} |"
        for one in schema_text.own_fields(schema)
    ]
    return "| field | type | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _with_links(text: str, schema: Mapping[str, Any]) -> str:
    names = set(re.findall(r"#/components/schemas/(\w+)", str(schema)))
    text = _cell(text)
    for name in names:
        text = re.sub(rf"\b{name}\b", f"[{name}](#{_slug(name)})", text)
    return text


def _table(title: str, rows: list[Field]) -> str:
    lines = [f"| {title} | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        name = f"`{row.path}`" if " (" not in row.path else "`{}` ({}".format(*row.path.split(" (", 1))
        default = "required" if row.required else f"`{row.default}`" if row.default is not None else ""
        lines.append(f"| {name} | {_cell(row.type)} | {default} | {_cell(row.meaning)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
