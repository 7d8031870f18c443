from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from app.cli.output.console import fit_fields, fit_table, print_table, shortened

WIDTHS = (40, 80, 120)
JOB, FILE = "ftjob-0123456789abcdef01234567", "file-0123456789abcdef01234567"
TUNED = "ft:SmolLM2-135M-Instruct:tunery:support:1f2e3d4c"
TITLES = ("id", "status", "step", "created", "model", "fine-tuned model")
ROW = (JOB, "queued (No running worker has the model 'other')", "12/80", "2026-11-27 06:28:30", "SmolLM2-135M", TUNED)


def shown(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    return [line.plain for line in fit_table(titles, rows, width).lines]


@pytest.mark.parametrize("width", WIDTHS)
class TestWidths:
    def test_an_id_within_a_sentence_does_too(self, width: int) -> None:
        rows = [("2026-11-27 06:28:30", "info", f"Created fine-tuning job: {JOB} " + "and so on " * 9)]
        lines = shown(("time", "level", "message"), rows, width)
        assert any(JOB in line for line in lines)
        assert all(cell_len(line) <= width for line in lines)
        assert " ".join(" ".join(lines).split()).count("and so on") == 9  # a sentence is never cut

    def test_fields_do_too(self, width: int) -> None:
        files = ", ".join([FILE] * 3)
        lines = [line.plain for line in fit_fields([("id", JOB), ("result files", files), ("seed", "1")], width)]
        assert sum(line.count(FILE) for line in lines) == 3
        assert all(cell_len(line) <= width for line in lines)

    def test_the_name_of_a_model_that_is_the_rows_id_does_too(self, width: int) -> None:
        assert any(TUNED in line for line in shown(("id", "kind"), [(TUNED, "trained")], width))


def test_a_row_is_one_line_if_the_terminal_is_wide() -> None:
    table = fit_table(TITLES, [ROW], 250)
    assert table.lines[1].plain.split("  ") == list(ROW)
    assert table.hidden_titles == []


def test_columns_that_do_not_fit_are_named() -> None:
    assert fit_table(TITLES, [ROW], 80).hidden_titles == ["model", "fine-tuned model"]


def test_where_nothing_fits_beside_the_id_a_row_has_several_lines_and_loses_nothing() -> None:
    lines = shown(TITLES, [ROW], 40)
    assert lines[0] == JOB
    assert fit_table(TITLES, [ROW], 40).hidden_titles == []
    assert TUNED in lines[-1]


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [("abc", 3, "abc"), ("a sentence of words", 10, "a sentenc…"), (TUNED, 15, "ft:Smol…f2e3d4c")],
)
def test_names_are_shortened_in_the_middle_and_sentences_at_the_end(text: str, width: int, short: str) -> None:
    assert shortened(text, width) == short


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # on a busy machine
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([JOB, FILE, "key_0123456789abcdef"]),
            st.text("ab 多-", max_size=60).map(lambda text: " ".join(text.split())),
            st.sampled_from(["", JOB, "12/80", "2026-11-27 06:28:30"]),
        ),
        min_size=1,
        max_size=4,
    ),
    width=st.integers(32, 160),
)
def test_no_width_breaks_an_id_or_makes_a_line_too_long(rows: list[tuple[str, str, str]], width: int) -> None:
    lines = shown(("id", "name", "other"), rows, width)
    for identifier in (JOB, FILE, "key_0123456789abcdef"):
        assert sum(line.count(identifier) for line in lines) == sum(row.count(identifier) for row in rows)
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_is_fitted_to_its_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(TITLES, [ROW], "")
    assert Text.from_ansi(capsys.readouterr().out).plain.splitlines() == shown(TITLES, [ROW], width)
