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
from app.domain.jobs.spec import DataParameters, LineRules
from app.domain.methods import MethodName
from tests.sentences import Reviewed

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


def found_in(*examples: Any, method: MethodName = "supervised", rules: LineRules = 2) -> list[Finding]:
    file = io.BytesIO("\n".join(map(json.dumps, examples)).encode())
    parameters = DataParameters(method=method, line_rules=rules)
    return [item for item in read_examples(file, parameters=parameters) if isinstance(item, Finding)]


def review(reviewed: Reviewed, *rows: tuple[dict[str, Any], str], method: MethodName = "supervised") -> None:
    """Each line has a finding with this code, whose message is reviewed."""
    for line, code in rows:
        found = found_in(line, method=method)
        assert [(each.line, each.code) for each in found[:1]] == [(1, code)], line
        reviewed(found[0].message)


class TestReadLines:
    def test_a_bad_line_is_named_with_its_number_and_reason(self, reviewed: Reviewed) -> None:
        bad_lines = [
            *(b"not json", b'{"a": 1} trailing', b'{"a": 1', b"[1, 2]", b'"text"', b"null", b"3", b'{"a": NaN}'),
            *(b'{"a": 1e999}', b'{"a": 9223372036854775808}', b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1, "a": 2}'),
            *(b'{"b": {"a": 1, "a": 1}}', b'{"a": "\\u0000"}', b'{"\\u0000": 1}', b'{"a": "\\ud800"}'),
            *(b'{"a": "\xff"}', b'{"a": "\xed\xa0\x80"}', b'{"a": "\xc0\xaf"}', b'{"a": "\x01"}'),
            *(
                b'{"a":' * 70 + b"1" + b"}" * 70,
                b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
                GOOD.decode().encode("utf-16"),
            ),
        ]
        for line in bad_lines:
            found = [item for item in lines_of(GOOD + b"\n" + line) if isinstance(item, Finding)]
            assert found[0].line == 2, line[:20]
            reviewed(found[0].message)

    def test_a_byte_order_mark_is_skipped_at_the_start_and_refused_elsewhere(self) -> None:
        first, second = lines_of(b"\xef\xbb\xbf" + GOOD + b"\n\xef\xbb\xbf" + GOOD)
        assert first == Line(1, CHAT)
        assert isinstance(second, Finding)

    def test_blank_lines_and_carriage_returns_are_no_examples_but_count_as_lines(self) -> None:
        assert [item.number for item in lines_of(b"\r\n" + GOOD + b"\r\n\n  \n" + GOOD) if isinstance(item, Line)] == [
            2,
            5,
        ]

    @pytest.mark.parametrize("line", [b"\x0b", b"\x0c", b" \x0b\t", b"\x1c", b"\xc2\xa0"])
    def test_a_line_is_blank_by_jsons_white_space_alone(self, line: bytes) -> None:
        found = lines_of(GOOD + b"\n" + line + b"\n \t\r\n" + GOOD)
        assert [type(item) for item in found] == [Line, Finding, Line]

    def test_a_line_of_ascii_space_is_blank_by_the_older_rules(self) -> None:
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
    @pytest.mark.parametrize(
        ("line", "example"),
        [
            (CHAT, Example(1, messages=tuple(CHAT["messages"]))),
            ({"prompt": "a", "completion": "b"}, Example(1, prompt="a", completion="b")),
            ({"text": "Once."}, Example(1, text="Once.")),
        ],
    )
    def test_a_line_of_each_format_becomes_an_example(self, line: Any, example: Example) -> None:
        assert list(read_examples(io.BytesIO(json.dumps(line).encode()))) == [example]

    def test_tool_calls_without_content_are_accepted(self) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "assistant", "content": "It is 42.", "weight": 1},
        ]
        assert found_in({"messages": messages, "tools": [TOOL], "parallel_tool_calls": False}) == []

    def test_a_bad_line_has_a_finding(self, reviewed: Reviewed) -> None:
        bad_call = {"id": 1, "type": "x", "function": []}
        bad_messages: list[tuple[Any, str]] = [
            ([], "invalid_messages"),
            ("x", "invalid_messages"),
            ([1], "invalid_message"),
            ([{"content": "x"}], "invalid_role"),
            ([{"role": "boss", "content": "x"}], "invalid_role"),
            ([{"role": ["user"], "content": "x"}], "invalid_role"),
            ([{"role": "user"}], "invalid_message"),
            ([ASKED], "last_message_not_assistant"),
            ([{"role": "assistant"}], "invalid_message"),
            ([SAID | {"weight": 2}], "invalid_message"),
            ([SAID | {"weight": 0.5}], "invalid_message"),
            ([SAID | {"weight": "1"}], "invalid_message"),
            ([ASKED | {"weight": 1}], "invalid_message"),
            ([{"role": "tool", "content": "x"}], "invalid_message"),
            ([ASKED, SAID | {"reasoning": "x"}], "invalid_message"),
            ([ASKED, SAID | {"tool_calls": [bad_call]}], "invalid_message"),
            ([ASKED, SAID | {"thinking": ["x"]}], "invalid_message"),
            ([ASKED, SAID | {"audio": {}}], "invalid_message"),
        ]
        review(
            reviewed,
            *(({"messages": messages}, code) for messages, code in bad_messages),
            ({"texts": "x"}, "wrong_format"),
            ({"input": {}, "preferred_output": []}, "wrong_format"),
            ({**CHAT, "weight": 1}, "extra_key"),
            ({**CHAT, "tools": {}}, "invalid_tools"),
            ({**CHAT, "tools": [1]}, "invalid_tools"),
            ({"text": 3}, "invalid_text"),
            ({"text": "a", "label": 1}, "extra_key"),
            ({"prompt": "x"}, "invalid_completion"),
            ({"prompt": 1, "completion": "x"}, "invalid_completion"),
            ({"prompt": "a", "completion": "b", "label": 1}, "wrong_format"),
        )

    def test_content_that_is_no_text_is_an_error_that_names_the_allowed_types(self, reviewed: Reviewed) -> None:
        contents: list[Any] = [
            [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}],
            [{"type": "text", "text": "a"}, {"type": "input_audio"}],
            [{"type": "text", "txt": "a"}],
            ["a"],
            None,
            {"text": "a"},
        ]
        review(
            reviewed,
            *(({"messages": [{"role": "user", "content": each}, SAID]}, "invalid_message") for each in contents),
        )

    def test_what_the_official_client_dumps_of_an_answer_is_a_message(self) -> None:
        """Data is often distilled from answers of chat completions, as they are."""
        nothing = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
        answer = {"role": "assistant", "content": "a", **nothing}
        line = json.dumps({"messages": [{"role": "user", "content": "q"}, answer]}).encode()
        (example,) = read_examples(io.BytesIO(line))
        assert isinstance(example, Example)

    def test_every_bad_message_of_a_line_is_named(self) -> None:
        found = found_in({"messages": [{"role": "x"}, {"role": "user"}, {"role": "assistant", "content": 3}]})
        assert [each.message.split(":")[0].split()[1] for each in found] == ["1", "2", "3"]

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
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    (called(call(), function_call=OLD_CALL), "tool_calls_and_function_call"),
    ({**CHAT, "tools": [TOOL], "functions": [{"name": "g"}]}, "tools_and_functions"),
    ({"messages": [ASKED, SAID | {"refusal": "No way"}]}, "content_and_refusal"),
    ({"messages": [ASKED, {"role": "assistant", "content": "", "refusal": "No"}]}, "content_and_refusal"),
    *(
        (called(call(arguments)), "invalid_arguments")
        for arguments in ('{"a":1,"a":2}', '{"a":NaN}', "{oops", "", "[1]", "null", '{"a": "\\ud800"}', '{"a": 1e999}')
    ),
    (
        {"messages": [ASKED, {"role": "assistant", "function_call": {"name": "h", "arguments": "oops"}}]},
        "invalid_arguments",
    ),
    (called(call(), call()), "duplicate_call_id"),
    (called(call(id="b")), "unknown_tool_call_id"),
    ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "1"}, SAID]}, "unknown_tool_call_id"),
    ({**CHAT, "tools": [{"foo": 1}]}, "invalid_tools"),
    ({**CHAT, "tools": [TOOL, {"type": "function"}]}, "invalid_tools"),
    ({**CHAT, "tools": [{"type": "function", "name": "f"}]}, "invalid_tools"),
    ({**CHAT, "tools": [{"type": "function", "function": {"name": ""}}]}, "invalid_tools"),
    ({**CHAT, "functions": [{"description": "x"}]}, "invalid_tools"),
    ({**CHAT, "parallel_tool_calls": "junk"}, "invalid_parallel_tool_calls"),
    ({**CHAT, "parallel_tool_calls": 1}, "invalid_parallel_tool_calls"),
]


class TestContradictions:
    """What was valid once, and lost data on its way to the model."""

    def test_a_contradiction_is_refused_by_the_rules_of_today_alone(self, reviewed: Reviewed) -> None:
        review(reviewed, *CONTRADICTIONS)
        for line, code in CONTRADICTIONS:
            assert [each.code for each in found_in(CHAT, line) if each.line == 2][:1] == [code]
            assert found_in(line, rules=1) == []

    def test_a_contradiction_in_a_pair_is_refused(self, reviewed: Reviewed) -> None:
        bad = {"role": "assistant", "tool_calls": [call("{oops")]}
        answers = {"preferred_output": [SAID | {"refusal": "no"}], "non_preferred_output": [bad]}
        line = {"input": {"messages": [ASKED], "tools": [{}], "parallel_tool_calls": 1}} | answers
        found = found_in(line, method="dpo")
        assert [each.code for each in found] == [
            "invalid_tools", "invalid_parallel_tool_calls", "content_and_refusal", "invalid_arguments",
        ]  # fmt: skip
        for each in found:
            reviewed(each.message)
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

    def test_null_and_the_default_mean_an_absent_field(self) -> None:
        nothing = dict.fromkeys(("function_call", "refusal", "tool_calls", "name", "weight", "audio", "thinking"), None)
        answer = SAID | nothing | {"reasoning_content": None}
        line = {"messages": [ASKED, answer], "tools": None, "functions": None, "parallel_tool_calls": True}
        assert found_in(line) == []
        assert found_in(line | {"parallel_tool_calls": None, "tools": [TOOL], "functions": []}) == []
        assert found_in({"messages": [ASKED, SAID | {"refusal": ""}]}) == []

    def test_every_contradiction_of_a_line_is_named(self) -> None:
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
    @pytest.mark.parametrize("other", [CHAT, {"prompt": "a", "completion": "b"}])
    def test_plain_text_is_refused_beside_other_formats(self, other: Any) -> None:
        (after,) = found_in({"text": "a"}, other, {"text": "b"})
        assert (after.line, after.code) == (2, "mixed_formats")
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

    def test_a_line_for_another_method_is_refused_with_the_method_that_fits(self, reviewed: Reviewed) -> None:
        lines: list[dict[str, Any]] = [CHAT, {"prompt": "a", "completion": "b"}, {"text": "a"}]
        review(reviewed, *((line, "wrong_format") for line in lines), method="dpo")
        review(reviewed, (PAIR, "wrong_format"))

    def test_the_pairs_of_dpo_are_those_of_orpo(self) -> None:
        assert found_in(PAIR, method="orpo") == []

    def test_a_bad_pair_has_a_finding(self, reviewed: Reviewed) -> None:
        changes: list[tuple[dict[str, Any], str]] = [
            ({"input": None}, "invalid_input"),
            ({"input": [ASKED]}, "invalid_input"),
            ({"input": {"messages": []}}, "invalid_messages"),
            ({"input": {"messages": [{"role": "user"}]}}, "invalid_message"),
            ({"input": {"messages": [ASKED], "tool": []}}, "extra_key"),
            ({"input": {"messages": [ASKED], "tools": {}}}, "invalid_tools"),
            ({"input": {"messages": [ASKED, SAID]}}, "last_message_assistant"),
            ({"input": {"messages": [SAID | {"weight": 0}, ASKED]}}, "extra_key"),
            ({"preferred_output": []}, "invalid_messages"),
            ({"preferred_output": "hello"}, "invalid_messages"),
            ({"preferred_output": [ASKED]}, "invalid_output"),
            ({"non_preferred_output": [SAID, ASKED, SAID]}, "invalid_output"),
            ({"non_preferred_output": [{"role": "assistant"}]}, "invalid_message"),
            ({"non_preferred_output": [SAID | {"weight": 1}]}, "extra_key"),
            ({"preferred_completion": [SAID]}, "extra_key"),
            ({"chosen": [SAID]}, "extra_key"),
            ({"non_preferred_output": None}, "invalid_messages"),
        ]
        review(reviewed, *((PAIR | change, code) for change, code in changes), method="dpo")


class TestLabels:
    @pytest.mark.parametrize(
        ("row", "content"),
        [
            (CHAT, {"messages": tuple(CHAT["messages"])}),
            ({"prompt": [ASKED], "completion": [SAID]}, {"messages": (ASKED, SAID)}),
            ({"prompt": [ASKED], "completion": [SAID], "tools": [TOOL]}, {"messages": (ASKED, SAID), "tools": (TOOL,)}),
            ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
        ],
        ids=["messages", "lists", "lists with tools", "strings"],
    )
    @pytest.mark.parametrize("label", [True, False])
    def test_a_row_becomes_an_example(self, row: dict[str, Any], content: dict[str, Any], label: bool) -> None:
        parameters = DataParameters(method="kto")
        found = list(read_examples(io.BytesIO(json.dumps(row | {"label": label}).encode()), parameters=parameters))
        assert found == [Example(1, **content, label=label, parameters=parameters)]

    def test_a_bad_row_has_a_finding(self, reviewed: Reviewed) -> None:
        review(
            reviewed,
            ({**CHAT, "label": "true"}, "invalid_label"),
            ({**CHAT, "label": 1}, "invalid_label"),
            ({"messages": [ASKED], "label": True}, "last_message_not_assistant"),
            ({"messages": [ASKED, SAID | {"weight": 0}], "label": True}, "extra_key"),
            ({**CHAT, "label": True, "reward": 1}, "extra_key"),
            ({"prompt": [ASKED], "completion": [SAID, ASKED, SAID], "label": True}, "invalid_completion"),
            ({"prompt": [ASKED], "completion": [ASKED], "label": True}, "last_message_not_assistant"),
            ({"prompt": [ASKED], "completion": "no", "label": True}, "invalid_completion"),
            ({"prompt": "a", "label": True}, "invalid_completion"),
            (called(call("oops")) | {"label": True}, "invalid_arguments"),
            (CHAT, "wrong_format"),
            (PAIR, "wrong_format"),
            ({"label": True}, "wrong_format"),
            method="kto",
        )
        review(reviewed, ({**CHAT, "label": True}, "wrong_format"))


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
