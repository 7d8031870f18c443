"""What an upload makes of its file: examples of the columns of a table, and a held-out file of a part of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.domain.datasets.held_out import MAX_PERCENT, MAX_SEED
from app.domain.datasets.tables import Columns, TableError
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest, combine_errors

BOUNDS = {"held_out_percent": (1, MAX_PERCENT), "seed": (0, MAX_SEED)}
PREPARATION_FIELDS = ("columns", *BOUNDS)  # of a form


@dataclass(frozen=True)
class Preparation:
    """How a file is read: the columns of a table (None: JSON lines), and what is held out (None: nothing)."""

    columns: Columns | None = None
    held_out_percent: int | None = None
    seed: int = 0

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> Preparation | None:
        """The preparation that the fields of a form request; None without any. Raises BadRequest with all problems."""
        given = {name: fields[name] for name in PREPARATION_FIELDS if name in fields}
        if not given:
            return None
        problems, columns = [], None
        try:
            columns = Columns.parse(given["columns"]) if "columns" in given else None
        except TableError as error:
            problems.append(BadRequest(f"columns: {error}", "columns"))
        numbers = {name: whole_number(given[name], *bounds) for name, bounds in BOUNDS.items() if name in given}
        for name, number in numbers.items():
            if number is None:
                low, high = BOUNDS[name]
                text = f"{name}: {as_json(given[name])} is not a whole number from {low} to {high:,}"
                problems.append(BadRequest(text, name))
        if "seed" in given and "held_out_percent" not in given:
            problems.append(BadRequest("seed: has no effect without held_out_percent; give both or none", "seed"))
        if fields.get("purpose") != "fine-tune":
            text = f'{", ".join(given)}: only a file with the purpose "fine-tune" is split or made of a table'
            problems.append(BadRequest(text, next(iter(given))))
        if problems:
            raise combine_errors(problems)
        return cls(columns, numbers.get("held_out_percent"), numbers.get("seed") or 0)

    def form_fields(self) -> dict[str, str]:
        """The fields of a form that `parse` reads."""
        seed = None if self.held_out_percent is None else self.seed
        values = (self.columns, self.held_out_percent, seed)
        given = zip(PREPARATION_FIELDS, values, strict=True)
        return {name: str(value) for name, value in given if value is not None}


def whole_number(text: str, low: int, high: int) -> int | None:
    """The number, if it is one from `low` to `high`."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else -1
    return number if low <= number <= high else None


@dataclass(frozen=True)
class PreparedRows:
    """What was made of a file."""

    rows: int  # of both files
    held_out_rows: int
    skipped_rows: int  # of a table: those without input or output
    held_out_max_bytes: int  # of the longest held-out row
    labels: dict[str, dict[str, int]] | None  # {label: {"training": rows, "held_out": rows}} of a classification
    grader: str | None  # the type of the grader that suits the outputs
