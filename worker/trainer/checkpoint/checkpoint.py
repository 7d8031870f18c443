"""Public checkpoints: an adapter directory as PEFT writes it, with a model card and a manifest.

    adapter_model.safetensors   all trained tensors, in float32, under PEFT's names
    adapter_config.json         names the base model by its hub id or its registered name, never by a path
    tokenizer*, chat_template*  exact copies of the base model's files
    README.md                   the model card
    MANIFEST.json               size and SHA-256 of each file, and the provenance of the adapter

A directory is written under a temporary name, flushed to disk and renamed, so it is always complete.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save_file

from app.domain.jobs.spec import LoraSpec
from app.system.artifact_directory import ADAPTER_CONFIG, ADAPTER_WEIGHTS, publish, step_directories, write_manifest
from worker.trainer.checkpoint.model_card import model_card
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.training.state import Run

CHECKPOINTS = "checkpoints"
KEPT_CHECKPOINTS = 3
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def save_checkpoint(run: Run, base: FrozenBase) -> Path:
    """Save the adapter after `run.step` steps, keep the newest three checkpoints and the best; return its directory."""
    manifest = {
        **run.provenance,
        "step": run.step,
        "epoch": run.schedule.epoch(run.step),
        "trained_tokens": run.trained_tokens,
        "metrics": run.metrics,
    }
    with staged(run.directory / CHECKPOINTS, run.step, KEPT_CHECKPOINTS, protected_step=run.best.step) as directory:
        trained = run.adapter.named_parameters()  # float32, by PEFT's names
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trained.items()}
        save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_config(directory / ADAPTER_CONFIG, run.spec.lora, base)
        for name in TOKENIZER_FILES:
            if (base.directory / name).exists():
                shutil.copyfile(base.directory / name, directory / name)
        (directory / "README.md").write_text(model_card(manifest), encoding="utf-8")
        write_manifest(directory, manifest)
    return step_directory(run.directory / CHECKPOINTS, run.step)


def write_config(path: Path, lora: LoraSpec, base: FrozenBase) -> None:
    """Write adapter_config.json with PEFT's own class; sets are sorted, so that equal runs give equal bytes.

    The base model is named as on its hub, if it was registered with that name. In a model with other modalities,
    layers outside of the text model have the same last names, and PEFT must not adapt them.
    """
    prefix, experts = base.decoder_prefix, sorted({".".join(name.split(".")[-2:]) for name in base.experts})
    config = LoraConfig(
        r=lora.r,
        lora_alpha=_number(lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        target_parameters=(experts if lora.experts else list(lora.target_parameters)) or None,
        exclude_modules=None if prefix is None else rf"(?!{re.escape(prefix)}\.).*",
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        rank_pattern=lora.rank_pattern,
        alpha_pattern={key: _number(alpha) for key, alpha in lora.alpha_pattern.items()},
        modules_to_save=list(lora.modules_to_save) or None,
        bias=lora.bias,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.source or base.name,
        revision=base.revision,
        inference_mode=True,
    )
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=_to_json)
    path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def staged(parent: Path, step: int, keep: int, protected_step: int | None = None) -> Iterator[Path]:
    """Yield a temporary directory to write into; rename it to that of the step at the end, remove it after an error.

    Afterwards only the newest `keep` directories in `parent`, and those of `step` and `protected_step`, are kept.
    """
    temporary = parent / f".step-{step:06d}.staged"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a crash
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _replace(step_directory(parent, step), temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    protected = {step_directory(parent, each) for each in (step, protected_step) if each is not None}
    for directory in step_directories(parent)[:-keep]:
        if directory not in protected:
            shutil.rmtree(directory)


def _replace(directory: Path, staged: Path) -> None:
    """Publish the staged directory. One of an earlier attempt is renamed first, and removed once the new one exists."""
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


def _number(alpha: float) -> float:
    """Return an integer if alpha is one: PEFT writes it so, and some readers require it."""
    return int(alpha) if alpha.is_integer() else alpha


def _to_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
