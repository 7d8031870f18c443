"""The trainer from spec to exit code, in stages. Each returns what the later ones need.

load      the base model on its device, the snapshot to resume from, and the plan but for its memory layout
prepare   the run before its next step, and its objective
plan      the memory layout, tested by a probe
train     the loop (loop.py)
"""

from __future__ import annotations

import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from app.domain.base_models.catalog import max_document_tokens
from app.domain.datasets.render import Renderer
from app.domain.jobs.spec import RunSpec, TokensFile, TrainerSpec
from app.domain.jobs.states import ExitCode, Reason
from app.domain.planning.estimate import CANDIDATE_ROW_TOKENS
from app.domain.planning.execution_plan import ExecutionPlan
from app.system.limited_rendering import limited_renderer
from worker.trainer.adapter.initial_adapter import initial_adapter
from worker.trainer.adapter.lora import frozen_copy
from worker.trainer.checkpoint.provenance import provenance_of, started, warn_of_differences, warn_of_slow_dtype
from worker.trainer.data.batch import TokenizedDataset, read_dataset
from worker.trainer.data.inputs import check_context_length, check_inputs, check_prompts
from worker.trainer.data.schedule import make_schedule
from worker.trainer.distributed import parallel
from worker.trainer.kernels.kernels import Kernels, choose_kernels
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy, reduce_after_kills
from worker.trainer.memory.placement import count_missing, place, planned
from worker.trainer.memory.probe import probe
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import FrozenBase, open_base
from worker.trainer.objective.objective import Objective, SequenceObjective, SupervisedObjective
from worker.trainer.objective.optimizer import allocate_moments, make_optimizer
from worker.trainer.runtime.device import (
    choose_compute_dtype,
    choose_device,
    choose_threads,
    device_name,
    dtype_name,
    make_repeatable,
    torch_dtype,
)
from worker.trainer.runtime.failures import Failure, exit_code, explain, failed, loading
from worker.trainer.runtime.process import StopRequests
from worker.trainer.runtime.records import Emit, Keepalive, RecordWriter
from worker.trainer.snapshot import restore
from worker.trainer.training.attempt import Loaded, Prepared, TrainingAttempt
from worker.trainer.training.loop import train
from worker.trainer.training.state import Run
from worker.trainer.training.step_actions import StepActions

CLEAN_EXITS = (ExitCode.DONE, ExitCode.DRAINED, ExitCode.PAUSED, ExitCode.CANCELLED)  # all processes have the same

MEMORY_HEADROOM = 1.05  # a plan that needs more than this times the memory fails without a probe


def run(spec: TrainerSpec, workdir: Path, emit: Emit, stops: StopRequests) -> int:
    """Train the run of the spec and return the exit code. The last record is `Done`, `Stopped` or `Failed`."""
    writer = RecordWriter(emit, spec.run)
    with writer.fail_run_on_error():
        try:
            attempt = TrainingAttempt(spec, workdir, writer, stops)
            loaded = _load(attempt)
            prepared = _prepare(attempt, loaded)
            policy = _plan(attempt, loaded, prepared)
            train(prepared.run, prepared.objective, policy, StepActions(attempt, loaded, prepared, policy))
        except Exception as error:
            if parallel.is_first():
                raise
            traceback.print_exc(file=sys.stderr)
            sys.exit(exit_code(explain(error, spec.run).reason))  # torchrun reports the exit code
    assert writer.ending is not None
    return exit_code(writer.ending)


def run_rank(spec: TrainerSpec, workdir: Path, emit: Emit, stops: StopRequests) -> int:
    """Train as one of `spec.world_size` processes and return the exit code."""
    try:
        parallel.join(spec.device)
    except Failure as error:
        emit(failed(error, spec.run))
        return exit_code(error.reason)
    code = run(spec, workdir, emit, stops)
    if code in CLEAN_EXITS:
        parallel.leave()
    return code


def _load(attempt: TrainingAttempt) -> Loaded:
    spec = attempt.spec
    kernels = choose_kernels(choose_device(spec.device, spec.worker_has_gpu), spec.cuda_kernels)
    kernels.memory.set_limits(spec.memory_budget_bytes)
    snapshot = attempt.open_snapshot()
    plan = snapshot.plan if snapshot else _plan_by_rules(spec, kernels)
    # Chat templates print the time of the validation that stored the tokens, or of the first attempt, so that later
    # attempts have the same tokens.
    rendered_at = plan.rendered_at or spec.run.rendered_at or parallel.broadcast(datetime.now().isoformat())
    plan = plan.model_copy(update={"rendered_at": rendered_at})
    make_repeatable(kernels.device, plan.threads)
    base = _load_base(attempt, choose_kernels(kernels.device, plan.cuda_kernels), plan)
    renderer = limited_renderer(spec.base.directory, datetime.fromisoformat(rendered_at))
    return Loaded(base, renderer.with_arguments(spec.run.chat_template_kwargs), plan, snapshot)


def _plan_by_rules(spec: TrainerSpec, kernels: Kernels) -> ExecutionPlan:
    """Choose what is fixed before the base is loaded. Its layout is that of the longest batches."""
    return ExecutionPlan(
        row_tokens=CANDIDATE_ROW_TOKENS[kernels.kind][0],
        compute_dtype=dtype_name(choose_compute_dtype(spec.quantization, kernels.device, spec.dtype_is_free)),
        threads=spec.threads or max(1, choose_threads() // parallel.world_size()),  # the processes share the cores
        device=device_name(kernels.device),
        cuda_kernels=kernels.is_fused,
    )


def _load_base(attempt: TrainingAttempt, kernels: Kernels, plan: ExecutionPlan) -> FrozenBase:
    """Load the base model and check it. Raises Failure."""
    spec, compute_dtype = attempt.spec, torch_dtype(plan.compute_dtype)
    if not spec.dtype_is_free:
        warn_of_slow_dtype(compute_dtype, spec.quantization, kernels.device, attempt.emit)
    with loading(spec):
        base = open_base(spec.base, spec.quantization, compute_dtype, kernels, keepalive=attempt.emit.keepalive)
        with register_module_forward_pre_hook(lambda *_: attempt.emit.keepalive("checking the base model")):
            check_base(base)
    if kernels.is_fused:
        fused = ", ".join(f"{count} {kind}" for kind, count in base.fused_modules.items()) or "no modules"
        problem = f": {base.fused_problem}" if base.fused_problem else ""
        attempt.emit.message(f"TUNERY_CUDA_KERNELS: fused kernels for {fused}{problem}.", "warn" if problem else "info")
    if count := base.skipped_tensors:
        attempt.emit.message(f"Only text is trained: {count} tensors of images or sound are skipped.")
    if problem := base.recurrence_problem:
        attempt.emit.message(f"flash-linear-attention is installed, but not used: {problem}", "warn")
    if not base.packs_documents:
        attempt.emit.message("Each document of a batch runs alone: layers of the base carry state between tokens.")
    return base


def _prepare(attempt: TrainingAttempt, loaded: Loaded) -> Prepared:
    spec, base, snapshot, emit = attempt.spec, loaded.base, loaded.snapshot, attempt.emit
    run = new_run(spec.run, attempt.workdir, base, loaded.renderer, provenance_of(spec, base), emit.keepalive)
    objective = make_objective(base, run)  # copies the initial adapter as the reference, so before the restore
    if snapshot:
        restore(run, snapshot)
        warn_of_differences(run, snapshot, base, emit)
    emit(started(run, base))
    return Prepared(run, objective)


def new_run(
    spec: RunSpec, workdir: Path, base: FrozenBase, renderer: Renderer, provenance: dict[str, Any], keepalive: Keepalive
) -> Run:
    """Make everything the run needs before its first step. Raises Failure for an invalid spec or file."""
    check_inputs(spec, workdir)
    check_context_length(spec, max_document_tokens(base.text_config.to_dict()))
    check_prompts(spec, renderer)

    def read(path: Path, reason: Reason, stored: TokensFile | None) -> TokenizedDataset:
        return read_dataset(renderer, workdir / path, spec.data_parameters, reason, keepalive, stored)

    adapter = initial_adapter(spec, workdir, base)
    dataset = read(spec.training_file, Reason.INVALID_TRAINING_FILE, spec.training_tokens)
    validation_dataset = None
    if spec.validation_file:
        validation_dataset = read(spec.validation_file, Reason.INVALID_VALIDATION_FILE, spec.validation_tokens)
    return Run(
        spec=spec,
        schedule=make_schedule(spec.hyperparameters, len(dataset), spec.seed),
        dataset=dataset,
        validation_dataset=validation_dataset,
        adapter=adapter,
        optimizer=make_optimizer(adapter.named_parameters(), spec.hyperparameters),
        directory=workdir / "runs" / spec.run_id,
        provenance=provenance,
    )


def make_objective(base: FrozenBase, run: Run) -> Objective:
    """Return the objective of a run; the reference is the adapter as it is now."""
    if run.spec.method == "supervised":
        return SupervisedObjective(base, run.adapter)
    reference = frozen_copy(run.adapter) if run.spec.start_adapter is not None else None
    return SequenceObjective(base, run.adapter, run.spec, reference)


def _plan(attempt: TrainingAttempt, loaded: Loaded, prepared: Prepared) -> OutOfMemoryPolicy:
    """Return the owner of the complete plan. It is that of the snapshot, unless it takes more memory than there is.

    That is after the kernel killed an attempt for memory, and in a slot with less memory than the earlier plan takes.
    """
    spec, plan, emit = attempt.spec, loaded.plan, attempt.emit
    recomputation = Recomputation(loaded.base)
    fits_slot = spec.memory_budget_bytes is None or plan.peak_bytes <= spec.memory_budget_bytes
    if loaded.snapshot is None or not fits_slot or spec.out_of_memory_kills > plan.out_of_memory_kills:
        plan = _plan_layout(spec, loaded, prepared.run, recomputation, emit)
    policy = OutOfMemoryPolicy(plan, loaded.base, recomputation, emit)
    _probe(prepared, policy, emit)
    return policy


def _plan_layout(
    spec: TrainerSpec, loaded: Loaded, run: Run, recomputation: Recomputation, emit: RecordWriter
) -> ExecutionPlan:
    """Return the plan with the fastest layout that fits. Raises Failure(OUT_OF_MEMORY) if even the smallest fails."""
    counted = count_missing(spec, loaded.base, run, recomputation)
    placement = place(spec, loaded.base, run, loaded.plan.row_tokens, counted)
    emit(planned(run, placement, counted))
    if placement.memory.total > MEMORY_HEADROOM * placement.device.memory_bytes:
        raise Failure(Reason.OUT_OF_MEMORY, placement.message, "hyperparameters.context_length")
    plan = loaded.plan.with_layout(placement.plan).model_copy(update={"peak_bytes": placement.memory.total})
    return reduce_after_kills(plan, spec.out_of_memory_kills)


def _probe(prepared: Prepared, policy: OutOfMemoryPolicy, emit: RecordWriter) -> None:
    """Run the largest batch of a new plan before the first step; reduce the plan if it runs out of memory.

    The moments are allocated first, also without a probe: one of several processes cannot repeat a step that fails in
    the optimizer. A complete run has no step, and gets neither.
    """
    run, objective = prepared.run, prepared.objective
    if run.is_complete:
        return
    policy.retry_step(run, lambda _: allocate_moments(run.optimizer))
    if policy.plan.probed:
        return
    measured = policy.retry_step(run, lambda row_tokens: probe(objective, run, row_tokens))
    changes: dict[str, Any] = {"probed": True}
    if measured is not None:
        emit(measured)
        changes["peak_bytes"] = measured.peak_bytes
    policy.plan = policy.plan.model_copy(update=changes)
