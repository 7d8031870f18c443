"""examples/notebooks: the cells of every notebook run in their order against a live server, without Jupyter.

A worker and an idle slot that answers are those of the page docs/guides/coming-from-openai.md.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from app.db.engine import Sessions, transaction
from tests.factories import chat_lines, make_base_model
from tests.http.test_coming_from_openai import (  # noqa: F401 (fixtures)
    MODEL_NAME,
    idle_slot,
    reader_directory,
    settings,
    worker,
)

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_every_cell_runs(
    path: Path, reader_directory: Path, sessions: Sessions, tmp_path: Path, worker: None, idle_slot: None,  # noqa: F811
) -> None:  # fmt: skip
    (reader_directory / "valid.jsonl").write_bytes(chat_lines(11))
    with transaction(sessions) as session:
        make_base_model(session, tmp_path / "models" / "base", name=MODEL_NAME)
    namespace: dict[str, object] = {"__name__": "__main__"}
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        exec(compile(cell, f"{path.name}, cell {number}", "exec"), namespace)
    client = namespace.pop("client")
    client.close()  # type: ignore[attr-defined]
    shown = eval(ast.unparse(ast.parse(cells[-1]).body[-1]), namespace)
    assert "adapter_model.safetensors" in shown
    assert all(not cell.get("outputs") for cell in notebook["cells"])
