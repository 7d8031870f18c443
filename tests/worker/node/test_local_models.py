"""The inventory of base models: a model is offered while its files are those that were registered."""

from __future__ import annotations

from pathlib import Path

from tests.worker.worker_harness import WorkerHarness
from worker.node.local_models import ModelInventory


def test_a_model_is_offered_while_its_files_are_those_that_were_registered(
    harness: WorkerHarness, tmp_path: Path
) -> None:
    changes: list[bool] = []
    models = ModelInventory(harness.resources, lambda: changes.append(True))
    assert models.capacity().models == frozenset()
    models.refresh()
    models.refresh()
    assert (models.describe()["models"], len(changes)) == (["tiny"], 1)
    with (tmp_path / "base" / "config.json").open("a") as file:
        file.write(" ")
    models.refresh()
    assert (models.capacity().models, len(changes)) == (frozenset(), 2)
