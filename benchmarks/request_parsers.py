"""Every parser of what a client sends, with ordinary and hostile inputs of any size.

`benchmarks.linear` measures how their time grows, `tests/benchmarks/test_linear.py` holds the largest inputs against
ordinary ones.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from fastapi.routing import APIRoute
from starlette.requests import Request

from app.api.auth import bearer_secret
from app.api.idempotency import _fingerprint
from app.api.middleware.request_log import masked_query, request_id_of
from app.api.query_parameters import check_query
from app.api.routes.answers import _trial_question
from app.api.routes.jobs import _metadata_filter, router
from app.api.schemas.files import CompleteUpload
from app.api.transport.file_response import matches_etag, requested_range
from app.api.transport.json_body import MAX_BODY_BYTES, parse_json_object
from app.api.transport.request_bodies import IoPools, read_form
from app.api.transport.resumable_upload import parse_content_range
from app.domain.answers.engine_answers import EventTranslator
from app.domain.datasets.chat_template import TemplateRefused
from app.domain.datasets.jsonl import MAX_LINE_BYTES, read_lines
from app.domain.datasets.render import Renderer
from app.domain.datasets.report import build_report
from app.domain.datasets.tables import TableError
from app.domain.error_text.validation_text import check_shape
from app.domain.evaluations.graders import EvaluationSettings
from app.domain.evaluations.rows import EvaluationRow, grader_findings, read_rows
from app.domain.evaluations.templates import parts_of
from app.domain.jobs.create_job import parse_create
from app.domain.jobs.spec import DataParameters
from app.errors import TuneryError
from app.services.answers.answers import Question
from app.system.table_files import preview
from app.system.tokenizer_files import load_renderer
from tests.tiny import make_tiny_base

MAX_HEAD_BYTES = 64 << 10  # h11 takes no longer request line and headers together
BOUNDARY = b"boundary0123456789"
Make = Callable[[int], bytes]


@dataclass(frozen=True)
class Parser:
    """`parse` may refuse its input by raising TuneryError. `most_bytes` is the largest input that a server lets in."""

    name: str
    most_bytes: int
    parse: Callable[[bytes], object]
    ordinary: Make
    hostile: Mapping[str, Make]

    def run(self, data: bytes) -> None:
        with suppress(TuneryError, TemplateRefused):
            self.parse(data)


def filled(begin: bytes, items: Callable[[int], bytes], end: bytes, between: bytes = b",") -> Make:
    """Inputs with as many numbered items as fit."""

    def make(size_bytes: int) -> bytes:
        data, number, item = bytearray(begin), 1, items(0)
        while len(data) + len(item) + len(between) + len(end) <= size_bytes:
            data += item
            item, number = between + items(number), number + 1
        return bytes(data + end)

    return make


def repeated(begin: bytes, item: bytes, end: bytes = b"") -> Make:
    return lambda size_bytes: begin + item * ((size_bytes - len(begin) - len(end)) // len(item)) + end


def list_of(item: bytes) -> Make:
    return filled(b'{"a": [', lambda _: item, b"]}")


def _long_key(size_bytes: int) -> bytes:
    begin = b'{"' + b"k" * (size_bytes // 2) + b'": ['
    return filled(begin, lambda _: b'"\\u0001"', b"]}")(size_bytes)


ORDINARY_JSON = filled(b"{", lambda n: b'"key%d": "value %d"' % (n, n), b"}")
HOSTILE_JSON = {
    "a duplicate key at the end": filled(b"{", lambda n: b'"k%d":0' % n, b',"k0":1}'),
    "the same key": repeated(b'{"a":0', b',"a":0', b"}"),
    "numbers": list_of(b"0"),
    "empty objects": list_of(b"{}"),
    "long key, many strings": _long_key,
    "deep, many strings": filled(b'{"a": ' + b"[" * 60, lambda _: b'""', b"]" * 60 + b"}"),
    "brackets": repeated(b"", b"["),
    "objects in objects": repeated(b"", b'{"a":'),
    "escapes": repeated(b'{"a": "', b"\\u00e9", b'"}'),
    "surrogates, the last one alone": repeated(b'{"a": "', b"\\ud83d\\ude00", b'\\ud83d"}'),
    "not ASCII, a NUL at the end": repeated(b'{"a": "', "ж".encode(), b'\\u0000"}'),
    "digits": repeated(b'{"a": ', b"9", b"}"),
    "digits of a fraction": repeated(b'{"a": 1.', b"7", b"}"),
    "digits of an exponent": repeated(b'{"a": 1e', b"9", b"}"),
    "not closed": repeated(b'{"a": "', b"\\\\"),
}
REQUIRED = b'{"model":"m","training_file":"f"'
CREATE_BODIES = {
    "unknown keys": filled(REQUIRED + b",", lambda n: b'"k%d":0' % n, b"}"),
    "unknown hyperparameters": filled(REQUIRED + b',"hyperparameters":{', lambda n: b'"k%d":0' % n, b"}}"),
    "metadata": filled(REQUIRED + b',"metadata":{', lambda n: b'"k%d":0' % n, b"}}"),
    "labels": filled(REQUIRED + b',"worker_labels":[', lambda n: b'"%d!"' % n, b"]}"),
    "prompts": filled(REQUIRED + b',"sample_prompts":[', lambda n: b'{"a":%d}' % n, b"]}"),
    "modules": filled(REQUIRED + b',"lora":{"target_modules":"', lambda n: b"m%d" % n, b'"}}'),
}
ANSWER = b'{"role":"assistant","content":"a"}'
THOUGHT = b'{"role":"assistant","content":"a","reasoning_content":"b"}'
RESULT = b'{"role":"tool","content":"a","tool_call_id":"%d"}'
CALL = b'{"id":"%d","type":"function","function":{"name":"f%d","arguments":"{}"}}'
CHAT_LINES = {
    "answers": repeated(b'{"messages":[' + ANSWER, b"," + ANSWER, b"]}"),
    "turns": repeated(b'{"messages":[' + ANSWER, b',{"role":"user","content":"a"},' + ANSWER, b"]}"),
    "reasoning": repeated(b'{"messages":[' + THOUGHT, b',{"role":"user","content":"a"},' + THOUGHT, b"]}"),
    "calls and results": filled(
        b'{"messages":[',
        lambda n: b'{"role":"assistant","tool_calls":[' + CALL % (n, n) + b"]}," + RESULT % n,
        b"," + ANSWER + b"]}",
    ),
    "results without a call": filled(b'{"messages":[', lambda n: RESULT % n, b"," + ANSWER + b"]}"),
    "calls of one message": filled(
        b'{"messages":[{"role":"assistant","tool_calls":[', lambda n: CALL % (n, n), b"]}," + ANSWER + b"]}"
    ),
    "content in parts": filled(
        b'{"messages":[{"role":"user","content":[',
        lambda n: b'{"type":"text","text":"%d"}' % n,
        b"]}," + ANSWER + b"]}",
    ),
    "unknown keys of a message": filled(
        b'{"messages":[{"role":"user","content":"a",', lambda n: b'"k%d":0' % n, b"}," + ANSWER + b"]}"
    ),
    "messages that are none": filled(b'{"messages":[', lambda n: b"%d" % n, b"]}"),
}


TEMPLATE = (  # ChatML that prints calls and reasoning, so that every check of a template comes to its end
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% if 'reasoning_content' in m %}{{ m['reasoning_content'] }}{% endif %}"
    "{% if 'tool_calls' in m %}{% for call in m['tool_calls'] %}{{ call['function'] | tojson }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def _renderer() -> Renderer:
    with TemporaryDirectory() as directory:
        base = make_tiny_base(Path(directory) / "base")
        (base / "chat_template.jinja").write_text(TEMPLATE)
        return load_renderer(base)


def _chat(line: bytes) -> object:
    """The findings, warnings and tokens that a report, a plan and a job compute for one line."""
    return build_report(_renderer(), DataParameters(), MAX_LINE_BYTES, io.BytesIO(line))


def _form(body: bytes) -> object:
    """A form of one file and a field; `body` is the content between its boundaries."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    kind = f"multipart/form-data; boundary={BOUNDARY.decode()}"
    return asyncio.run(read_form(IoPools(), kind, pieces(), "file", ("purpose",), lambda _: None))


def _content_type(value: bytes) -> object:
    async def nothing() -> AsyncIterator[bytes]:
        yield b"--x--"

    return asyncio.run(read_form(IoPools(), value.decode(), nothing(), "file", (), lambda _: None))


LIST_JOBS = next(route for route in router.routes if isinstance(route, APIRoute) and route.name == "list_jobs")


def _request(query: bytes = b"", **headers: bytes) -> Request:
    named = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": query, "headers": named}
    return Request(scope | {"route": LIST_JOBS})


def _template(data: bytes) -> object:
    with suppress(ValueError):
        return parts_of.__wrapped__(data.decode())
    return None


def _evaluation_row(line: bytes) -> object:
    """The findings of a row whose field `a` every grader compares, as often as templates may repeat it."""
    return [
        list(grader_findings(row, GRADERS))
        for row in read_rows(io.BytesIO(line), MAX_LINE_BYTES)
        if isinstance(row, EvaluationRow)
    ]


REPEATED = "{{ item.a }}" * 1600
GRADERS = EvaluationSettings.model_validate(
    {"graders": [
        {"type": "text_similarity", "name": "1", "input": "{{ item.a }}", "reference": REPEATED,
         "evaluation_metric": "bleu"},
        {"type": "score_model", "name": "2", "model": "m", "input": [{"role": "user", "content": REPEATED}]},
        {"type": "json_fields", "name": "3", "reference": "{{ item.a }}"},
        {"type": "label_accuracy", "name": "4", "reference": "{{ item.a }}"},
        {"type": "string_check", "name": "5", "input": "{{ item.b }}", "reference": "", "operation": "eq"},
    ]}
)  # fmt: skip
ROW = b'{"prompt":"a","a":'


def _csv_header(data: bytes) -> object:
    with TemporaryFile() as file, suppress(TableError):
        file.write(data)
        return preview(None, None, MAX_LINE_BYTES, file)
    return None


PART = b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data; name="
FILE = PART + b'"file"; filename="a"\r\n\r\n'
END = b"\r\n--" + BOUNDARY + b"--\r\n"
MULTIPART = {
    "almost boundaries": repeated(FILE, b"\r\n--" + BOUNDARY[:-1], END),
    "line ends": repeated(FILE, b"\r\n", END),
    "carriage returns": repeated(FILE, b"\r", END),
    "dashes": repeated(FILE, b"\r\n--", END),
    "a long header": repeated(PART, b"x"),
    "many headers": repeated(b"--" + BOUNDARY + b"\r\n", b"a: b\r\n"),
    "many parts": repeated(b"", PART + b'"purpose"\r\n\r\nx\r\n'),
    "after the end": repeated(FILE + b"x" + END, b"\r\n--"),
    "a long field": repeated(PART + b'"purpose"\r\n\r\n', b"x", END),
}


def _etags(number: int) -> bytes:
    return b'W/"%d"' % number


def _question(body: bytes) -> object:
    """A body of /v1/chat/completions for a trial answer."""
    return _trial_question(Question("proj", "/v1/chat/completions", parse_json_object(body)), "m")


def _engine_events(stream: bytes) -> None:
    """What an engine sends, in the smallest pieces in which a network delivers it."""
    translator = EventTranslator("served", "requested")
    with suppress(ValueError):
        for start in range(0, len(stream), 1024):
            for event in translator.add(stream[start : start + 1024]):
                translator.translate(event)


CHAT = b'{"model":"m","messages":[{"role":"user","content":"a"}]'
QUESTIONS = {
    "messages that are none": repeated(b'{"model":"m","messages":[1', b",1", b"]}"),
    "empty messages": repeated(b'{"model":"m","messages":[{}', b",{}", b"]}"),
    "messages": repeated(CHAT[:-1], b',{"role":"user","content":"a"}', b"]}"),
    "parts that are none": repeated(b'{"model":"m","messages":[{"role":"user","content":[1', b",1", b"]}]}"),
    "unknown keys": filled(CHAT + b",", lambda n: b'"k%d":0' % n, b"}"),
    "tools that are none": repeated(CHAT + b',"tools":[1', b",1", b"]}"),
    "empty tools": repeated(CHAT + b',"tools":[{}', b",{}", b"]}"),
    "biases": filled(CHAT + b',"logit_bias":{', lambda n: b'"%d":0' % n, b"}}"),
    "unknown keys of a format": filled(CHAT + b',"response_format":{', lambda n: b'"k%d":0' % n, b"}}"),
    "stops": repeated(CHAT + b',"stop":["a"', b',"a"', b"]}"),
}
EVENTS = {
    "an event without an end": repeated(b"data: ", b"x"),
    "almost ends": repeated(b"data: ", b"\r\n\r"),
    "line ends": repeated(b"", b"\n\n"),
    "comments": repeated(b"", b":\n\n"),
    "lines of an event": repeated(b"", b"data: 1\n", b"\n"),
    "brackets": repeated(b"data: ", b"[", b"\n\n"),
    "empty lists": repeated(b'data: {"model":"served","a":[[]', b",[]", b"]}\n\n"),
    "an error with many names": repeated(b'data: {"error":{"message":"', b"served ", b'"}}\n\n'),
}

PARSERS = (
    Parser("JSON body", MAX_BODY_BYTES, parse_json_object, ORDINARY_JSON, HOSTILE_JSON),
    Parser("Idempotency-Key's fingerprint", MAX_BODY_BYTES, _fingerprint, ORDINARY_JSON, HOSTILE_JSON),
    Parser("create body", MAX_BODY_BYTES, lambda data: parse_create(parse_json_object(data)),
           filled(REQUIRED + b',"integrations":[', lambda n: b'{"key%d": "value %d"}' % (n, n), b"]}"), CREATE_BODIES),
    Parser("complete body", MAX_BODY_BYTES, lambda data: check_shape(CompleteUpload, parse_json_object(data)),
           filled(b'{"part_ids":[', lambda n: b'"part_%024d"' % n, b"]}"),
           {"numbers": filled(b'{"part_ids":[', lambda n: b"%d" % n, b"]}"),
            "unknown keys": filled(b"{", lambda n: b'"k%d":0' % n, b"}")}),
    Parser("question", 2 << 20, _question, repeated(CHAT[:-3], b"word ", b'"}]}'), QUESTIONS),
    Parser("engine's events", 1 << 20, _engine_events,
           repeated(b"", b'data: {"model":"served","choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'), EVENTS),
    Parser("JSON line", MAX_LINE_BYTES, lambda data: list(read_lines(io.BytesIO(data))), ORDINARY_JSON, HOSTILE_JSON),
    Parser("chat line and template", MAX_LINE_BYTES, _chat,
           repeated(b'{"messages":[{"role":"user","content":"', b"word ", b'"},' + ANSWER + b"]}"), CHAT_LINES),
    Parser("template of a grader", 64_000, _template, repeated(b"", b"word "),
           {"opened": repeated(b"", b"{"), "closed first": repeated(b"", b"}}{{"),
            "paths": repeated(b"", b"{{ item.a }}"), "a long path": repeated(b"{{ item", b".a", b" }}"),
            "indices": repeated(b"{{ item", b"[1]", b" }}"), "an open index": repeated(b"{{ item[", b"1", b"}}"),
            "spaces": repeated(b"{{", b" ", b"}}")}),
    Parser("row of an evaluation", 1 << 20, _evaluation_row,
           filled(ROW + b"{", lambda n: b'"key%d": "value %d"' % (n, n), b"}}"),
           {"objects": filled(ROW + b"[", lambda _: b"{}", b"]}"), "a long label": repeated(ROW + b'"', b"x", b'"}'),
            "keys": filled(ROW + b"{", lambda n: b'"k%d":0' % n, b"}}"),
            "keys of the row": filled(ROW + b"0,", lambda n: b'"k%d":0' % n, b"}"),
            "JSON in a string": repeated(ROW + b'"', b'{\\"a\\":', b'"}')}),
    Parser("header of a CSV", 1 << 20, _csv_header, filled(b"", lambda n: b"column %d" % n, b"\n"),
           {"a name twice": filled(b"", lambda n: b"%d" % n, b",z,z\n"), "quotes": repeated(b"a,b", b'"'),
            "delimiters": repeated(b"a", b","), "lines": repeated(b"a,b\n", b"\n")}),
    Parser("multipart", 1 << 20, _form, repeated(FILE, b'{"prompt": "a", "completion": "b"}\n', END), MULTIPART),
    Parser("Content-Type", MAX_HEAD_BYTES, _content_type, repeated(b'multipart/form-data; boundary="', b"x"),
           {"parameters": repeated(b"multipart/form-data", b"; a=b"),
            "quotes": repeated(b'multipart/form-data; boundary="', b'\\"'),
            "spaces": repeated(b"multipart/form-data;", b" ")}),
    Parser("Range", MAX_HEAD_BYTES, lambda data: requested_range({"range": data.decode()}, '"e"', 1 << 30),
           repeated(b"bytes=0-", b"1"),
           {"ranges": repeated(b"bytes=0-1", b",2-3"), "spaces": repeated(b"bytes=", b" ", b"0-1"),
            "dashes": repeated(b"bytes=", b"-"), "equals": repeated(b"bytes", b"=")}),
    Parser("If-None-Match", MAX_HEAD_BYTES, lambda data: matches_etag({"if-none-match": data.decode()}, '"e"'),
           filled(b"", _etags, b"", b", "), {"commas": repeated(b"", b","), "weak": repeated(b"", b"W/")}),
    Parser("Content-Range", MAX_HEAD_BYTES, lambda data: parse_content_range({"content-range": data.decode()}),
           repeated(b"bytes 0-1/", b"1"), {"digits": repeated(b"bytes ", b"1"), "spaces": repeated(b"bytes", b" ")}),
    Parser("metadata filter", MAX_HEAD_BYTES, lambda data: _metadata_filter(_request(data)),
           filled(b"", lambda n: b"metadata[key%d]=value" % n, b"", b"&"),
           {"short pairs": filled(b"", lambda n: b"metadata[%d]=" % n, b"", b"&"),
            "one key": repeated(b"", b"metadata[a]=b&"), "not closed": repeated(b"", b"metadata[&"),
            "brackets": repeated(b"metadata", b"[") , "escapes": repeated(b"metadata[a]=", b"%F0%9F")}),
    Parser("query parameters", MAX_HEAD_BYTES, lambda data: check_query(_request(data)),
           repeated(b"after=", b"a"),
           {"unknown names": filled(b"", lambda n: b"k%d=v" % n, b"", b"&"),
            "similar names": filled(b"", lambda n: b"limi%d=v" % n, b"", b"&"),
            "one name": repeated(b"", b"limit=1&"), "states": repeated(b"status=failed", b",failed"),
            "unknown states": filled(b"status=", lambda n: b"%d" % n, b"&x=1"),
            "a long name": repeated(b"", b"limit")}),
    Parser("query in the log", MAX_HEAD_BYTES, masked_query, repeated(b"after=", b"a"),
           {"names": repeated(b"", b"a=&"), "separators": repeated(b"", b"&"), "escapes": repeated(b"", b"%61"),
            "almost keys": repeated(b"", b"tnry_")}),
    Parser("cursor", MAX_HEAD_BYTES, lambda data: _request(data).query_params.get("after"),
           repeated(b"after=", b"a"),
           {"escapes": repeated(b"after=", b"%e9"), "plus signs": repeated(b"after=", b"+"),
            "separators": repeated(b"after=", b";"), "digits": repeated(b"after=", b"9")}),
    Parser("Authorization", MAX_HEAD_BYTES, lambda data: bearer_secret(_request(authorization=data)),
           repeated(b"Bearer ", b"a"), {"spaces": repeated(b"Bearer", b" "), "words": repeated(b"", b"Bearer ")}),
    Parser("X-Request-ID", MAX_HEAD_BYTES, lambda data: request_id_of({b"x-request-id": data}),
           repeated(b"", b"a"), {"dots": repeated(b"", b".")}),
)  # fmt: skip


def hostile_inputs() -> Iterator[tuple[Parser, str, Make]]:
    for parser in PARSERS:
        for name, make in parser.hostile.items():
            yield parser, name, make
