"""Unsloth trains the same workload as the others, and the table has the right ratios."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import peers, table
from benchmarks.table import Measured

HERE = Path(peers.__file__).parent


class Recorder:
    """A class whose calls are written down."""

    def __init__(self) -> None:
        self.calls: dict[str, dict[str, Any]] = {}

    def from_pretrained(self, **how: Any) -> tuple[str, str]:
        self.calls["from_pretrained"] = how
        return "model", "tokenizer"

    def get_peft_model(self, model: str, **how: Any) -> str:
        self.calls["get_peft_model"] = how
        return "adapted"


class Trainer:
    def __init__(self, **how: Any) -> None:
        self.how = how
        self.train_dataset = how["train_dataset"]


@pytest.fixture
def unsloth(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """In place of the packages that are not here; what they are asked for is known then, not what they do."""
    recorder = Recorder()
    stand_ins = {
        "unsloth": {"FastLanguageModel": recorder},
        "datasets": {"Dataset": SimpleNamespace(from_list=list)},
        "trl": {"SFTConfig": SimpleNamespace, "SFTTrainer": Trainer},
    }
    for name, content in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("peer_trl", "peer_unsloth"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(HERE))
    return recorder


@pytest.mark.parametrize(("checkpointing", "kind"), [(True, "unsloth"), (False, False)])
def test_unsloth_trains_the_same_workload(unsloth: Recorder, tmp_path: Path, checkpointing: bool, kind: object) -> None:
    (tmp_path / "rows.jsonl").write_text('{"input_ids": [1, 2], "labels": [-100, 2]}\n')
    work = {
        "base": "DIR", "r": 16, "alpha": 32.0, "target_modules": ["q_proj"], "steps": 15, "batch_size": 8,
        "learning_rate": 1e-3,
    }  # fmt: skip
    script = importlib.import_module("peer_unsloth")
    trainer = script.make_trainer(tmp_path, work, {"micro_batch": 4, "checkpointing": checkpointing})
    loaded, adapted = unsloth.calls["from_pretrained"], unsloth.calls["get_peft_model"]
    assert loaded["quantization_config"].bnb_4bit_quant_type == "nf4"
    assert loaded["quantization_config"].bnb_4bit_use_double_quant
    assert loaded["use_exact_model_name"]
    assert loaded["use_gradient_checkpointing"] == adapted["use_gradient_checkpointing"] == kind
    assert (adapted["r"], adapted["lora_alpha"], adapted["lora_dropout"]) == (16, 32.0, 0.0)
    assert adapted["target_modules"] == ["q_proj"]
    config = trainer.how["args"]
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 8
    assert (config.lr_scheduler_type, config.max_steps, config.packing) == ("constant", 15, False)
    assert trainer.how["train_dataset"] == [{"input_ids": [1, 2], "labels": [-100, 2]}]
    assert list(trainer._get_train_sampler()) == [0]


def measured(tokens_per_second: float, cuda_peak_bytes: int) -> Measured:
    return Measured(
        step_seconds=[1.0] * 6, step_tokens=[int(tokens_per_second)] * 6, losses=dict.fromkeys(range(1, 7), 2.0),
        validation_loss=1.0, resident_bytes=8_000_000_000, cuda_peak_bytes=cuda_peak_bytes,
    )  # fmt: skip


def test_a_table_of_cuda_has_the_cards_memory_and_no_target_of_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "list_gpus", lambda: [{"name": "NVIDIA H100"}])
    rows = {
        "Tunery": [measured(40, 1_000_000_000)],
        "TRL, its defaults": [measured(10, 4_000_000_000)],
        "TRL, its best": [measured(20, 5_000_000_000)],
        "Unsloth": [measured(30, 2_000_000_000)],
    }
    work: Any = SimpleNamespace(spec=SimpleNamespace(device="cuda"), tokens_of_step=[40] * 6)
    table.report(work, rows, [100.0], {"micro_batch": 4}, "rows.jsonl", "trl==1.16", None)
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if line.startswith("Unsloth")]
    assert line.split()[1:6] == ["30", "30%", "1.33", "(1.33-1.33)", "2.00"]
    assert "NVIDIA H100" in text
    assert "memory: 0.20 x" in text
    assert "best speed" not in text
