"""Finished adapters: files with sizes and digests, provenance, and lines that load them, each with its limits."""

from __future__ import annotations

import shlex
from functools import partial

from nicegui import ui

from app.domain.artifacts.engines import peft_code
from app.web.api_client import ApiError, Json
from app.web.components.data_table import Cell, DataTable, ago, lead_column, number_column, show_page, text_column
from app.web.components.elements import box, card, code_block, error_note, facts, link, note, tabs, tag
from app.web.formatting import clean, count, moment, size
from app.web.frame import View, screen
from app.web.pages.answers import TryIt
from app.web.pages.jobs import wording
from app.web.pages.jobs.panels.exports import ExportsPanel
from app.web.pages.jobs.panels.panel import FILE_COLUMNS

BASE_DIRECTORY = "BASE_DIRECTORY"


def _name(job: Json) -> Cell:
    name = wording.name(job)
    return {"text": name, "href": f"/adapters/{job['id']}", "sub": clean(job["fine_tuned_model"])}


def _archive(job: Json) -> Cell | str:
    archive = {"text": "Download", "href": f"/jobs/{job['id']}/adapter.tar", "download": ""}
    return archive if job["adapter"] else "deleted"


COLUMNS = (
    lead_column("Adapter", "", _name),
    text_column("Base model", "adapter.base_model"),
    number_column("Rank", "lora.r", str),
    number_column("Size", "adapter.bytes", size),
    number_column("Finished", "finished_at", ago),
    text_column("Archive", "", _archive),
)


@screen("/adapters", "Adapters", "adapters")
class AdaptersPage(View):
    async def build(self) -> None:
        tag("h1", "Adapters")
        after, jobs = self.query("after"), "fine_tuning/jobs"
        if not await show_page(self.api, "/adapters", after, "Adapters", COLUMNS, "adapter", jobs, status="succeeded"):
            note("No adapters yet", "Each job that succeeds publishes one.")
            if self.may("jobs:write"):
                link("New job", "/jobs/new", "t-button t-primary")


@screen("/adapters/{job_id}", "Adapter", "adapters")
class AdapterPage(View):
    async def build(self) -> None:
        job_id = self.path("job_id")
        job = await self.api.get(f"fine_tuning/jobs/{job_id}")
        ui.page_title(f"{wording.name(job)} · Adapter · Tunery")
        with box("t-title"):
            with tag("h1"):
                tag("bdi", wording.name(job))
            with box("t-actions"):
                link("Job", f"/jobs/{job_id}", "t-button")
                if job["adapter"]:
                    if self.may("jobs:write"):
                        link("Evaluate", f"/jobs/{job_id}?tab=evaluations", "t-button")
                        link("Deliver", f"/jobs/{job_id}?tab=deliveries", "t-button")
                    link("Download", f"/jobs/{job_id}/adapter.tar", "t-button t-primary", download="")
        try:
            adapter = await self.api.get(f"fine_tuning/jobs/{job_id}/adapter")
        except ApiError as error:
            error_note(error, "This job has no adapter")
            return
        _show_provenance(job, adapter)
        if self.may("answers:write"):
            TryIt(self, adapter["base_model"], adapter["fine_tuned_model"])
        tag("h2", "Files")
        DataTable("Files of the adapter", FILE_COLUMNS, [*adapter["files"], adapter["archive"]])
        with tag("section", classes="t-stack", aria_label="Exports"):
            tag("h2", "Exports")
            await ExportsPanel(self, job).refresh(job)
        sources = {model["id"]: model.get("source") for model in await self.api.base_models()}
        _show_engines(job, adapter, sources.get(adapter["base_model"]))


def _show_provenance(job: Json, adapter: Json) -> None:
    with card("Provenance"):
        tag("bdi", clean(adapter["fine_tuned_model"], 160), "t-mono t-wrap")
        facts(
            {
                "Base model": clean(adapter["base_model"], 100),
                "Step": count(adapter["step_number"]),
                "LoRA": f"rank {job['lora']['r']}, alpha {job['lora']['alpha']:g}",
                "Trained with": "4-bit base (QLoRA)" if job["quantization"] else "16-bit base (LoRA)",
                "Processed tokens": count(job["trained_tokens"]),
                "Finished": moment(job["finished_at"]),
            }
        )
        with box("t-row"):
            wording.link_files(job)


def _show_engines(job: Json, adapter: Json, source: str | None) -> None:
    compatibility = job.get("compatibility") or {}
    engines = [name for name in wording.ENGINES if name in compatibility] or list(wording.ENGINES)
    with card("Use it"):
        if source is None:
            name = clean(adapter["base_model"], 80)
            tag("p", f"{BASE_DIRECTORY} is the directory of {name} on the machine that runs the engine.", "t-hint")
        panels = {
            wording.ENGINES[one]: partial(_show_engine, one, compatibility.get(one), job["id"], adapter, source)
            for one in engines
        }
        tabs("Ways to use the adapter", panels)


def _show_engine(engine: str, verdict: Json | None, job_id: str, adapter: Json, source: str | None) -> None:
    if verdict is not None:
        title = "Serves this adapter as it is" if verdict["ok"] else "Does not serve this adapter as it is"
        texts = [*verdict.get("reasons", []), *verdict.get("notes", [])]
        version = clean(str(verdict.get("version", "")), 40)
        note(
            f"{title} ({version})" if version else title,
            clean("\n".join(texts), 2_000),
            "ok" if verdict["ok"] else "warn",
        )
    is_served = verdict is None or verdict["ok"]
    flags = [str(flag) for flag in (verdict or {}).get("flags", [])]
    code_block(snippet(engine, is_served, flags, job_id, adapter, source))


def snippet(engine: str, is_served: bool, flags: list[str], job_id: str, adapter: Json, source: str | None) -> str:
    """Commands to paste. An engine that does not serve the adapter gets the merged model.

    `source` is the id of the base model on its hub; without one, the directory is to be filled in.
    """
    download = f"tunery adapters download {job_id} -o adapter"
    if engine == "transformers":
        return f"# {download}\n{peft_code(source or BASE_DIRECTORY, 'adapter')}"
    if engine == "ollama" or (engine == "llama_cpp" and not is_served):
        export = f"tunery jobs export {job_id} --type gguf --quantization Q8_0 -o tuned"
        return f"{export}\n" + (
            "ollama create tuned --file tuned/Modelfile"
            if engine == "ollama"
            else "llama-server -m tuned/model-Q8_0.gguf"
        )
    if engine == "llama_cpp":
        return (
            f"tunery jobs export {job_id} --type gguf_adapter -o tuned\n"
            f"# of the llama.cpp repository; {BASE_DIRECTORY}: where the base model is\n"
            f"python convert_hf_to_gguf.py {BASE_DIRECTORY} --outfile base.gguf\n"
            "llama-server -m base.gguf --lora tuned/adapter.gguf"
        )
    serve = {"vllm": "vllm serve", "sglang": "python -m sglang.launch_server --model-path"}[engine]
    if not is_served:
        return f"tunery jobs export {job_id} -o merged\n{serve} merged"
    options = " ".join(shlex.quote(flag) for flag in flags) or "--enable-lora"
    modules = {"vllm": "--lora-modules", "sglang": "--lora-paths"}[engine]
    name = shlex.quote(adapter["fine_tuned_model"])
    served = f"{serve} {shlex.quote(source or BASE_DIRECTORY)} {options} {modules} {name}=adapter"
    return f"{download}\n{served}"
