"""The compatibility in the manifest, which the trainer compares with the class that config.json names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.trainer.helpers import FLOAT32, load_tiny_base, make_spec
from worker.trainer.checkpoint.provenance import provenance_of


@pytest.mark.parametrize("served_class", [None, "LlavaForConditionalGeneration"])
def test_layers_of_another_class_than_the_served_one_are_not_compatible(
    tiny: Path, examples: Path, tmp_path: Path, served_class: str | None
) -> None:
    """An engine would serve that class, whose layers may have other names, so that nothing matches."""
    base = shutil.copytree(tiny, tmp_path / "base")
    if served_class is not None:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"architectures": [served_class]}))
    spec = make_spec(base, examples, quantization=FLOAT32, n_epochs=1, batch_size=4)
    entry = provenance_of(spec, load_tiny_base(base))["compatibility"]["vllm"]
    assert (entry["ok"], entry["instead"] is None) == (served_class is None, served_class is None)
    assert bool(entry["reasons"]) == (served_class is not None)
