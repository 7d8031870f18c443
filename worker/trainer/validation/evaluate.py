"""Evaluation of the run: the metrics of a complete file, with the adapter, without dropout and gradients; and greedy
answers to the sample prompts, by the base model and by the tuned model. Every process does a part of either.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.datasets.render import Renderer
from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.answers.generate import generate
from worker.trainer.data.batch import TokenizedDataset, pack_batches
from worker.trainer.distributed import parallel
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.objective.metrics import StepMetrics
from worker.trainer.objective.objective import Objective
from worker.trainer.runtime.records import Keepalive
from worker.trainer.training.state import Run

MAX_NEW_TOKENS = 64


def evaluate(objective: Objective, dataset: TokenizedDataset, row_tokens: int, keepalive: Keepalive) -> StepMetrics:
    """Evaluate every document once, in the order of the file; each process those of its examples."""
    device, examples = objective.base.device, range(len(dataset))
    metrics = StepMetrics(device, objective.metric_names)
    objective.begin_step(dataset, examples, row_tokens, keepalive)
    own = dataset.documents_of(parallel.own_examples(examples, dataset.tokens_of))
    with parallel.out_of_memory_in_all():
        for batch in pack_batches(dataset, own, row_tokens):
            keepalive("measuring the validation loss")
            metrics.add(objective.evaluate(batch.to(device)))
    metrics.set_sums(parallel.add(metrics.sums()))
    return metrics


def sample_answers(
    base: FrozenBase, run: Run, renderer: Renderer, batch_size: int | None = None
) -> list[tuple[str, str, str]]:
    """Return (prompt, the base model's answer, the tuned model's answer) for each sample prompt.

    A batch has `batch_size` prompts: None stands for all of them, 0 for no answers at all.
    """
    prompts, processes = run.spec.sample_prompts, parallel.world_size()
    if not prompts or batch_size == 0:
        return []
    own = prompts[parallel.rank() :: processes]
    tokens = [prompt_tokens(renderer, prompt) for prompt in own]
    size = batch_size or len(prompts)
    batches = [tokens[start : start + size] for start in range(0, len(tokens), size)]

    def answer(adapter: LoraAdapter | None) -> list[str]:
        return [answer for batch in batches for answer in _generate(base, batch, adapter, renderer)]

    with parallel.out_of_memory_in_all():
        run.base_answers = run.base_answers or answer(None)
        answers = list(zip(own, run.base_answers, answer(run.adapter), strict=True))
    of_processes = parallel.gather(answers)
    return [of_processes[number % processes][number // processes] for number in range(len(prompts))]


def prompt_tokens(renderer: Renderer, prompt: str) -> list[int]:
    """Return the tokens of a prompt as one user message, or as plain text without a chat template.

    Raises TemplateRefused.
    """
    if renderer.template is None:
        return renderer.encode_plain(prompt)
    return renderer.prompt([{"role": "user", "content": prompt}])[1]


def _generate(
    base: FrozenBase, prompts: Sequence[list[int]], adapter: LoraAdapter | None, renderer: Renderer
) -> list[str]:
    answers = generate(base, prompts, adapter, renderer.stop_ids, MAX_NEW_TOKENS)
    return [renderer.decode(answer).strip() for answer in answers]
