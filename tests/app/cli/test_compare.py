"""The sampler in its own process, with a real adapter on a tiny base."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.compare import Example, compare
from tests.tiny import make_tiny_base

# In a process of its own: the CLI's tests never load torch.
MAKE_ADAPTER = """
import sys, torch, transformers, peft
torch.manual_seed(0)
base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
peft.get_peft_model(base, config).save_pretrained(sys.argv[2])
"""


def test_the_base_and_the_tuned_model_answer_the_same_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tiny matrices: a second thread only waits
    base, adapter = make_tiny_base(tmp_path / "base"), tmp_path / "adapter"
    subprocess.run([sys.executable, "-c", MAKE_ADAPTER, base, adapter], check=True, capture_output=True)
    prompts = [Example([{"role": "user", "content": text}], "x") for text in ("red", "a much longer prompt: blue")]
    answers = compare(base, adapter, prompts)
    assert [answer.prompt for answer in answers] == ["red", "a much longer prompt: blue"]
    assert all(answer.base != answer.tuned for answer in answers)
