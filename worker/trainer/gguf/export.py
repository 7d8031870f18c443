"""The steps of a GGUF export: merge, answer, convert, quantize, compare."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from app.domain.artifacts.exports import Quantization
from app.system.artifact_directory import publish, read_manifest, write_manifest
from app.system.model_files import weight_files
from worker.trainer.checkpoint.model_card import gguf_adapter_card, gguf_card
from worker.trainer.gguf.answers import CONTEXT_TOKENS, compare, greedy_answers, require_effect
from worker.trainer.gguf.converter import convert_adapter, convert_model
from worker.trainer.gguf.llama_cpp import RELEASE, LlamaCppModel, quantize
from worker.trainer.gguf.modelfile import write_modelfile
from worker.trainer.merge import merge

ADAPTER = "adapter"
ADAPTER_NAME = "adapter.gguf"
LICENCE_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def export(base: Path, adapter: Path, destination: Path, kind: str) -> dict[str, Any]:
    """Write the export to `destination`, completely or not at all, and return its manifest.

    `kind` is a Quantization or "adapter". The disk holds at most the merged model and two GGUF files of it. Raises
    CannotMerge, CannotConvert, LlamaCppError, DifferentAnswers, OSError.
    """
    work = destination.with_name(f".{destination.name}.work")
    shutil.rmtree(work, ignore_errors=True)  # left by a crash
    try:
        merged_manifest = merge(base, adapter, work / "merged")
        staged = work / "staged"
        staged.mkdir()
        figures = _adapter(base, adapter, work) if kind == ADAPTER else _model(Quantization(kind), work)
        for pattern in LICENCE_PATTERNS:
            for path in base.glob(pattern):
                shutil.copyfile(path, staged / path.name)
        manifest = {key: merged_manifest[key] for key in ("base_model", "adapter")}
        manifest["gguf"] = {"type": kind, "llama_cpp": RELEASE, "check": figures}
        card = gguf_adapter_card(manifest, ADAPTER_NAME) if kind == ADAPTER else gguf_card(manifest, model_name(kind))
        (staged / "README.md").write_text(card, encoding="utf-8")
        write_manifest(staged, manifest)
        publish(staged, destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return read_manifest(destination)


def model_name(quantization: str) -> str:
    return f"model-{quantization}.gguf"


def _model(quantization: Quantization, work: Path) -> dict[str, Any]:
    """Write the GGUF file and the Modelfile into `staged`; return the figures of the comparison."""
    merged, staged, threads = work / "merged", work / "staged", torch.get_num_threads()
    answers = greedy_answers(merged)
    file = staged / model_name(quantization)
    write_modelfile(staged, merged, file.name)
    if quantization == Quantization.F16:
        convert_model(merged, file, "f16")
    else:
        convert_model(merged, work / "intermediate.gguf", "auto")
        for path in weight_files(merged):
            path.unlink()
        quantize(work / "intermediate.gguf", file, quantization, threads)
    with LlamaCppModel(file, None, CONTEXT_TOKENS, threads) as model:
        return compare(model, answers, quantization)


def _adapter(base: Path, adapter: Path, work: Path) -> dict[str, Any]:
    """Write the adapter's GGUF file into `staged`; return the figures of the comparison, on the base as F16."""
    answers = greedy_answers(work / "merged")
    file = work / "staged" / ADAPTER_NAME
    convert_adapter(adapter, base, file)
    convert_model(base, work / "base.gguf", "f16")
    with LlamaCppModel(work / "base.gguf", file, CONTEXT_TOKENS, torch.get_num_threads()) as model:
        figures = compare(model, answers, Quantization.F16)
    return require_effect(figures, answers, base)
