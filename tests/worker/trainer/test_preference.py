"""DPO against a plain implementation, alone and beside other runs; what it measures; how it resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.worker.trainer.house import (
    ALL_LINEAR,
    load_tiny,
    make_spec,
    one_step,
    prepare,
)
from worker.trainer import loss
from worker.trainer.batch import Pairs, Share, reference_id, rows
from worker.trainer.lora import frozen_copy
from worker.trainer.optim import learning_rate
from worker.trainer.preference import compare_losses
from worker.trainer.state import Run, Step

BETA = 0.2
STEPS = 6  # two epochs of three
FLOAT32_LORA: dict[str, Any] = {"method": "dpo", "beta": BETA}


def trained(tiny: Path, pairs: Path, steps: int = 5, row_tokens: int = 2048, **changes: Any) -> tuple[list[Step], Run]:
    """`steps` steps in float32 on a fresh base."""
    base = load_tiny(tiny, None)
    (run,) = prepare(make_spec(tiny, pairs, **FLOAT32_LORA | changes), base, Path("unused"))
    return [one_step(base, [run], row_tokens)[0] for _ in range(steps)], run


class TestComparison:
    """The maths: token losses in, weights out."""

    PAIRS = Pairs(
        pairs_N=torch.tensor([0, 0, 0, 2, 1, 1]),
        signs_N=torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, -1.0]),
        betas_P=torch.tensor([0.1, 2.0], dtype=torch.float64),
    )

    def test_equals_autograd_of_the_papers_formula(self) -> None:
        dice = torch.Generator().manual_seed(0)
        losses = torch.rand(6, generator=dice).requires_grad_()
        reference = torch.rand(6, generator=dice)
        found = compare_losses(self.PAIRS, losses.detach(), reference)
        gained = reference - losses
        margins = torch.stack([0.1 * (gained[0] + gained[1] - gained[2]), 2.0 * (gained[4] - gained[5])])
        (-F.logsigmoid(margins).sum() + losses[3]).backward()  # the fourth token is of no pair
        torch.testing.assert_close(found.weights_N, losses.grad)
        torch.testing.assert_close(found.margins_P.float(), margins.detach())
        torch.testing.assert_close(found.losses_P.float(), -F.logsigmoid(margins.detach()))

    def test_a_token_of_no_pair_changes_no_pair(self) -> None:
        losses = torch.ones(6)
        broken = losses.clone()
        broken[3] = math.nan
        found = compare_losses(self.PAIRS, broken, losses)
        assert found.losses_P.tolist() == pytest.approx([math.log(2)] * 2)
        assert found.weights_N.tolist() == pytest.approx([0.05, 0.05, -0.05, 1, 1, -1])


class TestOptimizerStep:
    def test_the_first_loss_is_that_of_a_coin(self, tiny: Path, pairs: Path) -> None:
        steps, _ = trained(tiny, pairs, steps=1, dropout=0.1)
        assert steps[0].loss == pytest.approx(math.log(2), abs=1e-12)
        assert (steps[0].reward_margin, steps[0].reward_accuracy) == (0.0, 0.0)

    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT, of transformers
    @pytest.mark.parametrize("changes", [{}, {"beta": 1.5, "batch_size": 5, "weight_decay": 0.1}])
    def test_equals_a_plain_peft_loop_on_the_same_pairs(self, tiny: Path, pairs: Path, changes: dict[str, Any]) -> None:
        """The oracle: log-softmax of full logits, PEFT's adapter off for the reference, autograd for the gradient."""
        steps, run = trained(tiny, pairs, **changes)
        theirs = _plain_dpo(tiny, run, make_spec(tiny, pairs, **FLOAT32_LORA | changes))
        assert [step.loss for step in steps] == pytest.approx(theirs["losses"], rel=1e-5)
        assert [step.reward_margin for step in steps] == pytest.approx(theirs["margins"], rel=1e-6, abs=1e-5)
        assert [step.grad_norm for step in steps] == pytest.approx(theirs["norms"], rel=1e-4)
        for name, parameter in run.adapter.named_parameters().items():
            torch.testing.assert_close(parameter.data, theirs["tensors"][name], rtol=1e-2, atol=1e-4)

    @pytest.mark.parametrize("changes", [{"row_tokens": 1}, {"row_tokens": 300}, {"packing": False}])
    def test_rows_never_change_the_result_beyond_rounding(
        self, tiny: Path, pairs: Path, changes: dict[str, Any]
    ) -> None:
        one, other = trained(tiny, pairs, **changes), trained(tiny, pairs)
        assert [step.loss for step in one[0]] == pytest.approx([step.loss for step in other[0]], rel=1e-5)
        for mine, theirs in zip(one[1].parameters, other[1].parameters, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)

    def test_it_learns_what_is_preferred(self, tiny: Path, pairs: Path) -> None:
        steps, _ = trained(tiny, pairs, steps=12, n_epochs=4)
        assert steps[-1].loss < 0.5 * steps[0].loss
        assert steps[-1].reward_accuracy == 1.0
        assert steps[-1].reward_margin is not None
        assert steps[-1].reward_margin > 0.5

    def test_the_head_forms_one_gradient_for_each_answer(
        self, tiny: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[bool] = []
        chunk = loss._chunk

        def watched(*arguments: Any) -> Any:
            asked.append(arguments[-2])
            return chunk(*arguments)

        monkeypatch.setattr(loss, "_chunk", watched)
        trained(tiny, pairs, steps=1)
        assert asked == [False, False, True]  # the reference, the margin, the step

    def test_the_loss_is_divided_by_pairs(self, tiny: Path, pairs: Path) -> None:
        steps, run = trained(tiny, pairs, steps=3, batch_size=5)
        assert [step.denominator for step in steps] == [5, 5, 2]
        assert sum(step.labelled_tokens for step in steps) == run.corpus.labelled_tokens
        assert run.trained_tokens == run.corpus.tokens

    def test_a_run_that_goes_on_from_an_adapter_has_that_as_its_reference(self, tiny: Path, pairs: Path) -> None:
        base = load_tiny(tiny, None)
        (run,) = prepare(make_spec(tiny, pairs, **FLOAT32_LORA), base, Path("unused"))
        with torch.no_grad():
            for parameter in run.parameters:
                parameter.add_(0.05)
        assert one_step(base, [run])[0].reward_margin != 0.0
        base.routing.adapters[reference_id(run.id)] = frozen_copy(run.adapter)
        assert one_step(base, [run])[0].loss == pytest.approx(math.log(2), abs=1e-12)
        assert one_step(base, [run])[0].reward_margin != 0.0  # the copy stayed where it was


class TestBesideOtherRuns:
    def test_each_run_of_a_mixed_step_gets_the_adapter_it_would_get_alone(
        self, tiny: Path, examples: Path, pairs: Path
    ) -> None:
        specs = [
            make_spec(tiny, examples, run_id="a", seed=1).runs[0],
            make_spec(tiny, pairs, run_id="b", seed=2, r=2, target_modules=["q_proj"], **FLOAT32_LORA).runs[0],
            make_spec(tiny, pairs, run_id="c", seed=3, **FLOAT32_LORA | {"beta": 1.0}).runs[0],
        ]
        base = load_tiny(tiny, None)
        together = prepare(make_spec(tiny, pairs, runs=specs), base, Path("unused"))
        mixed = next(rows([run.share() for run in together], 4096))
        stretches = [(s.run_id, s.first_pair, s.end_pair) for s in mixed.segments]
        assert stretches == [("a", 0, 0), ("b", 0, 4), ("c", 4, 8)]
        shared = [one_step(base, together, 4096) for _ in range(3)]
        for number, spec in enumerate(specs):
            base = load_tiny(tiny, None)
            (alone,) = prepare(make_spec(tiny, pairs, runs=[spec]), base, Path("unused"))
            solo = [one_step(base, [alone])[0] for _ in range(3)]
            mine = [steps[number] for steps in shared]
            assert [step.loss for step in mine] == pytest.approx([step.loss for step in solo], rel=1e-5)
            assert [step.metrics("train").keys() for step in mine] == [step.metrics("train").keys() for step in solo]
            for ours, theirs in zip(together[number].parameters, alone.parameters, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)

    def test_one_that_breaks_leaves_the_other_alone(self, tiny: Path, examples: Path, pairs: Path) -> None:
        supervised = make_spec(tiny, examples, run_id="a").runs[0]
        dpo = make_spec(tiny, pairs, run_id="b", **FLOAT32_LORA).runs[0]
        for broken in (0, 1):
            base = load_tiny(tiny, None)
            both = prepare(make_spec(tiny, pairs, runs=[supervised, dpo]), base, Path("unused"))
            with torch.no_grad():
                both[broken].parameters[0].fill_(math.nan)
            steps = one_step(base, both)
            assert [step.is_finite for step in steps] == [number != broken for number in range(2)]


class TestRows:
    def test_a_pair_is_never_split_over_rows(self, tiny: Path, pairs: Path) -> None:
        (run,) = prepare(make_spec(tiny, pairs, **FLOAT32_LORA), load_tiny(tiny, None), Path("unused"))
        for budget in (1, 150, 400, 5000):
            for packing in (True, False):
                share = Share(run.id, run.corpus, range(24), packing, beta=BETA)
                made = list(rows([share], budget))
                assert sum(len(row.lengths) for row in made) == 24
                for row in made:
                    assert row.pairs is not None
                    assert len(row.lengths) == 2 * len(row.pairs.betas_P)
                    assert len(row.lengths) == 2 or (packing and len(row.tokens_T) <= budget)

    def test_a_pair_that_the_cut_leaves_one_side_is_left_out(self, tiny: Path, tmp_path: Path) -> None:
        answers = [("yes", "no"), ("y" * 90, "y" * 90 + "no"), ("no", "yes")]
        lines = [
            {
                "input": {"messages": [{"role": "user", "content": "q"}]},
                "preferred_output": [{"role": "assistant", "content": one}],
                "non_preferred_output": [{"role": "assistant", "content": other}],
            }
            for one, other in answers
        ]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        spec = make_spec(tiny, tmp_path / "pairs.jsonl", context_length=64, **FLOAT32_LORA)
        (run,) = prepare(spec, load_tiny(tiny, None), Path("unused"))
        assert list(run.corpus.lines) == [1, 3]


def _plain_dpo(tiny: Path, ours: Run, spec: Any) -> dict[str, Any]:
    lora, knobs = spec.runs[0].lora, spec.runs[0].hyperparameters
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=ALL_LINEAR, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), config).train()
    named = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    start = prepare(spec, load_tiny(tiny, None), Path("unused"))[0].adapter.named_parameters()
    with torch.no_grad():
        for name, parameter in start.items():
            named[name].copy_(parameter)
    optimizer = torch.optim.AdamW(named.values(), lr=0.0, weight_decay=knobs.weight_decay)
    seen: dict[str, Any] = {"losses": [], "margins": [], "norms": []}
    for step in range(ours.step):
        margins = torch.stack([_plain_margin(model, ours, example) for example in ours.plan.examples_of(step)])
        loss = -F.logsigmoid(knobs.beta * margins).mean()
        loss.backward()
        seen["norms"].append(torch.nn.utils.clip_grad_norm_(named.values(), knobs.max_grad_norm).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(knobs, step, ours.plan.total_steps)
        optimizer.step()
        optimizer.zero_grad()
        seen["losses"].append(loss.item())
        seen["margins"].append(knobs.beta * margins.mean().item())
    return seen | {"tensors": {name: parameter.detach() for name, parameter in named.items()}}


def _plain_margin(model: Any, run: Run, example: int) -> torch.Tensor:
    preferred, other = run.corpus.documents(example)
    return _log_ratio(model, run, preferred) - _log_ratio(model, run, other)


def _log_ratio(model: Any, run: Run, document: int) -> torch.Tensor:
    policy = _log_likelihood(model, run, document)
    with torch.no_grad(), model.disable_adapter():
        reference = _log_likelihood(model, run, document)
    return policy - reference


def _log_likelihood(model: Any, run: Run, document: int) -> torch.Tensor:
    tokens, labelled = (torch.tensor(list(part)) for part in run.corpus.slice(document))
    log_p = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
    return log_p.gather(1, tokens[1:, None]).squeeze(1)[labelled[1:].bool()].sum()
