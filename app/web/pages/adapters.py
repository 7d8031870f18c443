"""Finished adapters: files with sizes and digests, provenance, and lines that load them, each with its limits."""

from __future__ import annotations

import shlex

from app.domain.artifacts.engines import peft_code
from app.web.api_client import ApiError, Json
from app.web.components.data_table import Cell, DataTable, ago, lead_column, number_column, show_page, text_column
from app.web.components.elements import box, card, code_block, error_note, facts, link, note, page_head, tabs, tag
from app.web.formatting import count, moment, size
from app.web.frame import View, screen
from app.web.pages.answers import TryIt
from app.web.pages.jobs import wording
from app.web.pages.jobs.panels.exports import ExportsPanel
from app.web.pages.jobs.panels.panel import FILE_COLUMNS

BASE_DIRECTORY = "BASE_DIRECTORY"


def _name(job: Json) -> Cell:
    return wording.job_cell(job) | {"href": f"/adapters/{job['id']}", "sub": job["fine_tuned_model"]}


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


@screen("/adapters", "Adapters")
class AdaptersPage(View):
    async def build(self) -> None:
        tag("h1", "Adapters")
        after, jobs = self.query("after"), "fine_tuning/jobs"
        if not await show_page(self.api, "/adapters", after, "Adapters", COLUMNS, "adapter", jobs, status="succeeded"):
            note("No adapters yet", "Each job that succeeds publishes one.")
            if self.may("jobs:write"):
                link("New job", "/jobs/new", "t-button t-primary")


@screen("/adapters/{job_id}", "Adapter")
class AdapterPage(View):
    async def build(self) -> None:
        job_id = self.path("job_id")
        job = await self.api.get(f"fine_tuning/jobs/{job_id}")
        with page_head(wording.name(job), " · Adapter"):
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
            with card("Try it"):
                TryIt(self, adapter["base_model"], adapter["fine_tuned_model"])
        tag("h2", "Files")
        DataTable("Files of the adapter", FILE_COLUMNS, [*adapter["files"], adapter["archive"]])
        with tag("section", classes="t-stack", aria_label="Exports"):
            tag("h2", "Exports")
            await ExportsPanel(self, job).refresh(job)
        sources = {model["id"]: model.get("source") for model in await self.api.base_models()}
        _show_engines(job, adapter, sources.get(adapter["base_model"]))


def _show_provenance(job: Json, adapter: Json) -> None:
    with card("Origin"):
        tag("bdi", adapter["fine_tuned_model"], "t-mono t-wrap")
        facts(
            {
                "Base model": adapter["base_model"],
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
    def show(engine: str) -> None:
        verdict = job["compatibility"][engine]
        is_served = verdict["ok"]
        title = "Serves this adapter as it is" if is_served else "Does not serve this adapter as it is"
        texts = "\n".join([*verdict["reasons"], *verdict["notes"]])
        note(f"{title} ({verdict['version']})", texts, "ok" if is_served else "warn")
        code_block(snippet(engine, is_served, verdict["flags"], job, adapter, source))

    with card("Use it"):
        if source is None:
            hint = f"{BASE_DIRECTORY} is the directory of {adapter['base_model']} on the machine that runs the engine."
            tag("p", hint, "t-hint")
        tabs("Ways to use the adapter", wording.ENGINES, show)


def snippet(engine: str, is_served: bool, flags: list[str], job: Json, adapter: Json, source: str | None) -> str:
    """Commands to paste. An engine that does not serve the adapter gets the merged model.

    `source` is the id of the base model on its hub; without one, the directory is to be filled in.
    """
    job_id = job["id"]
    download = f"tunery adapters download {job_id} -o adapter"
    if engine == "transformers":
        return f"# {download}\n{peft_code(source or BASE_DIRECTORY, 'adapter', job['chat_template_kwargs'])}"
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
