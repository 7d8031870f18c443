"""An operation's example as a request: for curl, and for the official client.

Both are run by tests/reference, against the service, with ids that exist in the place of those shown here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from app.api.openapi.examples import all_operations, extensions, organization, uploads, webhooks
from app.api.openapi.openai_sdk_calls import CALLS, SdkCall
from app.api.openapi.schema_text import inner_object

PARAMETER = re.compile(r"{(\w+)(?::path)?}")
PATH_EXAMPLES = {
    "file_id": all_operations.FILE_ID, "job_id": all_operations.JOB_ID, "model": all_operations.TUNED,
    "upload_id": uploads.UPLOAD_ID, "export_id": extensions.EXPORT["id"],
    "endpoint_id": webhooks.ENDPOINT_ID, "delivery_id": webhooks.DELIVERY["id"],
    "project_id": organization.PROJECT_ID, "key_id": organization.KEY_ID,
}  # fmt: skip
A_FILE = "train.jsonl"
JSON, FORM, STREAM = "application/json", "multipart/form-data", "text/event-stream"


# What every example takes for given.
SETUP_SH = 'export TUNERY=http://127.0.0.1:8000 KEY="Authorization: Bearer tnry_..."'
SETUP_PYTHON = """\
from pathlib import Path

from openai import HttpxBinaryResponseContent, OpenAI

# admin_api_key is what client.admin sends: a key with the scope `admin`
client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="tnry_...", admin_api_key="tnry_...")"""


@dataclass(frozen=True)
class Request:
    """One operation with example values."""

    method: str
    template: str
    values: tuple[str, ...]  # of the path's parameters, in their order
    query: tuple[tuple[str, str], ...]  # parameters that have an example
    media_type: str | None  # of the body
    body: Any
    files: tuple[str, ...]  # fields of the body that are bytes
    answer_type: str
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
        """Needs no key."""
        return not self.template.startswith("/v1")


def example_request(method: str, template: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> Request:
    media_type, content = _first(operation.get("requestBody", {}).get("content", {}))
    answer_type, answer = _answer(operation)
    fields = (inner_object(content.get("schema", {}), document) or {}).get("properties", {})
    return Request(
        method=method.upper(),
        template=template,
        values=_path_values(template, operation, answer),
        query=_query(operation),
        media_type=media_type,
        body=content.get("example"),
        files=tuple(name for name, schema in fields.items() if _is_bytes(schema)),
        answer_type=answer_type,
        is_list=_is_list_of_things(answer),
    )


def json_text(value: Any) -> str:
    """JSON for people: what fits stays on one line."""
    if isinstance(value, Mapping) and value:
        words = [f"{json.dumps(key)}: {json_text(inner)}" for key, inner in value.items()]
        return _bracketed("{", words, "}", width=88, last="")
    if isinstance(value, list) and value:
        return _bracketed("[", [json_text(inner) for inner in value], "]", width=88, last="")
    return json.dumps(value, ensure_ascii=False)


def curl(request: Request) -> str:
    """`$TUNERY` is the address, `$KEY` the Authorization header."""
    words = ["curl -s", *(["-N"] if request.answer_type == STREAM else []), f"$TUNERY{_shell_word(request.url)}"]
    if request.method not in ("GET", "POST") or (request.method == "POST" and request.media_type is None):
        words.insert(1, f"-X {request.method}")
    options = [] if request.is_open else ['-H "$KEY"']
    options += _curl_body(request)
    if request.answer_type not in (JSON, STREAM) and not request.answer_type.startswith("text/"):
        options.append(f"-o {_download_name(request)}")
    return " \\\n  ".join([" ".join([*words, *options[:1]]), *options[1:]])


def python(request: Request) -> str | None:
    """With `client = OpenAI(...)` before it. None where the client is of no use, as for a stream."""
    if request.is_open or request.answer_type == STREAM:
        return None
    official = CALLS.get(f"{request.method} {PARAMETER.sub('{}', request.template)}")
    if official is None and (request.files or request.media_type not in (None, JSON)):
        return None
    call = _official(request, official) if official else _by_path(request)
    if request.answer_type.startswith("text/"):
        return f"answer = {call}\nprint(answer.text)"
    if request.answer_type != JSON:
        return f"{call}.write_to_file({_download_name(request)!r})".replace("'", '"')
    if request.is_list and official:
        return f"for item in {call}:\n    print(item.id)"
    return f"answer = {call}\nprint(answer)"


def _answer(operation: Mapping[str, Any]) -> tuple[str, Any]:
    success = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
    media_type, content = _first(success.get("content", {}))
    return media_type or JSON, content.get("example")


def _first(contents: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, Mapping[str, Any]]:
    return next(iter(contents.items()), (None, {}))


def _is_list_of_things(answer: Any) -> bool:
    """And not of words."""
    return isinstance(answer, Mapping) and answer.get("object") == "list" and isinstance(answer["data"][0], Mapping)


def _path_values(template: str, operation: Mapping[str, Any], answer: Any) -> tuple[str, ...]:
    """What the document shows: the parameter's own example, the id in the answer, or one of the examples' ids."""
    shown = {one["name"]: one["example"] for one in operation.get("parameters", ()) if "example" in one}
    names = PARAMETER.findall(template)
    values = [str(shown.get(name) or PATH_EXAMPLES.get(name) or f"{name.removesuffix('_id')}-...") for name in names]
    if names and names[-1] not in shown and PARAMETER.search(template.rsplit("/", 1)[-1]):
        values[-1] = str(answer["id"]) if isinstance(answer, Mapping) and "id" in answer else values[-1]
    return tuple(values)


def _query(operation: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    parameters = [one for one in operation.get("parameters", ()) if one["in"] == "query"]
    shown = {one["name"]: one.get("example", *one.get("schema", {}).get("examples", ())[:1]) for one in parameters}
    return tuple((name, str(value)) for name, value in shown.items() if isinstance(value, str | int))


def _shell_word(url: str) -> str:
    """A question mark and an ampersand mean something to a shell."""
    return f'"{url}"' if "?" in url else url


def _is_bytes(schema: Mapping[str, Any]) -> bool:
    return "contentMediaType" in schema or schema.get("format") == "binary"


def _curl_body(request: Request) -> list[str]:
    if request.media_type is None:
        return []
    if request.media_type == JSON:
        return ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json_text(request.body))}"]
    if request.media_type == FORM:
        body = request.body if isinstance(request.body, Mapping) else {}
        named = [(name, value) for name, value in body.items() if name not in request.files]
        return [f"-F {shlex.quote(f'{name}={value}')}" for name, value in named] + [
            f"-F {name}=@{A_FILE}" for name in request.files
        ]
    return [f"-H 'Content-Type: {request.media_type}'", f"--data-binary @{A_FILE}"]


def _official(request: Request, official: SdkCall) -> str:
    words = [json.dumps(request.values[position]) for position in official.arguments]
    words += [f"{name}={json.dumps(request.values[position])}" for name, position in official.by_name.items()]
    body = request.body if isinstance(request.body, Mapping) else {}
    words += [f"{name}={_value(request, name, body[name])}" for name in official.body if name in body]
    ours = {name: value for name, value in body.items() if name not in official.body}
    if ours:
        words.append(f"extra_body={_literal(ours)}")
    return _layout(f"client.{official.method}", words)


def _by_path(request: Request) -> str:
    """What the client has no method for, by the client all the same: key, retries and errors are its own."""
    cast_to = "object" if request.answer_type == JSON else "HttpxBinaryResponseContent"
    body = [f"body={_literal(request.body)}"] if isinstance(request.body, Mapping) else []
    path = json.dumps(request.url.removeprefix("/v1"))
    return _layout(f"client.{request.method.lower()}", [path, *body, f"cast_to={cast_to}"])


def _value(request: Request, name: str, value: Any) -> str:
    return f'Path("{A_FILE}")' if name in request.files else _literal(value)


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
    """On one line if it fits, else each word on its own."""
    line = f"{opening}{', '.join(words)}{closing}"
    if len(line) <= width and "\n" not in line:
        return line
    inner = ",\n".join("    " + word.replace("\n", "\n    ") for word in words)
    return f"{opening}\n{inner}{last}\n{closing}"


def _download_name(request: Request) -> str:
    return "adapter.tar" if request.answer_type == "application/x-tar" else A_FILE
