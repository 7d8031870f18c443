"""The example of an operation as a request: for curl, and for the official client.

tests/tools/api_reference sends both to the service, with existing ids in place of those shown here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from app.api.openapi.openai_sdk_calls import CALLS, OUR_FIELDS, PARENTS
from app.api.openapi.schema_text import inner_object

PARAMETER = re.compile(r"{(\w+)(?::path)?}")
FILE_NAME = "train.jsonl"
JSON, FORM, STREAM = "application/json", "multipart/form-data", "text/event-stream"


# The setup of all examples.
SETUP_SH = 'export TUNERY=http://127.0.0.1:8000 KEY="Authorization: Bearer tnry_..."'
SETUP_PYTHON = """\
from pathlib import Path

from openai import HttpxBinaryResponseContent, OpenAI

# client.admin sends admin_api_key, a key with the scope `admin`
client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="tnry_...", admin_api_key="tnry_...")"""


@dataclass(frozen=True)
class ExampleRequest:
    """One operation with example values."""

    method: str
    template: str
    values: tuple[str, ...]  # of the path parameters, in order
    query: tuple[tuple[str, str], ...]  # parameters with an example
    media_type: str | None  # of the body
    body: Any
    files: tuple[str, ...]  # fields of the body with binary content
    response_type: str
    is_list: bool

    @property
    def path(self) -> str:
        values = iter(self.values)
        return PARAMETER.sub(lambda _: quote(next(values), safe=":"), self.template)

    @property
    def url(self) -> str:
        return self.path + (f"?{urlencode(self.query, safe=':')}" if self.query else "")

    @property
    def is_open(self) -> bool:
        """Whether the operation requires no key."""
        return not self.template.startswith("/v1")


def example_request(
    method: str, template: str, operation: Mapping[str, Any], document: Mapping[str, Any]
) -> ExampleRequest:
    path_values, query = _values(operation, "path"), _values(operation, "query")
    media_type, content = _first(operation.get("requestBody", {}).get("content", {}))
    response_type, response = _response(operation)
    fields = (inner_object(content.get("schema", {}), document) or {}).get("properties", {})
    return ExampleRequest(
        method=method.upper(),
        template=template,
        values=tuple(path_values[name] for name in PARAMETER.findall(template)),
        query=tuple((name, str(value)) for name, value in query.items() if isinstance(value, str | int)),
        media_type=media_type,
        body=content.get("example"),
        files=tuple(name for name, schema in fields.items() if _is_bytes(schema)),
        response_type=response_type,
        is_list=_is_list_of_objects(response),
    )


def json_text(value: Any) -> str:
    """JSON for readers: a value that fits is on one line."""
    if isinstance(value, Mapping) and value:
        items = [f"{json.dumps(key)}: {json_text(inner)}" for key, inner in value.items()]
        return _bracketed("{", items, "}", width=88, last="")
    if isinstance(value, list) and value:
        return _bracketed("[", [json_text(inner) for inner in value], "]", width=88, last="")
    return json.dumps(value, ensure_ascii=False)


def curl(request: ExampleRequest) -> str:
    """The request as a curl command. `$TUNERY` is the address, `$KEY` the Authorization header."""
    words = ["curl -s", *(["-N"] if request.response_type == STREAM else []), f"$TUNERY{_shell_word(request.url)}"]
    if request.method not in ("GET", "POST") or (request.method == "POST" and request.media_type is None):
        words.insert(1, f"-X {request.method}")
    options = [] if request.is_open else ['-H "$KEY"']
    options += _curl_body(request)
    if request.response_type not in (JSON, STREAM) and not request.response_type.startswith("text/"):
        options.append(f"-o {_download_name(request)}")
    return " \\\n  ".join([" ".join([*words, *options[:1]]), *options[1:]])


def python(request: ExampleRequest) -> str | None:
    """The request as a Python statement with `client = OpenAI(...)`. None for a stream."""
    if request.is_open or request.response_type == STREAM:
        return None
    method = CALLS.get(f"{request.method} {PARAMETER.sub('{}', request.template)}")
    if method is None and (request.files or request.media_type not in (None, JSON)):
        return None
    call = _sdk_call_text(request, method) if method else _generic_call_text(request)
    if request.response_type.startswith("text/"):
        return f"answer = {call}\nprint(answer.text)"
    if request.response_type != JSON:
        return f"{call}.write_to_file({_download_name(request)!r})".replace("'", '"')
    if request.is_list and method:
        return f"for item in {call}:\n    print(item.id)"
    return f"answer = {call}\nprint(answer)"


def _response(operation: Mapping[str, Any]) -> tuple[str, Any]:
    """Media type and example of the success response: of JSON if it can be JSON."""
    success = next(response for status, response in operation["responses"].items() if status.startswith("2"))
    contents = success.get("content", {})
    media_type, content = _first({JSON: contents[JSON]} if JSON in contents else contents)
    return media_type or JSON, content.get("example")


def _first(contents: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, Mapping[str, Any]]:
    return next(iter(contents.items()), (None, {}))


def _is_list_of_objects(response: Any) -> bool:
    is_list = isinstance(response, Mapping) and response.get("object") == "list"
    return is_list and all(isinstance(item, Mapping) for item in response["data"])


def _values(operation: Mapping[str, Any], place: str) -> dict[str, Any]:
    """{name: value} of the parameters in a place that have an example."""
    parameters = [each for each in operation.get("parameters", ()) if each["in"] == place and "example" in each]
    return {each["name"]: each["example"] for each in parameters}


def _shell_word(url: str) -> str:
    """Quote a URL with a query: a shell interprets question marks and ampersands."""
    return f'"{url}"' if "?" in url else url


def _is_bytes(schema: Mapping[str, Any]) -> bool:
    return "contentMediaType" in schema or schema.get("format") == "binary"


def _curl_body(request: ExampleRequest) -> list[str]:
    if request.media_type is None:
        return []
    if request.media_type == JSON:
        return ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json_text(request.body))}"]
    if request.media_type == FORM:
        body = request.body if isinstance(request.body, Mapping) else {}
        named = [(name, value) for name, value in body.items() if name not in request.files]
        return [f"-F {shlex.quote(f'{name}={value}')}" for name, value in named] + [
            f"-F {name}=@{FILE_NAME}" for name in request.files
        ]
    return [f"-H 'Content-Type: {request.media_type}'", f"--data-binary @{FILE_NAME}"]


def _sdk_call_text(request: ExampleRequest, method: str) -> str:
    *parents, last = map(json.dumps, request.values) if request.values else (None,)
    collection = PARAMETER.sub("{}", request.template).removesuffix("/{}")
    words = [last] if last else []
    words += [f"{PARENTS[collection]}={parent}" for parent in parents]
    words += [f"{name}={value}" for name, value in request.query]
    body = request.body if isinstance(request.body, Mapping) else {}
    words += [f"{name}={_value(request, name, value)}" for name, value in body.items() if name not in OUR_FIELDS]
    ours = {name: value for name, value in body.items() if name in OUR_FIELDS}
    if ours:
        words.append(f"extra_body={_literal(ours)}")
    return _layout(f"client.{method}", words)


def _generic_call_text(request: ExampleRequest) -> str:
    """A call by path, for operations without a method in the client; it still adds key, retries and errors."""
    cast_to = "object" if request.response_type == JSON else "HttpxBinaryResponseContent"
    body = [f"body={_literal(request.body)}"] if isinstance(request.body, Mapping) else []
    path = json.dumps(request.url.removeprefix("/v1"))
    return _layout(f"client.{request.method.lower()}", [path, *body, f"cast_to={cast_to}"])


def _value(request: ExampleRequest, name: str, value: Any) -> str:
    return f'Path("{FILE_NAME}")' if name in request.files else _literal(value)


def _layout(call: str, words: list[str]) -> str:
    return _bracketed(f"{call}(", words, ")", width=88)


def _literal(value: Any) -> str:
    """JSON as Python writes it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return _bracketed("{", [f"{_literal(key)}: {_literal(inner)}" for key, inner in value.items()], "}")
    if isinstance(value, list):
        return _bracketed("[", [_literal(inner) for inner in value], "]")
    return repr(value)


def _bracketed(opening: str, words: list[str], closing: str, width: int = 60, last: str = ",") -> str:
    """Bracketed items on one line if they fit, else one line each."""
    line = f"{opening}{', '.join(words)}{closing}"
    if len(line) <= width and "\n" not in line:
        return line
    inner = ",\n".join("    " + word.replace("\n", "\n    ") for word in words)
    return f"{opening}\n{inner}{last}\n{closing}"


def _download_name(request: ExampleRequest) -> str:
    return "adapter.tar" if request.response_type == "application/x-tar" else FILE_NAME
