"""The result of an evaluation in the model card and the manifest of the judged adapter and of what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.system.artifact_directory import amend_manifest

CARD = "README.md"
SECTION = """
## Evaluation

{text} The rows are those of the file `{file}`, the scores those of the grader `{grader}`; on the Tunery server, the
evaluation `{id}` has each row.
"""


def record_evaluation(directory: Path, evaluation: Mapping[str, Any] | None) -> None:
    """Add an evaluation, as `newest_headline` of app.db.jobs.evaluations returns it, to a copy of an adapter or to an
    export."""
    if evaluation is None:
        return
    card = directory / CARD
    if card.exists():
        with card.open("a", encoding="utf-8") as file:
            file.write(SECTION.format_map(evaluation))
    amend_manifest(directory, {"evaluation": evaluation}, [CARD] if card.exists() else [])
