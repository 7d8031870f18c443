"""The JSONL check: what is accepted, what is refused, and how it is said."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.datasets.examples import Example, read_examples
from app.domain.datasets.jsonl import Finding, Line, LineError, format_findings, parse_object, read_lines
from app.domain.jobs.spec import DataParameters, LineRules, Method

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
GOOD = json.dumps(CHAT).encode()
ASKED, SAID = CHAT["messages"]
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
PAIR: dict[str, Any] = {
    "input": {"messages": [ASKED]},
    "preferred_output": [SAID],
    "non_preferred_output": [{"role": "assistant", "content": "go away"}],
}


def lines_of(data: bytes, **limits: int) -> list[Line | Finding]:
    return list(read_lines(io.BytesIO(data), **limits))


def findings_of(*examples: Any, method: Method = "supervised") -> list[str]:
    return [str(finding) for finding in found_in(*examples, method=method)]


def found_in(*examples: Any, method: Method = "supervised", rules: LineRules = 2) -> list[Finding]:
    file = io.BytesIO("\n".join(map(json.dumps, examples)).encode())
    return [
        item
        for item in read_examples(file, parameters=DataParameters(method=method, line_rules=rules))
        if isinstance(item, Finding)
    ]


class TestReadLines:
    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (b"not json", "not valid JSON"),
            (b'{"a": 1} trailing', "not valid JSON"),
            (b'{"a": 1', "not valid JSON"),
            (b"[1, 2]", "a JSON array, but every line must be a JSON object"),
            (b'"text"', "a JSON string"),
            (b"null", "a JSON null"),
            (b"3", "a JSON number"),
            (b'{"a": NaN}', "NaN is not JSON"),
            (b'{"a": -Infinity}', "-Infinity is not JSON"),
            (b'{"a": 1e999}', "too large for a double"),
            (b'{"a": 9223372036854775808}', "outside the 64-bit integers"),
            (b'{"a": ' + b"9" * 5000 + b"}", "outside the 64-bit integers"),
            (b'{"a": 1, "a": 2}', 'the key "a" appears twice'),
            (b'{"b": {"a": 1, "a": 1}}', 'the key "a" appears twice'),
            (b'{"a": "\\u0000"}', "a NUL character"),
            (b'{"\\u0000": 1}', "a NUL character"),
            (b'{"a": "\\ud800"}', "a lone surrogate"),
            (b'{"a": "\xff"}', "not valid UTF-8: byte 0xff at position 8"),
            (b'{"a": "\xed\xa0\x80"}', "not valid UTF-8"),
            (b'{"a": "\xc0\xaf"}', "not valid UTF-8"),
            (b'{"a": "\x01"}', "not valid JSON: the control character U+0001 inside a string at column 8; write it as"),
            (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper than 64"),
            (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper than 64"),
            (GOOD.decode().encode("utf-16"), "not valid UTF-8"),
        ],
    )
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_a_bad_line_is_named_with_its_number_and_reason(self, line: bytes, said: str, place: int) -> None:
        lines = [GOOD, GOOD, GOOD]
        lines[place] = line
        found = lines_of(b"\n".join(lines))
        bad = [item for item in found if isinstance(item, Finding) and item.line == place + 1]
        assert bad
        assert said in bad[0].message

    def test_a_byte_order_mark_is_skipped_at_the_start_and_refused_elsewhere(self) -> None:
        first, second = lines_of(b"\xef\xbb\xbf" + GOOD + b"\n\xef\xbb\xbf" + GOOD)
        assert first == Line(1, CHAT)
        assert isinstance(second, Finding)
        assert "byte order mark" in second.message

    def test_blank_lines_and_carriage_returns_are_no_examples_but_count_as_lines(self) -> None:
        assert [item.number for item in lines_of(b"\r\n" + GOOD + b"\r\n\n  \n" + GOOD) if isinstance(item, Line)] == [
            2,
            5,
        ]

    @pytest.mark.parametrize("line", [b"\x0b", b"\x0c", b" \x0b\t", b"\x1c", b"\xc2\xa0"])
    def test_a_line_is_blank_by_jsons_white_space_alone(self, line: bytes) -> None:
        found = lines_of(GOOD + b"\n" + line + b"\n \t\r\n" + GOOD)
        assert [type(item) for item in found] == [Line, Finding, Line]
        assert str(found[1]).startswith("Line 2: not valid JSON")

    def test_for_jobs_from_before_it_was_blank_by_ascii(self) -> None:
        found = list(read_examples(io.BytesIO(GOOD + b"\n\x0b\n\x0c\n"), parameters=DataParameters(line_rules=1)))
        assert [type(item) for item in found] == [Example]

    @pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
    def test_only_newline_ends_a_line(self, separator: str) -> None:
        value = {"a": f"one{separator}two"}
        assert lines_of(json.dumps(value, ensure_ascii=False).encode()) == [Line(1, value)]

    def test_a_line_over_the_limit_is_a_finding_and_reading_goes_on(self) -> None:
        data = b'{"a": "' + b"x" * 5_000_000 + b'"}\n' + GOOD
        long, good = lines_of(data)
        assert isinstance(long, Finding)
        assert long.code == "line_too_long"
        assert good == Line(2, CHAT)

    def test_a_line_of_exactly_the_limit_is_accepted(self) -> None:
        assert isinstance(lines_of(GOOD + b"\n", max_line_bytes=len(GOOD))[0], Line)

    @given(st.binary(max_size=200))
    def test_any_bytes_give_lines_or_findings_never_an_exception(self, data: bytes) -> None:
        for item in lines_of(data, max_line_bytes=64):
            assert isinstance(item, Line | Finding)

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00")),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        )
    )
    def test_what_json_writes_is_read_back_as_it_was(self, value: Any) -> None:
        assert parse_object(json.dumps({"v": value}).encode()) == {"v": value}

    def test_an_error_never_quotes_the_line(self) -> None:
        with pytest.raises(LineError) as caught:
            parse_object(b'{"secret": "' + b"s" * 500)
        assert len(str(caught.value)) < 120


class TestReadExamples:
    def test_a_chat_line_becomes_an_example(self) -> None:
        (example,) = read_examples(io.BytesIO(GOOD))
        assert example == Example(1, messages=tuple(CHAT["messages"]))

    def test_a_prompt_and_completion_become_an_example(self) -> None:
        (example,) = read_examples(io.BytesIO(b'{"prompt": "a", "completion": "b"}'))
        assert example == Example(1, prompt="a", completion="b")

    def test_tool_calls_without_content_are_accepted(self) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "assistant", "content": "It is 42.", "weight": 1},
        ]
        assert findings_of({"messages": messages, "tools": [TOOL], "parallel_tool_calls": False}) == []

    @pytest.mark.parametrize(
        ("example", "said"),
        [
            ({"texts": "x"}, "unexpected format"),
            ({"input": {}, "preferred_output": []}, "a preference pair"),
            ({"messages": []}, "at least one message"),
            ({"messages": "x"}, "must be a list"),
            ({"messages": [1]}, "message 1 is a JSON number"),
            ({"messages": [{"content": "x"}]}, "message 1 has no role"),
            (
                {"messages": [{"role": "boss", "content": "x"}]},
                'unknown role "boss"; allowed are "assistant", "developer"',
            ),
            ({"messages": [{"role": ["user"], "content": "x"}]}, "message 1 has a role that is a JSON array"),
            ({"messages": [{"role": "user"}]}, "message 1 (user): content"),
            ({"messages": [{"role": "user", "content": "x"}]}, 'the last message is from "user"'),
            ({"messages": [{"role": "assistant"}]}, "needs content or tool_calls"),
            ({"messages": [{"role": "assistant", "content": "x", "weight": 2}]}, "message 1 (assistant): weight"),
            ({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}, "message 1 (assistant): weight"),
            ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, 'contains an extra key "weight"'),
            ({"messages": [{"role": "tool", "content": "x"}]}, "message 1 (tool): tool_call_id is missing"),
            (
                {"messages": [ASKED, SAID | {"reasoning": "x"}]},
                'extra key "reasoning"; allowed are "annotations", "audio", "content", "function_call", "name", '
                '"reasoning_content", "refusal", "role", "thinking", "tool_calls", "weight"',
            ),
            (
                {"messages": [ASKED, SAID | {"tool_calls": [{"id": 1, "type": "x", "function": []}]}]},
                "message 2 (assistant): tool_calls[0].id is 1, but it must be a string",
            ),
            ({"messages": [ASKED, SAID | {"thinking": ["x"]}]}, "thinking is a JSON array, but it must be a string"),
            ({"messages": [ASKED, SAID | {"weight": "1"}]}, 'weight is "1"; allowed: 0 or 1'),
            ({"messages": [ASKED, SAID | {"audio": {}}]}, "audio is a JSON object, but it must be null"),
            ({**CHAT, "weight": 1}, 'contains an extra key "weight"'),
            ({**CHAT, "tools": {}}, '"tools" is a JSON object, but it must be a list of objects'),
            ({**CHAT, "tools": [1]}, '"tools" must be a list of objects, but tools[0] is a JSON number'),
            ({"text": 3}, '"text" is a JSON number, but it must be a string'),
            ({"text": "a", "label": 1}, 'an extra key "label"'),
            ({"prompt": "x"}, '"completion" is missing'),
            ({"prompt": 1, "completion": "x"}, '"prompt" is a JSON number'),
            ({"prompt": "a", "completion": "b", "label": 1}, 'an extra key "label"'),
        ],
    )
    def test_a_problem_is_reported_with_line_and_message(self, example: Any, said: str) -> None:
        findings = findings_of(example)
        assert findings
        assert findings[0].startswith("Line 1: ")
        assert said in findings[0]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}], 'has a part of the type "image_url"'),
            ([{"type": "text", "text": "a"}, {"type": "input_audio"}], 'has a part of the type "input_audio"'),
            ([{"type": "text", "txt": "a"}], "has an invalid part"),
            (["a"], "has an invalid part"),
            (None, "is a JSON null"),
            ({"text": "a"}, "is a JSON object"),
        ],
    )
    def test_content_that_is_no_text_is_an_error_that_names_the_allowed_types(self, content: Any, said: str) -> None:
        (message,) = findings_of({"messages": [{"role": "user", "content": content}, CHAT["messages"][-1]]})
        assert f"message 1 (user): content {said}" in message
        assert 'parts such as {"type": "text", "text": "..."}' in message

    def test_what_the_official_client_dumps_of_an_answer_is_a_message(self) -> None:
        """Data is often distilled from answers of chat completions, as they are."""
        nothing = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
        answer = {"role": "assistant", "content": "a", **nothing}
        line = json.dumps({"messages": [{"role": "user", "content": "q"}, answer]}).encode()
        (example,) = read_examples(io.BytesIO(line))
        assert isinstance(example, Example)

    def test_every_bad_message_of_a_line_is_named(self) -> None:
        findings = findings_of({"messages": [{"role": "x"}, {"role": "user"}, {"role": "assistant", "content": 3}]})
        assert [text.split(":")[1].split()[1] for text in findings] == ["1", "2", "3"]

    @given(
        st.dictionaries(
            st.sampled_from(["messages", "tools", "prompt", "completion"]),
            st.recursive(
                st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["user", "assistant", "content"]),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["role", "content", "weight", "tool_calls"]), inner, max_size=3)
                ),
                max_leaves=8,
            ),
        )
    )
    def test_any_object_gives_one_example_or_findings(self, value: Any) -> None:
        found = list(read_examples(io.BytesIO(json.dumps(value).encode())))
        assert len(found) >= 1
        assert len(found) == 1 or all(isinstance(item, Finding) for item in found)


def called(*calls: Any, **more: Any) -> dict[str, Any]:
    """A chat line whose assistant calls functions and receives one result."""
    result = {"role": "tool", "tool_call_id": "a", "content": "42"}
    return {"messages": [ASKED, {"role": "assistant", "tool_calls": list(calls)} | more, result, SAID]}


def call(arguments: str = "{}", id: str = "a") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}


OLD_CALL = {"name": "h", "arguments": "{}"}
CONTRADICTIONS: list[tuple[dict[str, Any], str, str]] = [
    (called(call(), function_call=OLD_CALL), "tool_calls_and_function_call", "has both tool_calls and function_call"),
    ({**CHAT, "tools": [TOOL], "functions": [{"name": "g"}]}, "tools_and_functions", 'both "tools" and "functions"'),
    (
        {"messages": [ASKED, SAID | {"refusal": "No way"}]},
        "content_and_refusal",
        "message 2 (assistant): has both content and refusal, of which only one is trained; remove one of them",
    ),
    ({"messages": [ASKED, {"role": "assistant", "content": "", "refusal": "No"}]}, "content_and_refusal", "both"),
    (called(call('{"a":1,"a":2}')), "invalid_arguments", 'arguments must be a JSON object in a string, such as "{'),
    (called(call('{"a":1,"a":2}')), "invalid_arguments", 'found: the key "a" appears twice in one object'),
    (called(call('{"a":NaN}')), "invalid_arguments", "message 2 (assistant): tool_calls[0].function.arguments must be"),
    (called(call('{"a":NaN}')), "invalid_arguments", "found: NaN is not JSON"),
    (called(call("{oops")), "invalid_arguments", "found: not valid JSON"),
    (called(call("")), "invalid_arguments", "found: not valid JSON"),
    (called(call("[1]")), "invalid_arguments", "found: a JSON array"),
    (called(call("null")), "invalid_arguments", "found: a JSON null"),
    (called(call('{"a": "\\ud800"}')), "invalid_arguments", "found: a lone surrogate"),
    (called(call('{"a": 1e999}')), "invalid_arguments", "too large for a double"),
    (
        {"messages": [ASKED, {"role": "assistant", "function_call": {"name": "h", "arguments": "oops"}}]},
        "invalid_arguments",
        "message 2 (assistant): function_call.arguments must be a JSON object",
    ),
    (called(call(), call()), "duplicate_call_id", 'tool_calls[1].id is "a", which an earlier call of this line has'),
    (called(call(id="b")), "unknown_tool_call_id", 'tool_call_id is "a", but the calls before it have the ids "b"'),
    ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "1"}, SAID]}, "unknown_tool_call_id", "ids none"),
    ({**CHAT, "tools": [{"foo": 1}]}, "invalid_tools", "tools[0].function.name must be a string that is not empty"),
    ({**CHAT, "tools": [TOOL, {"type": "function"}]}, "invalid_tools", "tools[1].function.name must be"),
    (
        {**CHAT, "tools": [{"type": "function", "name": "f"}]},
        "invalid_tools",
        'with the keys "name", "type"; write it as',
    ),
    ({**CHAT, "tools": [{"type": "function", "function": {"name": ""}}]}, "invalid_tools", "not empty"),
    ({**CHAT, "functions": [{"description": "x"}]}, "invalid_tools", "functions[0].name must be a string"),
    (
        {**CHAT, "parallel_tool_calls": "junk"},
        "invalid_parallel_tool_calls",
        "is a JSON string; it must be true, false",
    ),
    ({**CHAT, "parallel_tool_calls": 1}, "invalid_parallel_tool_calls", "is a JSON number"),
]


class TestContradictions:
    """What was valid once, and lost data on its way to the model."""

    @pytest.mark.parametrize(("line", "code", "said"), CONTRADICTIONS)
    def test_are_refused_with_the_line_and_the_field(self, line: dict[str, Any], code: str, said: str) -> None:
        first, second = found_in(CHAT, line)[0], found_in(line)[0]
        assert (first.line, first.code, first.message) == (2, code, second.message)
        assert said in first.message

    @pytest.mark.parametrize(("line", "code", "said"), CONTRADICTIONS)
    def test_are_accepted_by_the_rules_of_earlier_jobs(self, line: dict[str, Any], code: str, said: str) -> None:
        assert found_in(line, rules=1) == []

    def test_are_refused_in_pairs_too(self) -> None:
        bad = {"role": "assistant", "tool_calls": [call("{oops")]}
        answers = {"preferred_output": [SAID | {"refusal": "no"}], "non_preferred_output": [bad]}
        line = {"input": {"messages": [ASKED], "tools": [{}], "parallel_tool_calls": 1}} | answers
        assert [(each.code, each.message.split(":")[0].split(" must")[0]) for each in found_in(line, method="dpo")] == [
            ("invalid_tools", "input.tools[0].function.name"),
            ("invalid_parallel_tool_calls", "input.parallel_tool_calls is a JSON number; it"),
            ("content_and_refusal", "preferred_output, message 1 (assistant)"),
            ("invalid_arguments", "non_preferred_output, message 1 (assistant)"),
        ]
        assert found_in(line, method="dpo", rules=1) == []

    def test_the_outputs_of_a_pair_go_on_from_its_input_and_not_from_each_other(self) -> None:
        asked = [
            ASKED,
            {"role": "assistant", "tool_calls": [call()]},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
        ]
        again = [
            {"role": "assistant", "tool_calls": [call(id="b")]},
            {"role": "tool", "tool_call_id": "b", "content": "2"},
        ]
        outputs = {"preferred_output": [*again, SAID], "non_preferred_output": [*again, SAID]}
        line = {"input": {"messages": asked}} | outputs
        assert found_in(line, method="dpo") == []

    def test_missing_is_null_is_the_default(self) -> None:
        nothing = dict.fromkeys(("function_call", "refusal", "tool_calls", "name", "weight", "audio", "thinking"), None)
        answer = SAID | nothing | {"reasoning_content": None}
        line = {"messages": [ASKED, answer], "tools": None, "functions": None, "parallel_tool_calls": True}
        assert found_in(line) == []
        assert found_in(line | {"parallel_tool_calls": None, "tools": [TOOL], "functions": []}) == []
        assert found_in({"messages": [ASKED, SAID | {"refusal": ""}]}) == []

    def test_every_one_of_a_line_is_named(self) -> None:
        line = called(call("x"), call("y"), function_call=OLD_CALL) | {"parallel_tool_calls": 3}
        assert [each.code for each in found_in(line)] == [
            "invalid_parallel_tool_calls", "tool_calls_and_function_call", "invalid_arguments", "invalid_arguments",
            "duplicate_call_id",
        ]  # fmt: skip

    @given(st.text(max_size=12) | st.sampled_from(['{"a":1}', "{}", '{"a": [null]}', ' {"a": {}} ', "[]", "1", '"x"']))
    def test_arguments_are_what_a_line_of_a_file_may_be(self, arguments: str) -> None:
        try:
            parse_object(arguments.encode("utf-8", "surrogatepass"))
            is_object = True
        except LineError:
            is_object = False
        assert (found_in(called(call(arguments))) == []) == is_object


class TestPlainText:
    def test_a_text_becomes_an_example(self) -> None:
        (example,) = read_examples(io.BytesIO(b'{"text": "Once."}'))
        assert example == Example(1, text="Once.")

    @pytest.mark.parametrize("other", [CHAT, {"prompt": "a", "completion": "b"}])
    def test_stands_in_a_file_of_its_own(self, other: Any) -> None:
        (after,) = found_in({"text": "a"}, other, {"text": "b"})
        assert (after.line, after.code) == (2, "mixed_formats")
        assert "but line 1 is plain text; put plain text into a separate file" in after.message
        (before,) = found_in(other, other, {"text": "a"})
        assert (before.line, before.code) == (3, "mixed_formats")

    def test_chats_and_completions_may_be_mixed(self) -> None:
        assert found_in(CHAT, {"prompt": "a", "completion": "b"}, CHAT) == []


class TestPairs:
    @pytest.mark.parametrize("spelling", ["output", "completion"])
    def test_a_pair_of_either_spelling_becomes_an_example(self, spelling: str) -> None:
        tool = {"type": "function", "function": {"name": "f"}}
        line = {
            "input": {"messages": [ASKED], "tools": [tool], "parallel_tool_calls": True},
            f"preferred_{spelling}": [SAID],
            f"non_preferred_{spelling}": PAIR["non_preferred_output"],
        }
        parameters = DataParameters(method="dpo")
        (example,) = read_examples(io.BytesIO(json.dumps(line).encode()), parameters=parameters)
        answers = {"preferred": (SAID,), "non_preferred": tuple(PAIR["non_preferred_output"])}
        assert example == Example(1, messages=(ASKED,), tools=(tool,), parameters=parameters, **answers)
        assert example.is_pair

    def test_an_answer_may_call_tools_and_go_on(self) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        answer = [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            SAID,
        ]
        assert found_in(PAIR | {"preferred_output": answer}, method="dpo") == []

    @pytest.mark.parametrize("line", [CHAT, {"prompt": "a", "completion": "b"}, {"text": "a"}])
    def test_what_supervised_training_learns_from_is_refused_by_the_method_that_fits(self, line: Any) -> None:
        (finding,) = found_in(line, method="dpo")
        assert finding.code == "wrong_format"
        assert 'for the method "supervised", but this job\'s method is "dpo"' in finding.message
        assert '"non_preferred_output": [...]' in finding.message

    def test_a_pair_is_refused_by_the_method_that_fits(self) -> None:
        (finding,) = found_in(PAIR)
        assert finding.code == "wrong_format"
        assert 'a preference pair for the method "dpo"' in finding.message

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"input": None}, '"input" is missing'),
            ({"input": [ASKED]}, '"input" is a JSON array'),
            ({"input": {"messages": []}}, '"messages" of "input" is empty, but it must be a list with at least one'),
            ({"input": {"messages": [{"role": "user"}]}}, "input, message 1 (user): content"),
            ({"input": {"messages": [ASKED], "tool": []}}, '"input" contains an extra key "tool"'),
            ({"input": {"messages": [ASKED], "tools": {}}}, '"tools" is a JSON object, but'),
            (
                {"input": {"messages": [ASKED, SAID]}},
                'the last message of "input" is from "assistant"; it must be from another role, because each',
            ),
            (
                {"input": {"messages": [SAID | {"weight": 0}, ASKED]}},
                'input, message 1 has the key "weight", which a preference pair does not',
            ),
            ({"preferred_output": []}, '"preferred_output" is empty, but it must be a list with at least one'),
            ({"preferred_output": "hello"}, '"preferred_output" is a JSON string, but it must be a list'),
            ({"preferred_output": [ASKED]}, '"preferred_output" has messages from "user"; it must begin and end'),
            ({"non_preferred_output": [SAID, ASKED, SAID]}, 'with none but "tool" between'),
            ({"non_preferred_output": [{"role": "assistant"}]}, "non_preferred_output, message 1 (assistant)"),
            ({"non_preferred_output": [SAID | {"weight": 1}]}, 'non_preferred_output, message 1 has the key "weight"'),
            ({"preferred_completion": [SAID]}, 'an extra key "preferred_completion"'),
            ({"chosen": [SAID]}, 'an extra key "chosen"'),
        ],
    )
    def test_a_problem_is_reported(self, change: Any, said: str) -> None:
        findings = findings_of(PAIR | change, method="dpo")
        assert findings
        assert said in findings[0]

    def test_a_side_that_is_missing_is_named(self) -> None:
        line = {key: value for key, value in PAIR.items() if key != "non_preferred_output"}
        assert '"non_preferred_output" is missing or null, but it must be a list' in findings_of(line, method="dpo")[0]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([(3, "a")], "Line 3: a."),
        ([(3, "a"), (4, "b"), (7, "a")], "Lines 3 and 7: a. Line 4: b."),
        ([(1, "a"), (2, "a"), (9, "a")], "Lines 1, 2 and 9: a."),
        ([(2, "a"), (2, "b")], "Line 2: a. Line 2: b."),
    ],
)
def test_a_problem_of_several_lines_is_reported_once(found: list[tuple[int, str]], text: str) -> None:
    assert format_findings([Finding(line, message) for line, message in found]) == text
