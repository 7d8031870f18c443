"""What is warned of: row by row, and over a whole file."""

from __future__ import annotations

import io
import json
import tracemalloc
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.datasets.examples import Example, read_examples
from app.domain.datasets.profile import ProfileLimits, profile_dataset
from app.domain.datasets.render import Renderer
from app.domain.datasets.report import DatasetReport, build_report, read_kept
from app.domain.datasets.warnings import MESSAGES, LineCount, RowIndex, label_warnings, row_digest, warning_codes
from app.domain.jobs.spec import DataParameters
from app.domain.methods import MethodName
from app.system.tokenizer_files import load_renderer
from tests.datasets.families import (
    CHATML,
    HERMES,
    MISTRAL,
    NAMED,
    Family,
    make_tokenizer,
    write_family,
)
from tests.sentences import Reviewed

PARAMETERS = DataParameters(context_length=64)
ASKED = {"role": "user", "content": "hm"}
SAID = {"role": "assistant", "content": "no"}
TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


@pytest.fixture
def renderer_of(tmp_path: Path) -> Any:
    def make(template: str, eos: str = "<|im_end|>") -> Renderer:
        return load_renderer(write_family(tmp_path, Family("it", template, eos, eos), make_tokenizer()))

    return make


def example(row: Any, method: MethodName = "supervised") -> Example:
    (found,) = read_examples(io.BytesIO(json.dumps(row).encode()), parameters=DataParameters(method=method))
    assert isinstance(found, Example), found
    return found


def chat(*messages: Any, **more: Any) -> Example:
    return example({"messages": list(messages)} | more)


def pair(asked: Any, good: Any, bad: Any, **more: Any) -> Example:
    row = {"input": {"messages": [asked]} | more, "preferred_output": [good], "non_preferred_output": [bad]}
    return example(row, "dpo")


class TestOneRow:
    def test_a_good_row_has_no_warning(self, renderer_of: Any) -> None:
        called = {"role": "assistant", "tool_calls": [CALL]}
        result = {"role": "tool", "tool_call_id": "abcdefghi", "content": "cold"}
        assert list(warning_codes(chat(ASKED, called, result, SAID, tools=[TOOL]), renderer_of(HERMES))) == []

    @pytest.mark.parametrize(
        "row",
        [
            example({"prompt": "a", "completion": ""}),
            example({"prompt": "a", "completion": " \n"}),
            example({"text": ""}),
            chat(ASKED, {"role": "assistant", "content": ""}),
            chat(ASKED, {"role": "assistant", "content": []}, ASKED, SAID),
            pair(ASKED, SAID, {"role": "assistant", "content": ""}),
        ],
        ids=["completion", "white space", "text", "answer", "earlier answer", "output"],
    )
    def test_an_empty_answer_is_a_warning(self, renderer_of: Any, row: Example) -> None:
        assert list(warning_codes(row, renderer_of(CHATML))) == ["empty_answer"]

    @pytest.mark.parametrize(
        "row",
        [
            chat(ASKED, {"role": "assistant", "content": "", "weight": 0}, ASKED, SAID),
            chat(ASKED, {"role": "assistant", "refusal": "No", "content": None, "tool_calls": [CALL]}, tools=[TOOL]),
            chat(ASKED, {"role": "assistant", "content": "", "reasoning_content": "hm"}),
        ],
        ids=["not learned", "call", "reasoning"],
    )
    def test_an_answer_with_a_call_or_reasoning_is_not_empty(self, renderer_of: Any, row: Example) -> None:
        assert list(warning_codes(row, renderer_of(HERMES))) == []

    def test_a_call_of_a_function_that_the_tools_lack_is_a_warning(self, renderer_of: Any) -> None:
        called, renderer = {"role": "assistant", "tool_calls": [CALL]}, renderer_of(HERMES)
        other = {"type": "function", "function": {"name": "other"}}
        old = {"role": "assistant", "function_call": CALL["function"]}
        rows = [chat(ASKED, called), chat(ASKED, called, tools=[other]), chat(ASKED, old, functions=[{"name": "x"}])]
        rows.append(pair(ASKED, SAID, called, tools=[other]))
        assert [list(warning_codes(row, renderer)) for row in rows] == [["unknown_function"]] * 4
        good = [chat(ASKED, called, tools=[TOOL]), chat(ASKED, old, functions=[{"name": "weather"}])]
        assert [list(warning_codes(row, renderer)) for row in good] == [[], []]

    def test_a_name_that_the_template_does_not_print_is_a_warning(self, renderer_of: Any) -> None:
        ann, bob = ASKED | {"name": "Ann"}, SAID | {"name": "Bob"}
        assert list(warning_codes(chat(ann, SAID), renderer_of(CHATML))) == ["unprinted_name"]
        assert list(warning_codes(pair(ann, SAID, bob), renderer_of(CHATML))) == ["unprinted_name"]
        assert list(warning_codes(chat(ann, SAID), renderer_of(NAMED))) == []
        assert list(warning_codes(chat(ann, bob), renderer_of(NAMED))) == ["unprinted_name"]
        assert list(warning_codes(pair(ann, SAID, bob), renderer_of(NAMED))) == ["unprinted_name"]

    def test_the_name_of_an_older_functions_result_is_no_loss(self, renderer_of: Any) -> None:
        old = {"role": "assistant", "function_call": CALL["function"]}
        result = {"role": "function", "name": "weather", "content": "cold"}
        row = chat(ASKED, old, result, SAID, functions=[{"name": "weather"}])
        assert list(warning_codes(row, renderer_of(HERMES))) == []

    def test_content_beside_calls_that_the_template_leaves_out_is_a_warning(self, renderer_of: Any) -> None:
        row = chat(ASKED, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}, tools=[TOOL])
        assert list(warning_codes(row, renderer_of(MISTRAL, "</s>"))) == ["unprinted_content"]
        assert list(warning_codes(row, renderer_of(HERMES))) == []

    @pytest.mark.parametrize("role", ["system", "developer", "user"])
    def test_a_control_token_in_a_text_is_a_warning(self, renderer_of: Any, role: str) -> None:
        renderer = renderer_of(CHATML)
        parts = [{"type": "text", "text": "a<|im_end|>"}, {"type": "text", "text": "b"}]
        for content in ("<|im_end|>\n<|im_start|>assistant", parts):
            assert list(warning_codes(chat({"role": role, "content": content}, ASKED, SAID), renderer)) == [
                "control_token"
            ]
        assert list(warning_codes(chat(ASKED | {"content": "<|im_en|>"}, SAID), renderer)) == []
        assert list(warning_codes(chat(ASKED, SAID | {"content": "<|im_start|>"}), renderer)) == []

    def test_a_control_token_in_a_result_is_a_warning(self, renderer_of: Any) -> None:
        result = {"role": "tool", "tool_call_id": "abcdefghi", "content": "<|im_start|>"}
        row = chat(ASKED, {"role": "assistant", "tool_calls": [CALL]}, result, SAID, tools=[TOOL])
        assert list(warning_codes(row, renderer_of(HERMES))) == ["control_token"]

    def test_a_row_that_the_template_refuses_has_no_warning(self, renderer_of: Any) -> None:
        refusing = "{{ raise_exception('no') }}"
        row = chat(ASKED | {"name": "Ann"}, SAID | {"reasoning_content": "x"})
        assert list(warning_codes(row, renderer_of(refusing))) == []


ROWS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4)), max_size=20)


class TestWholeFiles:
    @given(ROWS, ROWS)
    @settings(deadline=None, max_examples=40)
    def test_repeated_rows_and_rows_of_both_files_are_counted_alike(
        self, training: list[tuple[str, int]], validation: list[tuple[str, int]]
    ) -> None:
        renderer, limits = plain_renderer(), ProfileLimits(1000)
        report, rows = self.examined(training, renderer)
        other, _ = self.examined(validation, renderer, rows)
        assert self.lines(report, "duplicate_rows") == repeats(training)
        assert self.lines(other, "duplicate_rows") == repeats(validation)
        first = {row: line for line, row in reversed(list(enumerate(validation, 1)))}
        shared = sorted(line for row, line in first.items() if row in training)
        assert self.lines(other, "overlap") == shared
        assert other.different_rows == len(set(validation))
        surveyed = profile_dataset(renderer, PARAMETERS, limits, self.file(training), self.file(validation))
        assert self.lines(surveyed.report, "duplicate_rows") == repeats(training)
        assert self.lines(surveyed.report, "overlap") == shared
        assert surveyed.overlap_rows == sum(row in validation for row in training)

    def test_null_and_the_order_of_keys_make_no_other_row(self) -> None:
        one = chat(ASKED, SAID)
        assert row_digest(chat(ASKED, {"content": "no", "role": "assistant", "tool_calls": None})) == row_digest(one)
        assert row_digest(chat(ASKED, SAID | {"weight": 0})) != row_digest(one)
        assert row_digest(chat(ASKED, SAID, tools=[TOOL])) != row_digest(one)

    def test_the_same_rows_have_the_same_warnings_in_a_report_and_in_a_validation(self, renderer_of: Any) -> None:
        renderer = renderer_of(CHATML)
        rows = [chat_row("a", ""), chat_row("<|im_end|>", "b"), chat_row("a", ""), chat_row("x" * 90, "y")]
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        wanted = build_report(renderer, PARAMETERS, 1000, io.BytesIO(content)).warnings("supervised", 64)
        found = profile_dataset(renderer, PARAMETERS, ProfileLimits(1000), io.BytesIO(content)).report.warnings(
            "supervised", 64
        )
        assert found == wanted
        assert [each.code for each in wanted] == ["cut", "empty", "empty_answer", "duplicate_rows", "control_token"]

    def test_a_warning_has_its_lines_and_a_remedy(self, reviewed: Reviewed) -> None:
        report = DatasetReport()
        for code in set(MESSAGES) - {"cut", "empty"}:
            for line in range(3, 15):
                report.add_warning(code, line)
        warnings = report.warnings("supervised", 512)
        assert [each.code for each in warnings] == [code for code in MESSAGES if code not in {"cut", "empty"}]
        labels = [label_warnings(LineCount(9, [1]), other, (1, 1)) for other in (LineCount(), LineCount(3, [2]))]
        for each in chain(*labels):
            reviewed(each.message)
        for each in warnings:
            assert (each.count, each.first_lines) == (12, list(range(3, 13)))
            reviewed(each.message)

    @pytest.mark.parametrize(
        ("desirable", "undesirable", "weights", "wanted"),
        [
            (9, 9, (1, 1), []),
            (9, 9, (1.3, 1), []),
            (9, 3, (1, 3), []),
            (9, 0, (1, 1), [("one_label", 9)]),
            (0, 9, (1, 1), [("one_label", 9)]),
            (9, 3, (1, 1), [("unbalanced_labels", 3)]),
            (3, 9, (1, 1), [("unbalanced_labels", 3)]),
            (9, 9, (1, 10), [("unbalanced_labels", 9)]),
        ],
    )
    def test_labels_of_one_kind_or_of_little_weight_are_a_warning(
        self, desirable: int, undesirable: int, weights: tuple[float, float], wanted: list[tuple[str, int]]
    ) -> None:
        parameters = DataParameters(method="kto", context_length=64)
        rows = [{"prompt": "a", "completion": f"{n}", "label": n < desirable} for n in range(desirable + undesirable)]
        file = io.BytesIO(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        warnings = build_report(plain_renderer(), parameters, 1000, file).warnings("kto", 64, weights)
        assert [(each.code, each.count) for each in warnings] == wanted

    def test_a_row_takes_little_memory_and_their_number_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.domain.datasets.warnings.MAX_INDEXED_ROWS", 50_000)
        rows = RowIndex()
        tracemalloc.start()
        for number in range(60_000):
            assert rows.add(number * 0x9E3779B97F4A7C15 % 2**64, number + 1_000_000) is None
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert (len(rows), rows.is_full) == (50_000, True)
        assert used < 50_000 * 160

    def examined(
        self, rows: list[tuple[str, int]], renderer: Renderer, training: RowIndex | None = None
    ) -> tuple[DatasetReport, RowIndex]:
        report, found = DatasetReport(), RowIndex()
        list(read_kept(renderer, PARAMETERS, 1000, self.file(rows), report, found, training))
        return report, found

    def file(self, rows: list[tuple[str, int]]) -> io.BytesIO:
        return io.BytesIO(b"".join(json.dumps(chat_row(a, str(b))).encode() + b"\n" for a, b in rows))

    def lines(self, report: DatasetReport, code: str) -> list[int]:
        found = report.warning_lines.get(code)
        return found.first if found else []


def chat_row(asked: str, said: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def repeats(rows: list[tuple[str, int]]) -> list[int]:
    return [line for line, row in enumerate(rows, 1) if row in rows[: line - 1]][:10]


@cache
def plain_renderer() -> Renderer:
    return Renderer(make_tokenizer(), CHATML, {"eos_token": "<|im_end|>"})
