"""Before a run is prepared: its files are those that the spec names, and each knob is one that can be had here."""

from __future__ import annotations

from pathlib import Path

from app.domain.datasets.render import Renderer, TemplateRefused
from app.domain.jobs.spec import RunSpec
from app.domain.jobs.states import Reason
from app.system.artifact_directory import sha256_file
from worker.trainer.runtime.failures import Failure
from worker.trainer.validation.sample_answers import prompt_tokens


def check_inputs(run: RunSpec, workdir: Path) -> None:
    """Raises Failure: INVALID_SPEC for a knob without its validation file, the file's own reason for an altered one."""
    knobs = run.hyperparameters
    asked = {"eval_steps": knobs.eval_steps, "early_stopping": knobs.early_stopping, "promote_best": knobs.promote_best}
    for name in (name for name, value in asked.items() if value and run.validation_file is None):
        text = f"hyperparameters.{name} needs a validation file; name one, or leave the knob out."
        raise Failure(Reason.INVALID_SPEC, text, f"hyperparameters.{name}")
    _check_file(workdir / run.training_file, run.training_file_sha256, Reason.INVALID_TRAINING_FILE)
    if run.validation_file is not None:
        _check_file(workdir / run.validation_file, run.validation_file_sha256, Reason.INVALID_VALIDATION_FILE)


def check_context_length(run: RunSpec, longest: int | None) -> None:
    """Raises Failure(INVALID_SPEC) for more tokens than the base model has positions for."""
    asked = run.hyperparameters.context_length
    if longest is not None and asked > longest:
        text = (
            f"hyperparameters.context_length is {asked:,}, but the base model reads at most {longest:,} tokens; "
            f"choose up to {longest:,}."
        )
        raise Failure(Reason.INVALID_SPEC, text, "hyperparameters.context_length")


def check_prompts(run: RunSpec, renderer: Renderer) -> None:
    """Raises Failure(INVALID_SPEC) for a sample prompt that the chat template refuses: now, not after an epoch."""
    for number, prompt in enumerate(run.sample_prompts):
        try:
            prompt_tokens(renderer, prompt)
        except TemplateRefused as error:
            text = f"sample_prompts.{number}: {error}. Change this prompt, or leave it out."
            raise Failure(Reason.INVALID_SPEC, text, f"sample_prompts.{number}") from error


def _check_file(path: Path, sha256: str | None, blame: Reason) -> None:
    """A snapshot is bound to the digest in the spec, which is worth nothing if the bytes are others."""
    if sha256 is not None and sha256_file(path) != sha256:
        param = blame.removeprefix("invalid_")
        text = f"{path.name} is not the {param.replace('_', ' ')} that the spec names: its SHA-256 is not {sha256}."
        raise Failure(blame, text, param)
