"""Steps of every loss of sequences and their reference, compared with a plain implementation."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.system.artifact_directory import MANIFEST, sha256_file
from tests.trainer import plain_peft
from tests.trainer.helpers import (
    load_tiny_base,
    make_one_step,
    make_spec,
    no_keepalive,
    prepare,
    run_trainer,
)
from worker.trainer.adapter.lora import frozen_copy
from worker.trainer.data.batch import TokenizedDataset, pack_batches
from worker.trainer.data.mismatched import mismatched
from worker.trainer.distributed import parallel
from worker.trainer.objective.objective import SequenceObjective
from worker.trainer.objective.sequence_losses import SEQUENCE_LOSSES, SequenceSums
from worker.trainer.training.loop import optimizer_step
from worker.trainer.training.run import make_objective
from worker.trainer.training.state import Run, StepResult
from worker.trainer.validation.evaluate import evaluate

DPO: dict[str, Any] = {"method": "dpo", "beta": 0.2}
KTO: dict[str, Any] = {"method": "kto", "beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.5}
CHANGES: dict[str, dict[str, Any]] = {
    "dpo": DPO,
    "ipo": DPO | {"loss_type": "ipo"},
    "simpo": DPO | {"loss_type": "simpo", "simpo_gamma": 0.5},
    "orpo": {"method": "orpo", "beta": 0.2},
    "kto": KTO,
}


@pytest.fixture(scope="module")
def files(pairs: Path, labelled: Path) -> dict[str, Path]:
    """The training file of each loss."""
    return {name: labelled if name == "kto" else pairs for name in CHANGES}


def trained(
    tiny: Path, file: Path, steps: int = 3, row_tokens: int = 2048, **changes: Any
) -> tuple[list[StepResult], Run]:
    """Make `steps` steps in float32 on a newly loaded base."""
    base = load_tiny_base(tiny, None)
    run = prepare(make_spec(tiny, file, **changes), base, Path("unused"))
    return [make_one_step(base, run, row_tokens) for _ in range(steps)], run


class TestOptimizerStep:
    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT, of transformers
    @pytest.mark.parametrize("name", CHANGES)
    def test_equals_a_plain_peft_loop_on_the_same_examples(self, tiny: Path, files: dict[str, Path], name: str) -> None:
        """The reference: log-softmax of all logits, PEFT with the adapter disabled, gradients by autograd."""
        changes = CHANGES[name] | {"beta": 1.5, "batch_size": 5, "weight_decay": 0.1}
        steps, run = trained(tiny, files[name], row_tokens=300, **changes)
        theirs = _plain(tiny, run, make_spec(tiny, files[name], **changes))
        assert [step.loss for step in steps] == pytest.approx(theirs["losses"], rel=1e-5)
        for metric, values in theirs["metrics"].items():
            assert [step.mean(metric) for step in steps] == pytest.approx(values, rel=1e-5, abs=1e-5, nan_ok=True)
        assert [step.grad_norm for step in steps] == pytest.approx(theirs["norms"], rel=1e-4)
        for parameter_name, parameter in run.adapter.named_parameters().items():
            torch.testing.assert_close(parameter.data, theirs["tensors"][parameter_name], rtol=1e-2, atol=1e-4)

    @pytest.mark.parametrize("name", ["dpo", "orpo", "kto"])
    def test_packing_never_changes_the_result_beyond_rounding(
        self, tiny: Path, files: dict[str, Path], name: str
    ) -> None:
        one, other = (trained(tiny, files[name], packing=packing, **CHANGES[name]) for packing in (True, False))
        assert [step.loss for step in one[0]] == pytest.approx([step.loss for step in other[0]], rel=1e-5)
        assert [step.grad_norm for step in one[0]] == pytest.approx([step.grad_norm for step in other[0]], rel=1e-4)
        for mine, theirs in zip(one[1].parameters, other[1].parameters, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=2e-4)

    @pytest.mark.parametrize("name", ["dpo", "orpo", "kto"])
    def test_validation_has_the_loss_of_a_step_over_the_same_examples(
        self, tiny: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        base = load_tiny_base(tiny, None)
        spec = make_spec(tiny, files[name], batch_size=12, n_epochs=3, **CHANGES[name])
        run = prepare(spec, base, Path("unused"))
        make_one_step(base, run)
        # The mismatched documents follow from the order of the examples.
        monkeypatch.setattr(type(run.schedule), "examples_of", lambda *_: [*range(12)])
        validation = evaluate(make_objective(base, run), run.dataset, 300, no_keepalive)
        assert validation.loss == pytest.approx(make_one_step(base, run).loss, rel=1e-5)

    @pytest.mark.parametrize("name", CHANGES)
    def test_a_few_steps_on_the_same_rows_fit_them(self, tiny: Path, files: dict[str, Path], name: str) -> None:
        """Desirable answers gain and undesirable ones lose, with the dropout of the adapter."""
        base, steps = load_tiny_base(tiny, None), 6
        changes = CHANGES[name] | {"batch_size": 12, "max_steps": steps, "dropout": 0.05}
        if name == "kto":  # 8 desirable answers and 4 undesirable ones
            changes |= {"desirable_weight": 1.0, "undesirable_weight": 2.0}
        run = prepare(make_spec(tiny, files[name], **changes), base, Path("unused"))
        objective = make_objective(base, run)
        before, *_, after = (optimizer_step(run, objective, 2048, no_keepalive) for _ in range(steps))
        assert after.loss < 0.9 * before.loss
        if name == "kto":
            assert after.mean("reward_desirable") > 0.5
            assert after.mean("reward_undesirable") < -0.5
        else:
            assert after.mean("reward_accuracy") > 0.9

    def test_a_frozen_copy_as_reference_stays_unchanged(self, tiny: Path, pairs: Path) -> None:
        base = load_tiny_base(tiny, None)
        run = prepare(make_spec(tiny, pairs, **DPO), base, Path("unused"))
        with torch.no_grad():
            for parameter in run.parameters:
                parameter.add_(0.05)
        assert make_one_step(base, run).mean("reward_margin") != 0.0  # against the base model
        objective = SequenceObjective(base, run.adapter, run.spec, frozen_copy(run.adapter))
        first, second = (optimizer_step(run, objective, 2048, no_keepalive) for _ in range(2))
        assert first.loss == pytest.approx(math.log(2), abs=1e-12)
        assert second.mean("reward_margin") != 0.0  # the copy has not changed

    def test_the_reference_is_the_start_adapter_if_there_is_one(self, tiny: Path, pairs: Path, tmp_path: Path) -> None:
        _, log = run_trainer(make_spec(tiny, pairs, **DPO), tmp_path)
        start = tmp_path / log.last.directory
        start_adapter = {"start_adapter": start, "start_adapter_sha256": sha256_file(start / MANIFEST)}
        base = load_tiny_base(tiny, None)
        run = prepare(make_spec(tiny, pairs, **DPO, **start_adapter), base, Path("unused"))
        assert make_one_step(base, run).loss == pytest.approx(math.log(2), abs=1e-12)


class TestMismatched:
    def dataset(self, tiny: Path, files: dict[str, Path], **changes: Any) -> TokenizedDataset:
        spec = make_spec(tiny, files["kto"], **KTO, **changes)
        return prepare(spec, load_tiny_base(tiny, None), Path("unused")).dataset

    def test_each_prompt_gets_the_answer_before_it_and_the_first_the_last(
        self, tiny: Path, files: dict[str, Path]
    ) -> None:
        dataset = self.dataset(tiny, files)
        found = mismatched(dataset, [3, 1, 8], {3, 8}, 512)
        assert list(found.lines) == [dataset.lines[3], dataset.lines[8]]
        for document, (prompt, answer) in enumerate([(3, 8), (8, 1)]):
            prompt_tokens, (answer_tokens, answer_labels) = _split(dataset, prompt)[0], _split(dataset, answer)[1:]
            tokens, labels = found.tokens_and_labels(document)
            assert list(tokens) == prompt_tokens + answer_tokens
            assert list(labels) == [0] * len(prompt_tokens) + answer_labels

    def test_no_document_is_longer_than_the_context(self, tiny: Path, files: dict[str, Path]) -> None:
        dataset = self.dataset(tiny, files, context_length=64)
        found = mismatched(dataset, range(len(dataset)), range(len(dataset)), 64)
        assert len(found) == len(dataset)
        assert max(found.length(document) for document in range(len(found))) <= 64

    def test_a_step_with_one_example_has_none(self, tiny: Path, files: dict[str, Path]) -> None:
        assert len(mismatched(self.dataset(tiny, files), [4], [4], 512)) == 0
        steps, _ = trained(tiny, files["kto"], **KTO | {"batch_size": 11}, steps=2)
        assert steps[1].mean("kl") == 0.0

    def test_the_examples_of_all_processes_are_those_of_one(
        self, tiny: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dataset, examples = self.dataset(tiny, files), [5, 2, 9, 0, 7]
        monkeypatch.setattr(parallel, "world_size", lambda: 2)
        found = []
        for rank in range(2):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            own = parallel.own_examples(examples, dataset.tokens_of)
            assert 0 < len(own) < 5
            part = mismatched(dataset, examples, own, 512)
            found += [part.tokens_and_labels(document) for document in range(len(part))]
        whole = mismatched(dataset, examples, examples, 512)
        expected = [whole.tokens_and_labels(document) for document in range(len(whole))]
        assert sorted(found) == sorted(expected)


class TestPackBatches:
    def test_a_pair_is_never_split_over_batches(self, tiny: Path, pairs: Path) -> None:
        run = prepare(make_spec(tiny, pairs, **DPO), load_tiny_base(tiny, None), Path("unused"))
        for budget in (1, 150, 400, 5000):
            for packing in (True, False):
                batches = list(pack_batches(run.dataset, range(24), budget, packing=packing))
                assert sum(len(batch.document_lengths) for batch in batches) == 24
                for batch in batches:
                    assert batch.sequences is not None
                    assert len(batch.document_lengths) == len(batch.sequences.roles_S)
                    assert len(batch.document_lengths) == 2 or (packing and len(batch.tokens_T) <= budget)

    def test_a_pair_with_equal_documents_after_truncation_is_omitted(self, tiny: Path, tmp_path: Path) -> None:
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
        spec = make_spec(tiny, tmp_path / "pairs.jsonl", context_length=64, **DPO)
        run = prepare(spec, load_tiny_base(tiny, None), Path("unused"))
        assert list(run.dataset.lines) == [1, 3]


def _plain(tiny: Path, ours: Run, spec: Any) -> dict[str, Any]:
    start = prepare(spec, load_tiny_base(tiny, None), Path("unused")).adapter.named_parameters()
    model, named = plain_peft.peft_model(tiny, ours, start, None)
    hyperparameters = spec.run.hyperparameters
    loss = SEQUENCE_LOSSES[spec.run.method, hyperparameters.loss_type]  # test_sequence_losses.py compares it with TRL
    metrics: dict[str, list[float]] = {}

    def loss_of(step: int) -> torch.Tensor:
        sums = _plain_sums(model, ours.dataset, ours.schedule.examples_of(step), spec.run.method)
        losses, values = loss.of_sums(sums, hyperparameters)
        for name, of_examples in values.items():
            metrics.setdefault(name, []).append(of_examples.nanmean().item())
        return losses.mean()

    losses, norms = plain_peft.optimize(ours, named, loss_of)
    tensors = {name: parameter.detach() for name, parameter in named.items()}
    return {"losses": losses, "metrics": metrics, "norms": norms, "tensors": tensors}


def _plain_sums(model: Any, dataset: TokenizedDataset, examples: Sequence[int], method: str) -> SequenceSums:
    rows: list[tuple[list[int], list[int], int]] = []  # tokens, positions of the targets, role
    for example in examples:
        for document in dataset.documents(example):
            tokens, labels = dataset.tokens_and_labels(document)
            rows.append((list(tokens), [at for at, label in enumerate(labels) if label], dataset.role(document)))
        if method == "orpo":
            tokens, targets, _ = rows[-2]
            rows.append((tokens, [at for at in range(1, len(tokens)) if at not in targets], 0))
    mean = torch.tensor(0.0)
    if method == "orpo":
        mean = torch.tensor([len(tokens) - 1.0 for tokens, _, role in rows if role == 1]).mean()
    elif method == "kto":
        ratios = []
        for example, other in zip(examples, [examples[-1], *examples[:-1]], strict=True):
            prompt, (answer, labels) = _split(dataset, example)[0], _split(dataset, other)[1:]
            row = prompt + answer, [len(prompt) + at for at, label in enumerate(labels) if label]
            ratios.append(_log_p(model, *row).detach() - _reference(model, *row))
        mean = torch.stack(ratios).mean()
    return SequenceSums(
        torch.stack([_log_p(model, *row[:2]) for row in rows]),
        torch.stack([_reference(model, *row[:2]) for row in rows]),
        torch.tensor([float(len(row[1])) for row in rows]),
        torch.tensor([float(row[2]) for row in rows]),
        mean,
    )


def _split(dataset: TokenizedDataset, example: int) -> tuple[list[int], list[int], list[int]]:
    """The prompt and the answer of an example with one document, and the labels of the answer."""
    tokens, labels = map(list, dataset.tokens_and_labels(dataset.documents(example)[0]))
    start = labels.index(1)
    return tokens[:start], tokens[start:], labels[start:]


@torch.no_grad()
def _reference(model: Any, tokens: list[int], targets: list[int]) -> torch.Tensor:
    with model.disable_adapter():
        return _log_p(model, tokens, targets)


def _log_p(model: Any, tokens: list[int], targets: list[int]) -> torch.Tensor:
    ids = torch.tensor(tokens)
    log_p = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
    return log_p[torch.tensor(targets) - 1].sum()
