"""Prepare an evaluation: load its rows, read and check its file, fetch the adapter, and write the spec of the
generation.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.orm import Session

from app.db.tables import BaseModelRow, Evaluation, File, Job
from app.domain.datasets.chat_template import UnusableTemplate
from app.domain.datasets.jsonl import Finding, format_findings
from app.domain.datasets.render import Renderer, TemplateRefused
from app.domain.datasets.template_arguments import ChatTemplateArguments, merge_arguments
from app.domain.evaluations.graders import EvaluationSettings, JsonFields, LabelAccuracy
from app.domain.evaluations.rows import (
    MAX_NAMES,
    EvaluationRow,
    grader_findings,
    label_of,
    parse_json_object,
    read_rows,
    selected_indices,
)
from app.domain.evaluations.spec import (
    GRADING,
    PROMPTS,
    ROWS,
    SPEC,
    EvaluationErrorCode,
    GenerationSpec,
    GenerationStarted,
    GradingSpec,
    ModelAnswer,
    Prompt,
    Scored,
    precision_text,
)
from app.domain.evaluations.templates import compared_text
from app.domain.jobs.spec import BaseSpec, JobSpec
from app.settings import Settings
from app.system.limited_rendering import UnreadableTokenizer, read_in_process
from worker.jobs.base_and_adapter import (
    AttemptFailed,
    FetchedAdapter,
    fetch_adapter,
    layer_lora,
    load_base_and_adapter,
    unusable_base,
    verify_base,
)
from worker.jobs.lease import LeaseKeeper
from worker.node.device import training_device
from worker.node.resources import Resources

MAX_FINDINGS = 10
MAX_ROWS_BYTES = 128 << 20  # of the selected rows, which are held in memory


class InvalidEvaluationFile(ValueError):
    """The message names the lines."""


@dataclass(frozen=True)
class EvaluationInputs:
    """The selected rows, each with the tokens of its prompt."""

    rows: list[EvaluationRow]
    prompts: Sequence[Sequence[int]]
    rows_in_file: int

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


def read_checked_inputs(
    open_file: Callable[[], BinaryIO],
    settings: EvaluationSettings,
    arguments: ChatTemplateArguments | None,
    model_directory: Path,
    context_length: int,
    max_line_bytes: int,
    check: Callable[[], None],
) -> EvaluationInputs:
    """Read the file in a process with limits, as the base model's chat template runs there.

    `arguments` are those of the job. `check` is called meanwhile, to raise an error that ends the work. Raises
    InvalidEvaluationFile, UnreadableTokenizer, UnusableTemplate, OSError.
    """
    with open_file() as file, open_file() as again:
        inputs: EvaluationInputs = read_in_process(
            model_directory,
            read_inputs,
            settings,
            arguments,
            context_length,
            max_line_bytes,
            files=[file, again],
            max_line_bytes=max_line_bytes,
            check=check,
        )
    return inputs


def read_inputs(
    renderer: Renderer,
    settings: EvaluationSettings,
    arguments: ChatTemplateArguments | None,
    context_length: int,
    max_line_bytes: int,
    file: BinaryIO,
    again: BinaryIO,
) -> EvaluationInputs:
    """Read the file twice, as it may be larger than memory: for its problems, then for the selected rows.

    Raises InvalidEvaluationFile, OSError.
    """
    count = _check_lines(file, settings, max_line_bytes)
    selected = selected_indices(count, settings.max_rows)
    rows: list[EvaluationRow] = []
    prompts: list[array[int]] = []
    findings: list[Finding] = []
    size_bytes = 0
    for index, row in enumerate(read_rows(again, max_line_bytes)):
        if index not in selected or isinstance(row, Finding):
            continue
        size_bytes += row.size_bytes
        if size_bytes > MAX_ROWS_BYTES:
            raise InvalidEvaluationFile(
                f"Line {row.line}: the evaluated rows have more than {MAX_ROWS_BYTES:,} bytes together; set a lower "
                "max_rows, or leave out fields that no grader needs."
            )
        rows.append(row)
        of_row = renderer.with_arguments(merge_arguments(arguments, row.chat_template_kwargs))
        prompts.append(array("I", _prompt(row, of_row, context_length - settings.max_new_tokens, findings)))
    _check_names(rows, settings)
    _raise_if(findings)
    return EvaluationInputs(rows, prompts, count)


def _check_lines(file: BinaryIO, settings: EvaluationSettings, max_line_bytes: int) -> int:
    """The number of rows. Raises InvalidEvaluationFile."""
    findings: list[Finding] = []
    problems = count = 0
    for row in read_rows(file, max_line_bytes):
        count += 1
        for finding in _findings(row, settings):
            problems += 1
            if len(findings) < MAX_FINDINGS:
                findings.append(finding)
    if not count:
        raise InvalidEvaluationFile("The evaluation file has no rows.")
    _raise_if(findings, problems)
    return count


def _findings(row: EvaluationRow | Finding, settings: EvaluationSettings) -> Iterator[Finding]:
    if isinstance(row, Finding):
        yield row
    else:
        yield from grader_findings(row, settings)


def _check_names(rows: list[EvaluationRow], settings: EvaluationSettings) -> None:
    """Raises InvalidEvaluationFile if the summary of a grader would name more than MAX_NAMES labels or fields."""
    for grader in settings.graders:
        names: set[str] = set()
        if isinstance(grader, LabelAccuracy) and grader.labels is None:
            names.update(label_of(compared_text(grader.reference, row.item), grader) for row in rows)
            what, remedy = "labels", "Use a string_check instead"
        elif isinstance(grader, JsonFields) and grader.fields is None:
            names.update(*(parse_json_object(compared_text(grader.reference, row.item)) or () for row in rows))
            what, remedy = "fields", "Name the compared ones in `fields`"
        if len(names) > MAX_NAMES:
            raise InvalidEvaluationFile(
                f"The grader {grader.name} found {len(names)} different {what} in the file; at most {MAX_NAMES} are "
                f"allowed. {remedy}."
            )


def _prompt(row: EvaluationRow, renderer: Renderer, max_tokens: int, findings: list[Finding]) -> list[int]:
    """The tokens of a prompt; empty after a finding was added."""
    try:
        if row.prompt is not None:
            tokens = renderer.encode_plain(row.prompt)
        else:
            tokens = renderer.prompt(row.messages, row.tools, max_tokens)[1]
    except TemplateRefused as error:
        findings.append(Finding(row.line, str(error), "template_refused"))
        return []
    if not tokens:
        findings.append(Finding(row.line, "the prompt is empty", "empty_prompt"))
    if len(tokens) > max_tokens:
        text = (
            f"the prompt has {len(tokens):,} tokens; with max_new_tokens at most {max(0, max_tokens):,} fit into the "
            "context of the base model"
        )
        findings.append(Finding(row.line, text, "prompt_too_long"))
    return tokens


def _raise_if(findings: list[Finding], problems: int | None = None) -> None:
    if not findings:
        return
    total = len(findings) if problems is None else problems
    text = format_findings(findings[:MAX_FINDINGS])
    if total > MAX_FINDINGS:
        text += f" These are the first {MAX_FINDINGS} of {total} problems."
    raise InvalidEvaluationFile(text)


@dataclass(frozen=True)
class LoadedEvaluation:
    """The rows of an evaluation, read in one transaction, and the base model's files, verified."""

    evaluation: Evaluation
    job: Job
    base: BaseModelRow
    base_spec: BaseSpec
    file: File
    adapter_files: list[File]

    @property
    def settings(self) -> EvaluationSettings:
        return EvaluationSettings.model_validate(self.evaluation.settings)

    @property
    def is_quantized(self) -> bool:
        return self.settings.base_precision == "trained"

    def precision(self, started: GenerationStarted) -> str:
        """The precision of the base model, as text."""
        quantization = self.job.spec["quantization"] if self.is_quantized else None
        return precision_text(quantization, started.compute_dtype)


def load(keeper: LeaseKeeper[Evaluation], evaluation: Evaluation) -> LoadedEvaluation:
    """Load the rows, and verify the base model's files. Raises AttemptFailed, FencedError."""

    def read(session: Session) -> tuple[Job, File, BaseModelRow, list[File]]:
        job, file = session.get_one(Job, evaluation.job_id), session.get_one(File, evaluation.file_id)
        return job, file, *load_base_and_adapter(session, evaluation)

    job, file, base, adapter_files = keeper.transact(read)
    return LoadedEvaluation(evaluation, job, base, verify_base(base), file, adapter_files)


def read_file(resources: Resources, loaded: LoadedEvaluation, check: Callable[[], None]) -> EvaluationInputs:
    """Read and check the evaluation file. Raises AttemptFailed, OSError, and what `check` raises."""
    try:
        return read_checked_inputs(
            lambda: resources.storage.open(loaded.file.storage_key),
            loaded.settings,
            JobSpec.model_validate(loaded.job.spec).chat_template_kwargs,
            Path(loaded.base.directory),
            loaded.base.catalog_entry.context_length,
            resources.settings.max_line_bytes,
            check,
        )
    except InvalidEvaluationFile as error:
        raise AttemptFailed(EvaluationErrorCode.INVALID_FILE, str(error), is_final=True) from error
    except (UnreadableTokenizer, UnusableTemplate) as error:
        raise unusable_base(loaded.base.name, str(error)) from error
    except FileNotFoundError as error:
        text = f"The content of {loaded.file.id} is missing in storage"
        raise AttemptFailed(EvaluationErrorCode.SERVER_ERROR, text) from error


def write_spec(resources: Resources, loaded: LoadedEvaluation, inputs: EvaluationInputs, directory: Path) -> None:
    """Fetch the adapter into `directory` and write the files of the generation. Raises AttemptFailed, OSError."""
    adapter = fetch_adapter(resources.storage, loaded.adapter_files, loaded.base, directory)
    spec = _spec(resources.settings, loaded, adapter)
    (directory / SPEC).write_text(spec.model_dump_json(), encoding="utf-8")
    with (directory / PROMPTS).open("w", encoding="utf-8") as file:
        for index, tokens in enumerate(inputs.prompts):
            file.write(f"{Prompt(row=index, tokens=list(tokens)).model_dump_json()}\n")


def write_grading(
    loaded: LoadedEvaluation,
    inputs: EvaluationInputs,
    started: GenerationStarted,
    seconds: float,
    answers: Mapping[str, Sequence[ModelAnswer]],
    scores: Mapping[str, Mapping[str, Sequence[Scored]]],
    directory: Path,
) -> None:
    """Write the files of the grading. `scores` are those of the graders that ask an endpoint."""
    evaluation = loaded.evaluation
    spec = GradingSpec(
        id=evaluation.id,
        job_id=evaluation.job_id,
        file_id=evaluation.file_id,
        model=evaluation.model,
        base_model=evaluation.base_model,
        settings=loaded.settings,
        rows_in_file=inputs.rows_in_file,
        precision=loaded.precision(started),
        device=started.device,
        seconds=seconds,
    )
    (directory / GRADING).write_text(spec.model_dump_json(), encoding="utf-8")
    with (directory / ROWS).open("w", encoding="utf-8") as file:
        for index, row in enumerate(inputs.rows):
            graded = {
                "row": vars(row),
                "answers": {model: vars(by_row[index]) for model, by_row in answers.items()},
                "scores": {
                    grader: {model: vars(by_row[index]) for model, by_row in by_model.items()}
                    for grader, by_model in scores.items()
                },
            }
            file.write(json.dumps(graded) + "\n")


def _spec(settings: Settings, loaded: LoadedEvaluation, adapter: FetchedAdapter) -> GenerationSpec:
    spec, budget = JobSpec.model_validate(loaded.job.spec), loaded.evaluation.budget_bytes
    return GenerationSpec(
        base=loaded.base_spec,
        quantization=spec.quantization if loaded.is_quantized else None,
        dtype_is_free=spec.dtype_is_free,
        lora=layer_lora(adapter, loaded.base),
        adapter=adapter.directory,
        adapter_manifest_sha256=adapter.manifest_sha256,
        settings=loaded.settings,
        device=settings.device,
        threads=settings.threads,
        memory_budget_bytes=budget if budget and budget < training_device(settings.device).memory_bytes else None,
    )
