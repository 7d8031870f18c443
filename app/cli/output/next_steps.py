"""Commands to run after a job has succeeded."""

from __future__ import annotations

from typing import Any


def next_steps(job: dict[str, Any]) -> str:
    """Commands to download, compare and serve the adapter of a succeeded job."""
    from app.domain.artifacts.engines import (
        Engine,
        incompatibilities,
        vllm_max_lora_rank,
    )  # slow import of pydantic, which `--help` does not need
    from app.domain.jobs.spec import LoraSpec

    job_id, model = job["id"], job["model"]
    base = model.split(":")[1] if model.startswith("ft:") else model  # a tuned model: ft:BASE:organization:suffix:id
    lora = LoraSpec.model_validate(job["lora"])
    if incompatibilities(Engine.VLLM, lora):  # vLLM cannot load this adapter; it loads the merged model
        serve = [f"tunery jobs export {job_id} -o {job_id}-merged", f"vllm serve {job_id}-merged"]
    else:
        options = f"--enable-lora --max-lora-rank {vllm_max_lora_rank(lora)} --lora-modules tuned={job_id}"
        serve = [f"vllm serve $BASE {options}"]
    lines = [
        f"BASE=$(tunery models where {base})   # on the server; elsewhere, set the directory of {base}",
        f"tunery adapters download {job_id}",
        f"tunery adapters compare {job_id} --base $BASE --prompts HELDOUT.jsonl",
        *serve,
    ]
    return "Next:\n" + "\n".join(f"  {line}" for line in lines)
