"""Evaluation of the run: the metrics of a complete file, with the adapter, without dropout and gradients; and greedy
answers to the sample prompts, by the base model and by the tuned model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from app.domain.datasets.render import Renderer
from app.domain.evaluations.spec import precision_text
from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.answers.generate import generate
from worker.trainer.data.batch import TokenizedDataset, pack_batches
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy, reduce_prompts
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.objective.metrics import StepMetrics
from worker.trainer.objective.objective import Objective
from worker.trainer.runtime.records import Keepalive, RecordWriter
from worker.trainer.training.attempt import Loaded
from worker.trainer.training.state import Run

MAX_NEW_TOKENS = 64


def evaluate(objective: Objective, dataset: TokenizedDataset, row_tokens: int, keepalive: Keepalive) -> StepMetrics:
    """Evaluate every document once, in the order of the file."""
    device = objective.base.device
    metrics = StepMetrics(device, objective.metric_names)
    objective.begin_validation(dataset, row_tokens, keepalive)
    for batch in pack_batches(dataset, dataset.documents_of(range(len(dataset))), row_tokens):
        keepalive("measuring the validation loss")
        metrics.add(objective.evaluate(batch.to(device)))
    return metrics


def report_samples(loaded: Loaded, run: Run, policy: OutOfMemoryPolicy, emit: RecordWriter) -> None:
    """Emit the answers of the base model and of the tuned model to each sample prompt."""

    def work() -> list[tuple[str, str, str]]:
        return list(sample_answers(loaded.base, run, loaded.renderer, policy.plan.prompts_at_once))

    reduce = partial(reduce_prompts, len(run.spec.sample_prompts))
    quantization = loaded.base.quantization
    precision = precision_text(quantization.model_dump() if quantization else None)
    for prompt, base, tuned in policy.retry(run, "answering the sample prompts", work, reduce):
        text = f"Sample after step {run.step}: answers of the base model in {precision} and of the tuned model."
        emit.message(text, step=run.step, prompt=prompt, base=base, tuned=tuned)


def sample_answers(
    base: FrozenBase, run: Run, renderer: Renderer, batch_size: int | None = None
) -> Iterator[tuple[str, str, str]]:
    """Yield (prompt, the base model's answer, the tuned model's answer) for each sample prompt.

    A batch has `batch_size` prompts: None stands for all of them, 0 for no answers at all.
    """
    prompts = run.spec.sample_prompts
    if not prompts or batch_size == 0:
        return
    tokens = [prompt_tokens(renderer, prompt) for prompt in prompts]
    size = batch_size or len(tokens)
    batches = [tokens[start : start + size] for start in range(0, len(tokens), size)]

    def answer(adapter: LoraAdapter | None) -> list[str]:
        return [answer for batch in batches for answer in _generate(base, batch, adapter, renderer)]

    run.base_answers = run.base_answers or answer(None)
    yield from zip(prompts, run.base_answers, answer(run.adapter), strict=True)


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
