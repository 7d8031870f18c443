"""A trainer without a model: the real pipe protocol, real directories and manifests, faults as a test plans them.

    python fake_trainer.py PLAN WORKDIR

PLAN is a TrainerPlan as JSON. `faults` has, by attempt ("1", or "*" for every one) and step, what happens instead of
the step.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class TrainerPlan:
    steps: int = 4
    step_seconds: float = 0.0
    eta_seconds: float = 0.1  # the remaining time that it reports at every step
    checkpoint_every: int = 0
    snapshot_every: int = 0
    last_snapshot: bool = False  # in the reserved space, before the result, as the real one does
    state_bytes: int = 0  # of each snapshot, in addition
    weights_bytes: int = 0  # of each checkpoint, in addition
    retired_snapshot: int | None = None  # the snapshot of this step is deleted before its record is sent
    validation: bool = False
    full_losses: tuple[float, ...] = ()  # full validation losses, by step; the adapter of the lowest is the result
    step_log: str | None = None  # one line a step: attempt, step, time, pid
    wait_for: str | None = None  # wait before the first step until this file exists
    faults: dict[str, dict[str, str]] = field(default_factory=dict)

    def command(self) -> tuple[str, ...]:
        return (sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(self)))


def main() -> None:
    plan, workdir = TrainerPlan(**json.loads(sys.argv[1])), Path(sys.argv[2])
    die_with_parent()
    spec = json.loads((workdir / "spec.json").read_bytes())  # to import and check TrainerSpec would take 0.2 s
    trainer = FakeTrainer(plan, workdir, spec["runs"][0])
    try:
        trainer.run()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        trainer.emit(kind="failed", reason="storage_full", message="The disk is full.")
        sys.exit(70)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["TUNERY_PARENT_PID"]):
        os._exit(1)


class FakeTrainer:
    def __init__(self, plan: TrainerPlan, workdir: Path, run: dict[str, Any]) -> None:
        self.plan = plan
        self.workdir = workdir
        self.run_id = run["run_id"]
        self.attempt = workdir.name.removeprefix("attempt-")
        self.resume_from = run["resume_from"]
        self.faults = plan.faults.get("*", {}) | plan.faults.get(self.attempt, {})
        self.commands: set[str] = set()

    def run(self) -> None:
        if "SIGTERM" not in self.faults:
            signal.signal(signal.SIGTERM, lambda *_: self.commands.add("drain"))
        threading.Thread(target=self.listen, daemon=True).start()
        step = self.start()
        while step < self.plan.steps:
            if self.commands:
                self.stop(step)
            step += 1
            if fault := self.faults.get(str(step)):
                self.fail(fault, step)
            self.train(step)
        self.finish(step)

    def listen(self) -> None:
        for line in sys.stdin:
            self.commands.add(json.loads(line)["command"])

    def start(self) -> int:
        step = json.loads(Path(self.resume_from, "MANIFEST.json").read_text())["step"] if self.resume_from else 0
        self.emit(
            kind="started",
            device="fake",
            compute_dtype="float32",
            threads=1,
            trainable_parameters=8192,
            frozen_parameters=100_000,
            base_bytes=200_000,
            examples=12,
            tokens_per_epoch=600,
            labelled_tokens_per_epoch=200,
            total_steps=self.plan.steps,
            start_step=step,
            versions={"fake": "1"},
        )
        while self.plan.wait_for and not Path(self.plan.wait_for).exists() and not self.commands:
            time.sleep(0.01)
        return step

    def train(self, step: int) -> None:
        time.sleep(self.plan.step_seconds)
        if self.plan.step_log:
            with Path(self.plan.step_log).open("a") as file:
                file.write(f"{self.attempt} {step} {time.clock_gettime(time.CLOCK_MONOTONIC)} {os.getpid()}\n")
        epoch = step / max(1, self.plan.steps)
        measured = {"valid_loss": 2.0 / step, "valid_mean_token_accuracy": 0.5} if self.plan.validation else {}
        if self.plan.full_losses:
            measured["full_valid_loss"] = self.plan.full_losses[step - 1]
        self.emit(
            kind="metric",
            step=step,
            total_steps=self.plan.steps,
            epoch=epoch,
            train_loss=1.0 / step,
            train_mean_token_accuracy=0.75,
            learning_rate=1e-3,
            grad_norm=0.5,
            trained_tokens=100 * step,
            labelled_tokens=30,
            tokens_per_second=1000.0,
            eta_seconds=self.plan.eta_seconds,
            **measured,
        )
        if is_due(self.plan.checkpoint_every, step) and step < self.plan.steps:
            self.checkpoint(step)
        if is_due(self.plan.snapshot_every, step):
            self.snapshot(step)

    def stop(self, step: int) -> None:
        if "pause" in self.commands:
            self.checkpoint(step)
        self.write_last_snapshot(step)
        self.exit(*(("paused", step, 76) if "pause" in self.commands else ("drained", step, 75)))

    def exit(self, reason: str, step: int, code: int) -> None:
        self.emit(kind="stopped", reason=reason, step=step)
        sys.exit(code)

    def write_last_snapshot(self, step: int) -> None:
        (self.workdir / "reserved-space").unlink(missing_ok=True)
        self.snapshot(step, final=True)

    def finish(self, step: int) -> None:
        if self.plan.last_snapshot:
            self.write_last_snapshot(step)
        if losses := self.plan.full_losses:
            self.checkpoint(step)
            step = losses.index(min(losses)) + 1
        directory = self.checkpoint(step, final=True)
        if self.commands:
            self.stop(step)
        self.emit(kind="done", step=step, trained_tokens=100 * step, directory=directory)
        if "after done" in self.faults:
            self.fail(self.faults["after done"], step)

    def checkpoint(self, step: int, final: bool = False) -> str:
        files = {
            "adapter_config.json": b'{"r": 16}',
            "adapter_model.safetensors": b"weights of step %d " % step * 50 + b"." * self.plan.weights_bytes,
            "README.md": b"# an adapter",
        }
        directory = f"runs/{self.run_id}/checkpoints/step-{step:06d}"
        if not (self.workdir / directory / "MANIFEST.json").exists():  # its parent may be reading it
            self.write("checkpoints", step, files)
        self.emit(
            kind="checkpoint",
            step=step,
            epoch=step / max(1, self.plan.steps),
            directory=directory,
            final=final,
            metrics={"train_loss": 1.0 / step if step else None} | self.full_loss(step),
        )
        return directory

    def full_loss(self, step: int) -> dict[str, float]:
        return {"full_valid_loss": self.plan.full_losses[step - 1]} if self.plan.full_losses else {}

    def snapshot(self, step: int, final: bool = False) -> None:
        state = b"state of step %d" % step * 20 + b"." * self.plan.state_bytes
        directory, sha256 = self.write("snapshots", step, {"state.safetensors": state})
        if step == self.plan.retired_snapshot:
            shutil.rmtree(self.workdir / directory)
        self.emit(kind="snapshot", step=step, directory=directory, manifest_sha256=sha256, final=final)

    def write(self, kind: str, step: int, files: dict[str, bytes]) -> tuple[str, str]:
        from app.system.artifact_directory import write_manifest

        relative = f"runs/{self.run_id}/{kind}/step-{step:06d}"
        directory = self.workdir / relative
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_bytes(content)
        return relative, write_manifest(directory, {"step": step})

    def fail(self, fault: str, step: int) -> None:
        """ "exit:N", "signal:NAME", "failed:REASON:CODE", "print:TEXT", "stderr:TEXT", "hang[:close]", "escape"."""
        kind, _, rest = fault.partition(":")
        if kind == "exit":
            sys.exit(int(rest))
        if kind == "signal":
            os.kill(os.getpid(), signal.Signals[rest])
            time.sleep(10)
        if kind == "failed":
            reason, _, code = rest.partition(":")
            self.emit(kind="failed", reason=reason, message=f"the trainer's message for {reason}", param="model")
            sys.exit(int(code))
        if kind == "print":
            os.write(1, (b"x" * (2 << 20) if rest == "LONG" else rest.replace("RUN", self.run_id).encode()) + b"\n")
        if kind == "stderr":
            os.write(2, rest.encode() + b"\n")
        if kind == "hang":
            if rest == "close":
                os.close(1)
            time.sleep(60)
        if kind == "escape":
            self.emit(kind="checkpoint", step=step, epoch=0.5, directory="../../../..", final=False, metrics={})

    def emit(self, **record: object) -> None:
        os.write(1, json.dumps({"run_id": self.run_id} | record).encode() + b"\n")


def is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


if __name__ == "__main__":
    main()
