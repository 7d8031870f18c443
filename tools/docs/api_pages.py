"""reference/api: a page for each group of operations, one for the objects, and an index, by the templates beside."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from app.api.openapi import request_examples, schema_text
from app.api.openapi.schema_text import FieldRow

Document = Mapping[str, Any]
Operation = tuple[str, str, Mapping[str, Any]]  # method, path, operation


def pages(document: Document) -> dict[str, str]:
    """{file name: text} of all pages."""
    groups, environment = _groups(document), templates()
    environment.globals |= {"document": document, "common": _common_errors(document)}
    index, group, objects = (
        environment.get_template(f"{name}.md.jinja") for name in ("operations", "group", "objects")
    )
    group_pages = {f"{slug(tag)}.md": group.render(tag=tag, operations=each) for tag, each in groups.items()}
    return {"operations.md": index.render(groups=groups), **group_pages, "objects.md": objects.render()}


def templates() -> Environment:
    """Those of all generated pages."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=ChainableUndefined,  # most keys of the document are optional
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": _cell, "slug": slug, "linked": _linked, "with_links": _with_links,
        "json_text": request_examples.json_text,
    }  # fmt: skip
    environment.globals |= {
        "parameter_rows": _parameter_rows,
        "examples": request_examples,
        "schemas": schema_text,
    }
    return environment


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


def _parameter_rows(operation: Mapping[str, Any]) -> list[FieldRow]:
    return [
        FieldRow(
            f"{parameter['name']} ({parameter['in']})",
            schema_text.type_name(parameter["schema"]).removesuffix(" or null"),  # a query cannot express null
            parameter.get("required", False),
            schema_text.default_of(parameter["schema"]),
            parameter.get("description", ""),
        )
        for parameter in operation["parameters"]
    ]


def slug(text: str) -> str:
    """The anchor of a heading in Markdown."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _linked(schema: Mapping[str, Any]) -> str:
    if "$ref" not in schema:
        return _cell(schema_text.type_name(schema))
    name = schema_text.ref_name(schema)
    return f"[{name}](objects.md#{slug(name)})"


def _with_links(text: str, schema: Mapping[str, Any]) -> str:
    names = set(re.findall(r"#/components/schemas/(\w+)", str(schema)))
    text = _cell(text)
    for name in names:
        text = re.sub(rf"\b{name}\b", f"[{name}](#{slug(name)})", text)
    return text


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
