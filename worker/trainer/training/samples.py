"""Answers to the sample prompts, as events."""

from __future__ import annotations

from functools import partial

from app.domain.evaluations.spec import precision_text
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy, reduce_prompts
from worker.trainer.runtime.records import RecordWriter
from worker.trainer.training.attempt import Loaded
from worker.trainer.training.state import Run
from worker.trainer.validation.evaluate import sample_answers


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
