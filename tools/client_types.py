"""`python -m tools.client_types`: write the types of packages/tunery-client from the OpenAPI document, in Python and
in TypeScript: the objects that the official client sends in `extra_body`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.api.openapi.schema_text import inner_object, ref_name
from tools.docs.reference import document

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Language:
    """How types are written: `{}` is the inner type, or the values of a literal."""

    names: Mapping[str, str]
    list_of: str
    record_of: str
    literal: str
    separator: str  # of the values


PACKAGE = Path(__file__).resolve().parents[1] / "packages" / "tunery-client"
NOTE = "Written by `make openapi` from the OpenAPI document. Change the code, not this file."
# The path of a body in `CreateJob`, and the stored object with its canonical fields: requests have aliases, too.
BODIES = {
    "Lora": (("lora",), "LoraSpec"),
    "Quantization": (("quantization",), "QuantizationSpec"),
    "Evaluation": (("evaluation",), "EvaluationRequest"),
    "KtoHyperparameters": (("method", "kto", "hyperparameters"), "Hyperparameters"),
}
PYTHON_NAMES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
PYTHON = Language(PYTHON_NAMES, "list[{}]", "dict[str, {}]", "Literal[{}]", ", ")
TYPESCRIPT = Language({"integer": "number"}, "Array<{}>", "Record<string, {}>", "{}", " | ")


def main() -> None:
    for name, text in files(document()).items():
        (PACKAGE / name).write_text(text, encoding="utf-8")


def files(document: Schema) -> dict[str, str]:
    """{path in the package: text}."""
    objects = dict(_objects(document))
    python = "".join(_python(name, schema) for name, schema in objects.items())
    imports = "from __future__ import annotations\n\nfrom typing import Literal, Required, TypedDict\n"
    return {
        "tunery/bodies.py": f'"""{NOTE}"""\n\n{imports}{python}',
        "tunery.ts": f"// {NOTE}\n" + "".join(_typescript(name, schema) for name, schema in objects.items()),
    }


def _objects(document: Schema) -> Iterator[tuple[str, Schema]]:
    """(name, schema) of each body, after those of the objects in it; a name may come twice."""
    schemas = document["components"]["schemas"]

    def with_inner(name: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
        for field, inner in schema["properties"].items():
            for option in _options(inner):
                if "$ref" in option:
                    yield from with_inner(ref_name(option), schemas[ref_name(option)])
                elif "properties" in option:
                    yield from with_inner(_class_name(field), option)
        yield name, schema

    for name, (path, stored) in BODIES.items():
        schema = schemas["CreateJob"]
        for field in path:
            schema = inner_object(schema["properties"][field], document)
        canonical = schemas[stored]["properties"]
        fields = {field: inner for field, inner in schema["properties"].items() if field in canonical}
        yield from with_inner(name, {**schema, "properties": fields})


def _options(schema: Schema) -> Iterator[Schema]:
    """The alternatives in a schema, those of the items of a list among them."""
    for option in schema.get("anyOf") or schema.get("oneOf") or [schema]:
        yield from _options(option["items"]) if "items" in option else (option,)


def _class_name(field: str) -> str:
    return field.title().replace("_", "")


def _python(name: str, schema: Schema) -> str:
    types = {field: _type(inner, field, PYTHON) for field, inner in schema["properties"].items()}
    types |= {field: f"Required[{types[field]}]" for field in schema.get("required", ())}
    lines = [f"    {field}: {text}\n" for field, text in types.items()]
    fields = "".join(
        re.sub(r"(Required\[)(.*)\]", r"\1\n        \2\n    ]", line) if len(line) > 121 else line for line in lines
    )
    return f"\n\nclass {name}(TypedDict, total=False):\n{fields}"


def _typescript(name: str, schema: Schema) -> str:
    required = schema.get("required", ())
    fields = ""
    for field, inner in schema["properties"].items():
        fields += f"  /** {' '.join(inner['description'].split())} */\n" if "description" in inner else ""
        fields += f"  {field}{'' if field in required else '?'}: {_type(inner, field, TYPESCRIPT)};\n"
    return f"\nexport interface {name} {{\n{fields}}}\n"


def _type(schema: Schema, field: str, language: Language) -> str:
    """The type of `field`."""
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " | ".join(dict.fromkeys(_type(option, field, language) for option in options))
    if "$ref" in schema:
        return ref_name(schema)
    if "properties" in schema:
        return _class_name(field)
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else ()):
        return language.literal.format(language.separator.join(map(json.dumps, values)))
    if schema.get("type") == "array":
        return language.list_of.format(_type(schema["items"], field, language))
    if isinstance(inner := schema.get("additionalProperties"), Mapping):
        return language.record_of.format(_type(inner, field, language))
    name = str(schema["type"])
    return language.names.get(name, name)


if __name__ == "__main__":
    main()
