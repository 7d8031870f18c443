"""The table of contents: a spec -> device -> base -> runs -> loop -> exit code. Each line has a room of its own."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from app.domain.catalog import longest_document
from app.domain.render import Renderer
from app.domain.spec import RunSpec, TrainerSpec
from app.domain.states import ExitCode, Reason
from worker.trainer import device_memory, parallel
from worker.trainer.attempt import Attempt, Earlier, open_earlier
from worker.trainer.autotune import fastest_way
from worker.trainer.base_check import check_base
from worker.trainer.batch import Corpus, read_corpus, reference_id
from worker.trainer.bookkeeping import Bookkeeper
from worker.trainer.device import (
    Way,
    choose_compute_dtype,
    choose_device,
    choose_threads,
    device_name,
    dtype_name,
    make_repeatable,
    with_compute_dtype,
)
from worker.trainer.emit import Emit, Ledger, Pulse
from worker.trainer.facts import facts_of, started, warn_of_differences, warn_of_slow_dtype
from worker.trainer.failures import Failure, exit_code, explain, failed, loading
from worker.trainer.initial_adapter import initial_adapter
from worker.trainer.inputs import check_context_length, check_inputs, check_prompts
from worker.trainer.loop import train
from worker.trainer.lora import frozen_copy
from worker.trainer.model import Base, open_base
from worker.trainer.oom_in_step import MemoryLayout
from worker.trainer.openmp import cores_watched
from worker.trainer.optim import make_optimizer
from worker.trainer.placement import place, planned
from worker.trainer.plan import make_plan
from worker.trainer.probe import probe
from worker.trainer.recompute import Recomputation
from worker.trainer.snapshot import Choices, Snapshot, restore
from worker.trainer.state import Run
from worker.trainer.stop import Stops

ORDERLY = (ExitCode.DONE, ExitCode.DRAINED, ExitCode.PAUSED, ExitCode.CANCELLED)  # every process has come to its end

HOPELESS = 1.05  # times the memory there is: nearer to it, only trying tells


def run(spec: TrainerSpec, workdir: Path, emit: Emit, stops: Stops) -> int:
    """Train every run of the spec. Each ends with one last record; the exit code is the first that is not DONE."""
    say = Ledger(emit)
    attempt = Attempt(spec, workdir, say, stops)
    try:
        _run(attempt)
    except Exception as error:  # of the base or of a shared step: nobody's in particular, so everybody's
        traceback.print_exc(file=sys.stderr)
        if not parallel.is_first():  # the first one hears of it from torchrun
            sys.exit(exit_code(explain(error, spec.runs[0]).reason))
        for each in attempt.unfinished():
            say(failed(error, each))
    codes = [exit_code(say.endings[each.run_id]) for each in spec.runs]
    return next((code for code in codes if code), 0)


def run_rank(spec: TrainerSpec, workdir: Path, emit: Emit, stops: Stops) -> int:
    """The same as one of `spec.world_size` processes."""
    try:
        parallel.join(spec.device)
    except Failure as error:
        for each in spec.runs:
            emit(failed(error, each))
        return exit_code(error.reason)
    code = run(spec, workdir, emit, stops)
    if code in ORDERLY:
        parallel.leave()
    return code


def _run(attempt: Attempt) -> None:
    device_memory.return_what_is_freed()
    device = choose_device(attempt.spec.device)
    earlier = open_earlier(attempt)
    way = _way(attempt, device, earlier.choices)
    make_repeatable(device, way.threads)
    with cores_watched(way.threads):
        _train(attempt, device, way, earlier)


def _train(attempt: Attempt, device: torch.device, way: Way, earlier: Earlier) -> None:
    spec, say = attempt.spec, attempt.say
    base = _open(attempt, device, way)
    renderer = Renderer.from_directory(spec.base.directory, _rendered_at(earlier.choices))
    runs = _prepare_all(attempt, base, renderer, earlier.snapshots)
    if not runs:
        return
    for each in runs:
        say(started(each, base))
    choices = _choose(attempt, base, runs, way, earlier.choices)
    bookkeeper = Bookkeeper(
        base=base,
        renderer=renderer,
        workdir=attempt.workdir,
        choices=replace(choices, rendered_at=renderer.now.isoformat()),
        identities={each.run_id: attempt.identity(each) for each in spec.runs},
        snapshot_interval_seconds=spec.snapshot_interval_seconds,
        say=say,
        stops=attempt.stops,
    )
    layout = MemoryLayout(base, bookkeeper, Recomputation(base.model, base.routing))
    _confirm(base, runs, bookkeeper, layout)
    train(base, runs, layout, attempt.stops, bookkeeper)


def _way(attempt: Attempt, device: torch.device, earlier: Choices | None) -> Way:
    """What the first attempt chose; in the first one the rule, or what is faster than that here."""
    if earlier:
        return Way(getattr(torch, earlier.compute_dtype), earlier.threads, earlier.row_tokens)
    spec = attempt.spec
    threads = spec.threads or parallel.fair_threads(choose_threads())
    rule = Way(choose_compute_dtype(spec.quantization, device, spec.dtype_is_free), threads)
    return fastest_way(spec, attempt.workdir, device, rule, attempt.say)


def _open(attempt: Attempt, device: torch.device, way: Way) -> Base:
    spec = attempt.spec
    if not spec.dtype_is_free:
        warn_of_slow_dtype(spec, way.compute_dtype, device, attempt.say)
    with loading(spec):
        base = open_base(spec.base, spec.quantization, way.compute_dtype, device)
        check_base(base)
    return base


def _rendered_at(earlier: Choices | None) -> datetime:
    """When the first attempt was: a template that prints the date would give a later one other tokens."""
    if earlier and earlier.rendered_at:
        return datetime.fromisoformat(earlier.rendered_at)
    return parallel.gather(datetime.now())[0]


def _prepare_all(attempt: Attempt, base: Base, renderer: Renderer, snapshots: dict[str, Snapshot]) -> Sequence[Run]:
    runs, say = [], attempt.say
    for run_spec in attempt.unfinished():
        with say.blaming(run_spec):
            facts, pulse = facts_of(attempt.spec, run_spec, base), say.pulse(run_spec.run_id)
            run = prepare(run_spec, attempt.workdir, base, renderer, facts, pulse)
            if snapshot := snapshots.pop(run.id, None):  # its tensors would stay a second time
                restore(run, snapshot)
                warn_of_differences(run, snapshot, base, say)
            runs.append(run)
    return runs


def prepare(spec: RunSpec, workdir: Path, base: Base, renderer: Renderer, facts: dict[str, Any], pulse: Pulse) -> Run:
    """Everything a run needs before its first step. Raises Failure for a spec or a file that can't be trained."""
    knobs = spec.hyperparameters
    check_inputs(spec, workdir)
    check_context_length(spec, longest_document(base.model.config.to_dict()))
    check_prompts(spec, renderer)

    def corpus_of(path: Path, blame: Reason) -> Corpus:
        return read_corpus(renderer, workdir / path, knobs.context_length, blame, pulse, spec.method, spec.line_rules)

    adapter = initial_adapter(spec, workdir, base)
    corpus = corpus_of(spec.training_file, Reason.INVALID_TRAINING_FILE)
    validation = corpus_of(spec.validation_file, Reason.INVALID_VALIDATION_FILE) if spec.validation_file else None
    if spec.method == "dpo" and spec.start_adapter is not None:
        base.routing.adapters[reference_id(spec.run_id)] = frozen_copy(adapter)
    parallel.seed_own_dropout(adapter.generator, spec.seed)
    return Run(
        spec=spec,
        plan=make_plan(knobs, len(corpus), spec.seed),
        corpus=corpus,
        validation=validation,
        adapter=adapter,
        optimizer=make_optimizer(adapter.parameters(), knobs),
        directory=workdir / "runs" / spec.run_id,
        facts=facts,
    )


def _choose(attempt: Attempt, base: Base, runs: Sequence[Run], way: Way, earlier: Choices | None) -> Choices:
    """What was decided earlier, unless the kernel has thought it too much since. Raises Failure(OUT_OF_MEMORY)."""
    spec = with_compute_dtype(attempt.spec, way.compute_dtype)
    if earlier and spec.out_of_memory_kills <= earlier.out_of_memory_kills:
        return earlier
    placement = place(spec, base, runs, way.row_tokens)
    for each in runs:
        attempt.say(planned(each, placement))
    if placement.memory.total > HOPELESS * placement.device.memory_bytes:
        raise Failure(Reason.OUT_OF_MEMORY, placement.message, "hyperparameters.context_length")
    decided = earlier or Choices(
        row_tokens=placement.mode.row_tokens,
        threads=way.threads,
        compute_dtype=dtype_name(way.compute_dtype),
        device=device_name(base.device),
    )
    laid_out = decided.laid_out(placement.mode).after_kills(spec.out_of_memory_kills)
    return replace(laid_out, peak_bytes=placement.memory.total)


def _confirm(base: Base, runs: Sequence[Run], bookkeeper: Bookkeeper, layout: MemoryLayout) -> None:
    """The plan's largest row, once, before the first step; too large a plan is repaired here."""
    if bookkeeper.choices.probed:
        return
    measured = layout.until_it_fits(runs, lambda row_tokens: probe(base, runs, row_tokens))
    bookkeeper.choices = replace(bookkeeper.choices, probed=True)
    if measured is None:
        return
    for each in runs:
        bookkeeper.say(measured.model_copy(update={"run_id": each.id}))
    bookkeeper.choices = replace(bookkeeper.choices, peak_bytes=measured.peak_bytes)
