"""Checks of a run before it is prepared: files, context length, parameters that need a validation file, prompts."""

from __future__ import annotations

from pathlib import Path

from app.domain.datasets.render import Renderer, TemplateRefused
from app.domain.jobs.spec import RunSpec
from app.domain.jobs.states import Reason
from app.system.artifact_directory import sha256_file
from worker.trainer.runtime.failures import Failure
from worker.trainer.validation.evaluate import prompt_tokens


def check_inputs(run: RunSpec, workdir: Path) -> None:
    """Check the files of the run, and that a validation file is there if a hyperparameter needs one.

    Raises Failure: INVALID_SPEC without a needed validation file; INVALID_TRAINING_FILE or INVALID_VALIDATION_FILE for
    a file whose digest is not the one in the spec.
    """
    for name in ("eval_steps", "early_stopping", "promote_best"):
        if getattr(run.hyperparameters, name) and run.validation_file is None:
            text = f"hyperparameters.{name} needs a validation file. Add one, or omit this parameter."
            raise Failure(Reason.INVALID_SPEC, text, f"hyperparameters.{name}")
    _check_file(workdir / run.training_file, run.training_file_sha256, Reason.INVALID_TRAINING_FILE)
    if run.validation_file is not None:
        _check_file(workdir / run.validation_file, run.validation_file_sha256, Reason.INVALID_VALIDATION_FILE)


def check_context_length(run: RunSpec, max_tokens: int | None) -> None:
    """Raises Failure(INVALID_SPEC) if the context length exceeds the `max_tokens` positions of the base model."""
    context_length = run.hyperparameters.context_length
    if max_tokens is not None and context_length > max_tokens:
        text = (
            f"hyperparameters.context_length is {context_length:,}, but the base model reads at most {max_tokens:,} "
            f"tokens; choose up to {max_tokens:,}."
        )
        raise Failure(Reason.INVALID_SPEC, text, "hyperparameters.context_length")


def check_prompts(run: RunSpec, renderer: Renderer) -> None:
    """Raises Failure(INVALID_SPEC) for a sample prompt that the chat template refuses, before time is spent on it."""
    for number, prompt in enumerate(run.sample_prompts):
        try:
            prompt_tokens(renderer, prompt)
        except TemplateRefused as error:
            text = f"sample_prompts.{number}: {error}. Change this prompt, or omit it."
            raise Failure(Reason.INVALID_SPEC, text, f"sample_prompts.{number}") from error


def _check_file(path: Path, sha256: str | None, failure_reason: Reason) -> None:
    """Compare the digest. Snapshots are bound to the digest in the spec, so the file must really have it."""
    if sha256 is not None and sha256_file(path) != sha256:
        param = failure_reason.removeprefix("invalid_")
        text = f"{path.name} is not the {param.replace('_', ' ')} that the spec names: its SHA-256 is not {sha256}."
        raise Failure(failure_reason, text, param)
