from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from app.domain.jobs.states import Reason
from tests.trainer import plain_peft
from tests.trainer.helpers import ALL_LINEAR, load_tiny_base, make_spec, prepare
from worker.trainer.adapter.lora import PEFT_PREFIX
from worker.trainer.runtime.failures import Failure


class TestTrainModulesToSave:
    @pytest.mark.parametrize(
        "names",
        [
            ["norm"],
            ["input_layernorm", "lm_head"],
            ["model.norm"],
            ["0.input_layernorm"],
            ["layernorm", "embed_tokens"],
        ],
    )
    def test_names_match_the_same_modules_as_in_peft(self, tiny: Path, examples: Path, names: list[str]) -> None:
        run = prepare(make_spec(tiny, examples, modules_to_save=names), load_tiny_base(tiny), Path("unused"))
        config = LoraConfig(target_modules=ALL_LINEAR, modules_to_save=names, task_type="CAUSAL_LM")
        with plain_peft.quiet():
            theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config)
        named = {name for name, parameter in theirs.named_parameters() if parameter.requires_grad}
        theirs_by_name = {name.replace(".modules_to_save.default", "") for name in named if "lora_" not in name}
        assert {PEFT_PREFIX + name for name in run.adapter.module_masters} == theirs_by_name

    @pytest.mark.parametrize(
        ("name", "expected_text"),
        [
            ("score", "no module whose name ends with 'score'; it has embed_tokens, input_layernorm, lm_head, norm"),
            ("q_proj", "matches model.layers.0.self_attn.q_proj, a frozen linear layer"),
            ("mlp", "has submodules or no weights"),
            ("rotary_emb", "has submodules or no weights"),
            ("base", "no module whose name ends with 'base'"),
        ],
    )
    def test_a_module_that_cannot_be_fully_trained_is_refused_and_the_allowed_ones_are_named(
        self, tiny: Path, examples: Path, name: str, expected_text: str
    ) -> None:
        with pytest.raises(Failure, match=expected_text) as caught:
            prepare(make_spec(tiny, examples, modules_to_save=[name]), load_tiny_base(tiny), Path("unused"))
        assert (caught.value.reason, caught.value.param) == (Reason.INVALID_SPEC, "lora.modules_to_save")
