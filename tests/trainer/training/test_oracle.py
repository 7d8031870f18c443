"""The complete trainer compared with a plain script that uses only transformers and PEFT.

One conversation a row, padded on the right with an attention mask, transformers' own loss with its mean over labelled
tokens, AdamW, a clipped norm, transformers' linear schedule: float32, no dropout. Ours has packed rows, no padding, a
loss head and a LoRA product of its own. Shared are the data file, which examples make a batch, and A at the start.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

from app.domain.jobs.events import Metric
from app.domain.jobs.spec import TrainerSpec
from tests.trainer.helpers import ALL_LINEAR, load_tiny_base, make_spec, prepare, run_trainer, set_row_tokens
from worker.trainer.training import run as program

EXAMPLES, BATCH_SIZE, STEPS = 14, 4, 8  # two epochs of three whole batches and one of two examples
PAD = 0

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT, of transformers


class Training(NamedTuple):
    losses: list[float]
    tensors: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One to three exchanges of varying length, some with a system message or an answer of weight 0."""
    generator = random.Random(3)
    path = tmp_path_factory.mktemp("conversations") / "train.jsonl"
    path.write_text("".join(json.dumps({"messages": _messages(generator)}) + "\n" for _ in range(EXAMPLES)))
    return path


@pytest.fixture(scope="module")
def oracle(tiny: Path, conversations: Path) -> Training:
    return plain_script(tiny, make_spec(tiny, conversations, **CHANGES))


CHANGES: dict[str, Any] = {"n_epochs": 2, "batch_size": BATCH_SIZE, "quantization": None, "weight_decay": 0.01}


def ours(tiny: Path, conversations: Path, workdir: Path, row_tokens: int = 2048, **changes: Any) -> Training:
    """Train from spec to saved file, in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "choose_compute_dtype", lambda *_: torch.float32)
        set_row_tokens(patch, row_tokens)
        code, log = run_trainer(make_spec(tiny, conversations, **CHANGES, **changes), workdir)
    assert code == 0
    assert len(log.of(Metric)) == STEPS
    return Training(log.losses, load_file(workdir / log.last.directory / "adapter_model.safetensors"))


class TestAgainstPlainPeft:
    def test_every_loss_and_the_saved_adapter_are_equal_within_rounding(
        self, tiny: Path, conversations: Path, oracle: Training, tmp_path: Path
    ) -> None:
        assert_equal(ours(tiny, conversations, tmp_path), oracle)

    @settings(max_examples=3, deadline=None)
    @given(row_tokens=st.integers(1, 1200), packing=st.booleans())
    def test_every_batch_length_has_the_same_result(
        self,
        tiny: Path,
        conversations: Path,
        oracle: Training,
        tmp_path_factory: pytest.TempPathFactory,
        row_tokens: int,
        packing: bool,
    ) -> None:
        """Gradient accumulation, packing and the batch length only split the same sum in different ways."""
        workdir = tmp_path_factory.mktemp("rows")
        assert_equal(ours(tiny, conversations, workdir, row_tokens, packing=packing), oracle)


def assert_equal(one: Training, other: Training) -> None:
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], rtol=1e-3, atol=2e-5)


def plain_script(tiny: Path, spec: TrainerSpec) -> Training:
    lora, hyperparameters = spec.run.lora, spec.run.hyperparameters
    run = prepare(spec, load_tiny_base(tiny, None), Path("unused"))
    config = LoraConfig(r=lora.r, lora_alpha=int(lora.alpha), target_modules=ALL_LINEAR, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), config).train()
    trained = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in run.adapter.named_parameters().items():
            trained[name].copy_(parameter)
    optimizer = torch.optim.AdamW(
        trained.values(), lr=hyperparameters.learning_rate, weight_decay=hyperparameters.weight_decay
    )
    schedule = get_linear_schedule_with_warmup(optimizer, 0, STEPS)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    lines = [json.loads(line)["messages"] for line in spec.run.training_file.read_text().splitlines()]
    losses = []
    for step in range(STEPS):
        rows = [_tokenize(tokenizer, lines[example]) for example in run.schedule.examples_of(step)]
        loss = model(**_padded(rows)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), hyperparameters.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Training(losses, {name: parameter.detach() for name, parameter in trained.items()})


def _messages(generator: random.Random) -> list[dict[str, Any]]:
    def words(most: int) -> str:
        return " ".join(generator.choice(("red", "green", "blue", "amber")) for _ in range(generator.randint(1, most)))

    messages: list[dict[str, Any]] = [{"role": "system", "content": words(3)}] if generator.random() < 0.3 else []
    for turn in range(generator.randint(1, 3)):
        messages += [{"role": "user", "content": words(6)}, {"role": "assistant", "content": words(4)}]
        if turn == 0 and generator.random() < 0.3:
            messages[-1]["weight"] = 0
    if messages[-1].get("weight") == 0:
        del messages[-1]["weight"]
    return messages


def _tokenize(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Return tokens and labels: each answer from the end of its header to its end-of-turn token, inclusive."""
    tokens: list[int] = []
    labels: list[int] = []
    for message in messages:
        learned = message["role"] == "assistant" and message.get("weight", 1) == 1
        header = f"<|im_start|>{message['role']}\n"
        for text, is_label in ((header, False), (f"{message['content']}<|im_end|>", learned), ("\n", False)):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            tokens += ids
            labels += ids if is_label else [-100] * len(ids)
    assert tokens == tokenizer(tokenizer.apply_chat_template(messages, tokenize=False)).input_ids
    return tokens, labels


def _padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(tokens) for tokens, _ in rows)
    missing = [longest - len(tokens) for tokens, _ in rows]
    return {
        "input_ids": torch.tensor([tokens + [PAD] * n for (tokens, _), n in zip(rows, missing, strict=True)]),
        "labels": torch.tensor([labels + [-100] * n for (_, labels), n in zip(rows, missing, strict=True)]),
        "attention_mask": torch.tensor(
            [[1] * len(tokens) + [0] * n for (tokens, _), n in zip(rows, missing, strict=True)]
        ),
    }
