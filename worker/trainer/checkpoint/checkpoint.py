"""Public checkpoints: an adapter directory as PEFT writes it, with everything needed to use it and to trust it.

    adapter_model.safetensors   A and B, and what else was trained, in float32, under PEFT's names
    adapter_config.json         the base model by its registered name, never by a path
    tokenizer*, chat_template*  the base model's own, byte for byte
    README.md                   the model card
    MANIFEST.json               size and SHA-256 of each file, and where the adapter comes from

Written aside, flushed to disk, renamed into place: a directory that is there is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from app.domain.jobs.spec import LoraSpec
from app.system.artifact_directory import ADAPTER_CONFIG, ADAPTER_WEIGHTS, publish, write_manifest
from app.system.snapshot_directories import step_directories
from worker.trainer.checkpoint.model_card import model_card
from worker.trainer.state import Run

CHECKPOINTS = "checkpoints"
KEPT = 3
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def save_checkpoint(run: Run, base_name: str, base_directory: Path) -> Path:
    """Write the adapter as it is after `run.step` steps; keep the newest three and the best. Returns its directory."""
    about = {
        **run.provenance,
        "step": run.step,
        "epoch": run.schedule.epoch(run.step),
        "trained_tokens": run.trained_tokens,
        "metrics": run.metrics,
    }
    with staged(run.directory / CHECKPOINTS, run.step, KEPT, spared_step=run.best.step) as directory:
        save_file(adapter_tensors(run), directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_config(directory / ADAPTER_CONFIG, run.spec.lora, base_name)
        _copy_tokenizer(base_directory, directory)
        (directory / "README.md").write_text(model_card(about), encoding="utf-8")
        write_manifest(directory, about)
    return step_directory(run.directory / CHECKPOINTS, run.step)


def adapter_tensors(run: Run) -> dict[str, torch.Tensor]:
    """Everything that is trained, float32 on the CPU, under PEFT's names."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in run.adapter.named_parameters().items()}


def write_config(path: Path, lora: LoraSpec, base_name: str) -> None:
    """adapter_config.json through PEFT's own class; sets are sorted, so that the same run gives the same bytes."""
    config = LoraConfig(
        r=lora.r,
        lora_alpha=_plain(lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        rank_pattern=lora.rank_pattern,
        alpha_pattern={key: _plain(alpha) for key, alpha in lora.alpha_pattern.items()},
        modules_to_save=list(lora.modules_to_save) or None,
        bias=lora.bias,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=_sorted)
    path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def staged(parent: Path, step: int, kept: int, spared_step: int | None = None) -> Iterator[Path]:
    """A directory beside the final one to write into; renamed into place at the end, removed where that fails.

    Afterwards all but the newest `kept` directories in `parent`, and the one of `spared_step`, are removed.
    """
    aside = parent / f".step-{step:06d}.staged"
    shutil.rmtree(aside, ignore_errors=True)  # left by a crash
    aside.mkdir(parents=True)
    try:
        yield aside
        _replace(step_directory(parent, step), aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    spared = {step_directory(parent, each) for each in (step, spared_step) if each is not None}
    for old in step_directories(parent)[:-kept]:
        if old not in spared:
            shutil.rmtree(old)


def _replace(directory: Path, staged: Path) -> None:
    """What an earlier attempt left there makes way by a rename, and is removed when its successor is there."""
    replaced = directory.with_name(f".{directory.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)  # left by a crash
    if directory.exists():
        directory.rename(replaced)
    try:
        publish(staged, directory)
    except BaseException:
        if replaced.exists():
            replaced.rename(directory)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def step_directory(parent: Path, step: int) -> Path:
    return parent / f"step-{step:06d}"


def _copy_tokenizer(base_directory: Path, staged: Path) -> None:
    for name in TOKENIZER_FILES:
        if (base_directory / name).exists():
            shutil.copyfile(base_directory / name, staged / name)


def _plain(alpha: float) -> float:
    """A whole number without a point, as PEFT writes it and some readers want it."""
    return int(alpha) if alpha.is_integer() else alpha


def _sorted(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
