"""Answers of a base model without and with an adapter: `python -m worker.trainer.answers.evaluation WORKDIR`.

WORKDIR has the files that app.domain.evaluations.spec describes. The base is loaded once; the adapter is switched on
and off. Decoding is greedy, so only the adapter makes a difference.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from operator import gt
from pathlib import Path

import torch
from pydantic import ValidationError

from app.domain.answers.trial import AnswerSpec
from app.domain.evaluations.spec import (
    ANSWERS,
    PROMPTS,
    ROLES,
    SPEC,
    Answer,
    GenerationSpec,
    GenerationStarted,
    ModelRole,
    Prompt,
)
from app.domain.jobs.states import ExitCode
from app.system.limited_rendering import limited_renderer
from worker.trainer.adapter.initial_adapter import load_adapter
from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.answers.generate import generate
from worker.trainer.kernels.kernels import choose_kernels
from worker.trainer.model.base_model import FrozenBase, open_base
from worker.trainer.runtime.device import (
    choose_compute_dtype,
    choose_device,
    choose_threads,
    device_name,
    dtype_name,
    make_repeatable,
)
from worker.trainer.runtime.failures import Failure, SuppressOutOfMemory, exit_code, is_out_of_memory
from worker.trainer.runtime.process import die_with_parent

CACHE_SHARE = 0.5  # of the free memory that dequantized weights may take


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m worker.trainer.answers.evaluation WORKDIR", file=sys.stderr)
        return ExitCode.BAD_SPEC
    die_with_parent()
    workdir = Path(arguments[0])
    try:
        spec = GenerationSpec.model_validate_json((workdir / SPEC).read_bytes())
        prompts = [Prompt.model_validate_json(line) for line in (workdir / PROMPTS).read_bytes().splitlines()]
    except (OSError, ValidationError) as error:
        print(f"The files in {workdir} cannot be read: {error}", file=sys.stderr)
        return ExitCode.BAD_SPEC
    try:
        _answer(spec, prompts, workdir)
    except Failure as error:
        print(error.message.replace("\n", " "), file=sys.stderr)
        return exit_code(error.reason)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print("Out of memory with one prompt; lower max_new_tokens, or leave out the longest prompts.", file=sys.stderr)
        return ExitCode.OUT_OF_MEMORY
    return ExitCode.DONE


def _answer(spec: GenerationSpec, prompts: list[Prompt], workdir: Path) -> None:
    base = open_base_to_answer(spec, spec.memory_budget_bytes)
    adapter = load_adapter(base, spec.lora, workdir / spec.adapter, spec.adapter_manifest_sha256)
    cache_weights_if_they_fit(base)
    renderer = limited_renderer(spec.base.directory)
    stop_ids, longest = renderer.stop_ids, spec.settings.max_new_tokens
    with (workdir / ANSWERS).open("w", encoding="utf-8", buffering=1) as answers:  # the worker reads complete lines
        started = GenerationStarted(device=device_name(base.device), compute_dtype=dtype_name(base.compute_dtype))
        answers.write(started.model_dump_json() + "\n")
        for role, batch, tokens in _generate_all(base, adapter, prompts, stop_ids, longest):
            for prompt, answer in zip(batch, tokens, strict=True):
                line = Answer(
                    row=prompt.row,
                    model=role,
                    text=renderer.decode(answer).strip(),
                    tokens=len(answer),
                    is_cut=len(answer) >= longest,
                )
                answers.write(line.model_dump_json() + "\n")


def _generate_all(
    base: FrozenBase, adapter: LoraAdapter | None, prompts: list[Prompt], stop_ids: list[int], limit: int
) -> Iterator[tuple[ModelRole, list[Prompt], list[list[int]]]]:
    """Yield the answers batch by batch, the longest prompts first, so that memory runs out early if at all."""
    waiting = sorted(prompts, key=lambda prompt: -len(prompt.tokens))
    size = base.kernels.answers_at_once
    adapters: dict[ModelRole, LoraAdapter | None] = {"base": None, "adapter": adapter}
    while waiting:
        batch = waiting[:size]
        tokens, both = [prompt.tokens for prompt in batch], []
        with SuppressOutOfMemory(partial(gt, size, 1)):
            both = [(role, generate(base, tokens, adapters[role], stop_ids, limit)) for role in ROLES]
        if not both:
            base.kernels.memory.free()
            base.cache_weights(False)
            size = max(1, len(batch) // 2)
            print(f"Out of memory with {len(batch)} prompts per batch; continuing with {size}.", file=sys.stderr)
            continue
        for role, answers in both:
            yield role, batch, answers
        waiting = waiting[size:]


def open_base_to_answer(spec: AnswerSpec | GenerationSpec, memory_budget_bytes: int | None = None) -> FrozenBase:
    """Load the base model of a program that answers, as a trainer loads it. Raises Failure."""
    kernels = choose_kernels(choose_device(spec.device))
    kernels.memory.set_limits(memory_budget_bytes)
    make_repeatable(kernels.device, spec.threads or choose_threads())
    dtype = choose_compute_dtype(spec.quantization, kernels.device, spec.dtype_is_free)
    return open_base(spec.base, spec.quantization, dtype, kernels)


def cache_weights_if_they_fit(base: FrozenBase) -> None:
    """Keep dequantized weights: without them each generated token dequantizes the whole model again."""
    weights = sum(layer.base.in_features * layer.base.out_features for layer in base.layers.values())
    cached_bytes = base.compute_dtype.itemsize * weights
    if cached_bytes <= CACHE_SHARE * base.kernels.memory.measure().free_bytes:
        with torch.no_grad():
            base.cache_weights(True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
