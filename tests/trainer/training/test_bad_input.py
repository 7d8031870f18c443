"""Invalid input: an exit code, a reason and a message; the log has the details."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from app.domain.jobs.events import Failed, Record, Started, parse_record
from app.domain.jobs.spec import TrainerSpec
from app.domain.jobs.states import ExitCode, Reason
from tests.fork_server import forked
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.trainer.helpers import change_config, change_weights, make_spec, run_trainer

ROOT = Path(__file__).parents[3]
UP = "model.layers.0.mlp.up_proj.weight"
CONTEXT_LENGTH = "hyperparameters.context_length"


@dataclass(frozen=True)
class Case:
    """One invalid input. `edit` changes the base's directory before it is registered, `damage` afterwards."""

    name: str
    reason: Reason
    param: str
    text: str
    changes: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[Path], object] = lambda base: None
    damage: Callable[[Path], object] = lambda base: None
    is_silent: bool = False

    def __str__(self) -> str:
        return self.name


def flip_a_bit(base: Path) -> None:
    path = base / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def refuse(base: Path, content: str, message: str) -> None:
    template = base / "chat_template.jinja"
    check = f"{{% if messages[-1]['content'] == {content!r} %}}{{{{ raise_exception({message!r}) }}}}{{% endif %}}"
    template.write_text(check + template.read_text())


def extend_tokenizer(base: Path) -> None:
    """Add a word of the dataset as a token for which the embedding has no row."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("amber", normalized=False)])
    tokenizer.save(str(base / "tokenizer.json"))


def change_generation_prompt(base: Path) -> None:
    template = base / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant", "<|im_start|>bot"))


def remove_one_shard(base: Path) -> None:
    """Leave the directory as an interrupted download does."""
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    files = {
        "model.norm.weight": "model-00001-of-00002.safetensors",
        "lm_head.weight": "model-00002-of-00002.safetensors",
    }
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def truncate_weights(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


CASES = (
    Case("a module that the base does not have", Reason.INVALID_SPEC, "lora.target_modules",
         "it has down_proj, gate_proj", {"target_modules": ["c_attn"]}),
    Case("a rank over the size of a layer", Reason.INVALID_SPEC, "lora.r", "choose a rank up to 32", {"r": 33}),
    Case("a context longer than the model's", Reason.INVALID_SPEC, CONTEXT_LENGTH,
         "at most 512 tokens", {"context_length": 513}),
    Case("a dataset with no supervised token", Reason.INVALID_TRAINING_FILE, CONTEXT_LENGTH,
         "512 tokens", is_silent=True),
    Case("chats for a tokenizer without a template", Reason.INVALID_TRAINING_FILE, "training_file",
         "no chat template", edit=lambda base: (base / "chat_template.jinja").unlink()),
    Case("a sample prompt that the template refuses", Reason.INVALID_SPEC, "sample_prompts.1",
         "no shouting",
         {"sample_prompts": ["say 3", "SAY 3"]}, edit=lambda base: refuse(base, "SAY 3", "no shouting")),
    Case("a base with a flipped bit", Reason.MODEL_UNAVAILABLE, "model",
         "has changed", damage=flip_a_bit),
    Case("a base whose directory is missing", Reason.MODEL_UNAVAILABLE, "model",
         "No such file", damage=shutil.rmtree),
    Case("a base of an unknown model type", Reason.MODEL_UNAVAILABLE, "model",
         "'ours'",
         edit=lambda base: change_config(base, model_type="ours")),
    Case("a base that was registered without one of its files", Reason.MODEL_UNAVAILABLE, "model",
         "model-00002-of-00002.safetensors",
         edit=remove_one_shard),
    Case("a base that was registered with truncated weights", Reason.MODEL_UNAVAILABLE, "model",
         "model.safetensors is damaged (", edit=truncate_weights),
    Case("a base whose config has no heads", Reason.MODEL_UNAVAILABLE, "model",
         "ZeroDivisionError",
         edit=lambda base: change_config(base, num_attention_heads=0, head_dim=None)),
    Case("a base with a tensor missing", Reason.MODEL_UNAVAILABLE, "model",
         UP,
         edit=lambda base: change_weights(base, lambda tensors: tensors.pop(UP))),
    Case("a token without a row in the embedding", Reason.INVALID_TRAINING_FILE, "training_file",
         '"amber" (259)',
         edit=extend_tokenizer),
    Case("a template whose answers do not start with its generation prompt", Reason.INVALID_TRAINING_FILE,
         "training_file", "generation prompt", edit=change_generation_prompt),
    Case("experts of a dense base", Reason.INVALID_SPEC, "lora.target_parameters", "it has no experts",
         {"target_parameters": ["mlp.experts.down_proj"]}),
    Case("all experts of a dense base", Reason.INVALID_SPEC, "lora.experts", "has no experts", {"experts": True}),
)  # fmt: skip


def spec_of(case: Case, workdir: Path) -> TrainerSpec:
    base, data = make_tiny_base(workdir / "base"), make_tiny_dataset(workdir / "train.jsonl")
    if case.is_silent:
        lines = [json.loads(line) for line in data.read_text().splitlines()]
        for line in lines:
            line["messages"][-1]["weight"] = 0
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    case.edit(base)
    spec = make_spec(base, data, **case.changes)
    case.damage(base)
    return spec


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bad_input_ends_with_a_reason_and_a_message_and_the_log_has_the_details(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, log = run_trainer(spec_of(case, tmp_path), tmp_path)
    check_end(case, tmp_path, code, log.records, capsys.readouterr().err)


def test_the_program_ends_the_same_way(tmp_path: Path) -> None:
    """Its standard output has nothing but the records, which the worker reads."""
    case = CASES[0]
    (tmp_path / "spec.json").write_text(spec_of(case, tmp_path).model_dump_json())
    command = [*forked("worker.trainer"), str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True)
    records = [parse_record(line) for line in ended.stdout.splitlines()]
    check_end(case, tmp_path, ended.returncode, records, ended.stderr.decode())


def check_end(case: Case, workdir: Path, code: int, records: Sequence[Record], log: str) -> None:
    assert code == ExitCode.BAD_SPEC, log
    (last,) = (record for record in records if isinstance(record, Failed))
    assert last is records[-1]
    assert not any(isinstance(record, Started) for record in records)
    assert (last.reason, last.param) == (case.reason, case.param)
    assert case.text in last.message
    assert last.message[-1] == "."

    output = "".join(record.model_dump_json() for record in records)  # what a user may come to see
    assert "Traceback" not in output
    assert str(workdir) not in output
    assert "Traceback (most recent call last):" in log
    assert f"worker.trainer.runtime.failures.Failure: {last.message}" in log
