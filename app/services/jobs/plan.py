"""The plan of a job before it is created: memory and time, estimated for the devices of living workers.

One transaction reads the inputs; tokens are counted and the estimate is made without one. Nothing is written.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from sqlalchemy.orm import Session

from app.db.jobs import evaluations
from app.db.scheduling import workers
from app.db.tables import BaseModelRow, File
from app.domain.base_models.catalog import CatalogEntry, RefusedModel
from app.domain.datasets.report import (
    DatasetReport,
    build_report,
    no_trainable_tokens_message,
    too_few_examples_message,
)
from app.domain.datasets.warnings import NO_VALIDATION_FILE, UNREAD, build_warnings, request_warning
from app.domain.evaluations import graders
from app.domain.evaluations.graders import EvaluationPlan
from app.domain.jobs.layer_patterns import PatternError, match_spec
from app.domain.jobs.spec import DataParameters, JobSpec
from app.domain.planning.estimate import DeviceGroup, Placement, estimate_on
from app.domain.planning.memory import DESCRIBED_ARCHITECTURES
from app.domain.planning.packing import Workload
from app.domain.scheduling.worker_capacity import missing_requirements, worker_capacity
from app.errors import BadRequest, InvalidDataset, NotFound, Unavailable, combine_errors
from app.services.datasets.check_process import CheckProcess, takes_long
from app.services.jobs.requests import build_job
from app.storage import Storage
from app.system.model_files import read_catalog_entry

DEADLINE_SECONDS = 300.0
MAX_CACHED_REPORTS = 16

Key = tuple[str, str, DataParameters]


class NotCountedError(Exception):
    """No report on the file is cached."""


class TokenCounter:
    """Counts tokens; caches reports by (hash of the model, hash of the file, data parameters)."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._cached_reports: OrderedDict[Key, DatasetReport] = OrderedDict()
        self._lock = threading.Lock()

    def count(
        self, key: Key, model_directory: Path, file: BinaryIO, param: str, check: CheckProcess | None
    ) -> DatasetReport:
        """Return the report on `file`; without a `check` only from the cache.

        Raises NotCountedError without a `check`, BadRequest for a file that takes longer than a request may, and as
        CheckProcess.run_with_renderer.
        """
        with self._lock:
            if key in self._cached_reports:
                self._cached_reports.move_to_end(key)
                return self._cached_reports[key]
        if check is None:
            raise NotCountedError
        report = self._count(key, model_directory, file, param, check)
        with self._lock:
            self._cached_reports[key] = report
            while len(self._cached_reports) > MAX_CACHED_REPORTS:
                self._cached_reports.popitem(last=False)
        return report

    def _count(self, key: Key, model_directory: Path, file: BinaryIO, param: str, check: CheckProcess) -> DatasetReport:
        _, _, parameters = key
        try:
            return check.run_with_renderer(
                model_directory,
                build_report,
                parameters,
                self._max_line_bytes,
                files=[file],
                deadline_seconds=DEADLINE_SECONDS,
                max_line_bytes=self._max_line_bytes,
            )
        except TimeoutError as error:
            text = f"{param}: counting its tokens takes longer than {DEADLINE_SECONDS:.0f} s; create the job instead"
            raise BadRequest(f"{text}, whose validation counts them", param, "file_too_large_to_plan") from error


PlanVerdict = Literal["fits", "no_device_fits", "no_worker"]
UNCOUNTED = (
    "The memory is that of a Llama of the same size: the layers of this base model were not counted when it was "
    "registered, and will be in its first job."
)


@dataclass(frozen=True)
class PlanInputs:
    """The resolved request, its files, and the devices of living workers that may take the job."""

    spec: JobSpec
    entry: CatalogEntry
    directory: Path
    manifest_sha256: str
    files: Mapping[str, File]  # by parameter
    places: Sequence[DeviceGroup]
    lack: str | None  # why no worker may take the job
    warnings: Sequence[dict[str, Any]]
    seconds_per_answer: float | None  # of the last evaluation of the base model

    @property
    def training_file(self) -> File:
        return self.files["training_file"]


class PlannedDevice(NamedTuple):
    workers: int
    placement: Placement


@dataclass(frozen=True)
class JobPlan:
    inputs: PlanInputs
    report: DatasetReport
    validation: DatasetReport | None
    work: Workload
    devices: Sequence[PlannedDevice]  # in the order of inputs.places

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """Those about the request, and about arguments that the base model's chat template does not read."""
        spec, file_id = self.inputs.spec, self.inputs.training_file.id
        lines = {code: each for code, each in self.report.warning_lines.items() if code.startswith(UNREAD)}
        unread = build_warnings(lines, spec.method, spec.hyperparameters.context_length, 0)
        about_file = [vars(each) | {"file": file_id, "message": f"Training file: {each.message}"} for each in unread]
        return [*self.inputs.warnings, *about_file]

    @property
    def placements(self) -> list[Placement]:
        return [device.placement for device in self.devices]

    @property
    def evaluation(self) -> EvaluationPlan | None:
        """The evaluation after the training; its rows are known if they are those of the validation file."""
        request = self.inputs.spec.evaluation
        if request is None:
            return None
        rows, prompt_tokens, report = None, None, self.validation
        if report is not None and self.inputs.files["validation_file"].id == request.file:
            rows = min(report.examples, request.max_rows)
            prompt_tokens = (report.tokens - report.labelled_tokens) * rows // report.examples
        fitting = [self.work.tokens / each.seconds for each in self.placements if each.fits]
        speed = {"tokens_per_second": max(fitting, default=None)}
        return graders.make_plan(request, rows, prompt_tokens, self.inputs.seconds_per_answer, speed)

    @property
    def trained_examples(self) -> int:
        return len(self.report.lengths)

    @property
    def verdict(self) -> PlanVerdict:
        if not self.placements:
            return "no_worker"
        return "fits" if any(each.fits for each in self.placements) else "no_device_fits"

    @property
    def message(self) -> str:
        if not self.placements:
            lack = self.inputs.lack or "No worker that may take the job reports its device."
            return f"{lack} Memory and time cannot be compared with a device; the job would wait."
        fitting = [each for each in self.placements if each.fits]
        entry = self.inputs.entry
        is_exact = entry.activation_bytes or entry.architecture in DESCRIBED_ARCHITECTURES
        uncounted = "" if is_exact else f" {UNCOUNTED}"
        if fitting:
            return min(fitting, key=lambda each: each.seconds).message + uncounted
        nearest = min(self.placements, key=lambda each: each.memory.total / each.device.memory_bytes)
        return nearest.message + uncounted


def read_inputs(
    session: Session, project_id: str, is_admin: bool, body: Mapping[str, Any], endpoints: Collection[str]
) -> PlanInputs:
    """Read the inputs of a plan. Raises as the creation of the job, except for limits of the project."""
    job = build_job(session, project_id, is_admin, body, endpoints)
    spec, base = JobSpec.model_validate(job.spec), session.get_one(BaseModelRow, job.base_model)
    ids = {"training_file": job.training_file_id, "validation_file": job.validation_file_id}
    missing = [] if job.validation_file_id else [request_warning("no_validation_file", NO_VALIDATION_FILE)]
    capacities = [worker_capacity(worker.about) for worker in workers.gpu_workers(session)]
    return PlanInputs(
        spec=spec,
        entry=base.catalog_entry,
        directory=Path(base.directory),
        manifest_sha256=base.manifest_sha256,
        files={param: session.get_one(File, file_id) for param, file_id in ids.items() if file_id},
        places=workers.candidate_devices(session, spec, base.manifest_sha256, job.requirements),
        lack=missing_requirements(capacities, job.requirements),
        warnings=[*job.warnings, *missing],
        seconds_per_answer=evaluations.seconds_per_answer(session, base.name),
    )


def is_long(inputs: PlanInputs) -> bool:
    """Whether counting the tokens of one of the files takes long."""
    return takes_long(inputs.directory, max(file.bytes for file in inputs.files.values()))


def make_plan(
    storage: Storage, counter: TokenCounter, inputs: PlanInputs, least_examples: int, check: CheckProcess | None
) -> JobPlan:
    """Count tokens and estimate the job on each device.

    Raises InvalidDataset and BadRequest for files that cannot be trained on, and what TokenCounter.count raises.
    """
    report = _count(storage, counter, inputs, "training_file", check)
    if report.examples < least_examples:
        raise InvalidDataset(too_few_examples_message("training", report.examples, least_examples), "training_file")
    has_validation = "validation_file" in inputs.files
    validation = _count(storage, counter, inputs, "validation_file", check) if has_validation else None
    validation_tokens = validation.tokens if validation else 0
    work = Workload.of(inputs.spec, report.lengths, report.labelled_tokens, validation_tokens)
    entry = _with_layer_widths(inputs.entry, inputs.directory)
    spec = _with_matched_layers(inputs.spec, entry)
    devices = [PlannedDevice(each.workers, estimate_on(entry, spec, work, each)) for each in inputs.places]
    return JobPlan(inputs, report, validation, work, devices)


def _count(
    storage: Storage, counter: TokenCounter, inputs: PlanInputs, param: str, check: CheckProcess | None
) -> DatasetReport:
    source, spec = inputs.files[param], inputs.spec
    key = (inputs.manifest_sha256, source.sha256, spec.data_parameters)
    try:
        with storage.open(source.storage_key) as file:
            report = counter.count(key, inputs.directory, file, param, check)
    except FileNotFoundError as error:
        text = f"invalid {param}: {source.id}. Its content does not exist in storage any more; upload it again."
        raise NotFound(text, param) from error
    unfit = InvalidDataset if param == "training_file" else BadRequest
    if report.findings:
        raise unfit(report.findings_text, param)
    if not len(report.lengths):
        raise unfit(no_trainable_tokens_message(spec.method, spec.hyperparameters.context_length), param)
    return report


def _with_matched_layers(spec: JobSpec, entry: CatalogEntry) -> JobSpec:
    """The spec with patterns matched against single layers, once the names of the layers are known."""
    try:
        return match_spec(spec, entry.layers)
    except PatternError as error:
        raise combine_errors([BadRequest(f"{param}: {text}", param) for param, text in error.problems]) from error


def _with_layer_widths(entry: CatalogEntry, directory: Path) -> CatalogEntry:
    """The entry with the widths of layers, read from the directory if an earlier release registered the model."""
    if entry.decoder_layers:
        return entry
    try:
        return read_catalog_entry(directory)
    except (RefusedModel, OSError) as error:
        raise Unavailable("The base model's directory cannot be read by the API; ask its operator.", "model") from error
