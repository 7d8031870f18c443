"""The tools: each is one or a few calls of the public API, with the key of its caller.

Over standard input the caller is who started this process; over HTTP the key of each request is passed on. A tool
fails with the message of the API. Waits report progress, and end at their timeout with the state that was last seen.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from app.cli.client.http import Client
from app.cli.client.references import file_path, job_path
from app.cli.client.service_discovery import ServiceAddress
from app.cli.commands.jobs.evaluations import progress_text
from app.cli.errors import CliError
from app.cli.options import given
from app.cli.output.progress import Losses, is_finished, numbers_text
from app.domain.evaluations.graders import DEFAULT_EVALUATIONS, OUTPUT, REFERENCE
from app.domain.jobs.create_job import create_body
from app.mcp import results

Json = dict[str, Any]
MAX_PLANS = 1_000
MAX_PLAN_BYTES = 1 << 16
PLAN_SECONDS = 3_600
MAX_CONTENT_CHARACTERS = 2_000_000  # of an upload over HTTP
MAX_MODELS = 100
POLL_SECONDS = 2.0
UNFINISHED = ("requested", "queued", "running")  # statuses of evaluations
EXACT = {"type": "string_check", "name": "exact", "input": OUTPUT, "reference": REFERENCE, "operation": "eq"}
GRADERS = {"exact": EXACT} | {kind: grader for kind, (grader, _) in DEFAULT_EVALUATIONS.items()}
STEPS = [
    "list_models: choose a base model.",
    "upload_dataset: JSONL with one example per line, or a table; held_out_percent keeps rows of both for validation "
    "and evaluation (held_out_file_id).",
    "validate_dataset: correct the file until it is valid; read the warnings and what is trained.",
    "plan_job: show the person the tokens, the memory, the hours and the warnings, and ask for consent.",
    "create_job: with the plan_id of the accepted plan.",
    "wait_job: repeat it until the status is succeeded, failed or cancelled. Held-out rows are evaluated by then.",
    "evaluate: base model and adapter on other rows that were not trained; report the difference with its interval.",
    "deliver: after consent, as it changes what an engine serves.",
]

Id = Annotated[str, Field(max_length=256)]
Purpose = Literal["fine-tune", "evals"]
Columns = Annotated[str | None, Field(max_length=4096, description="Of a table: input and output, such as text,label")]
HeldOutPercent = Annotated[int | None, Field(description="Rows to hold out for validation and evaluation")]
Timeout = Annotated[int, Field(ge=0, le=3600)]
Grader = Annotated[
    Literal["exact", "label_accuracy", "json_fields", "text_similarity"],
    Field(description="The expected answer is: one exact text, one of a few labels, a JSON object, free text"),
]
Settings = Annotated[
    Json | None,
    Field(description='By names of the API, such as {"n_epochs": 2, "lora.r": 16}; omit what nobody asked for'),
]


class Plans:
    """The create bodies of the newest MAX_PLANS plans, for PLAN_SECONDS, each for the key that made it."""

    def __init__(self) -> None:
        self._plans: OrderedDict[str, tuple[float, bytes, Json]] = OrderedDict()

    def add(self, api_key: str | None, body: Json) -> tuple[str, int]:
        """The id of the plan, and when it expires in seconds since 1970."""
        plan_id, expires_at = f"plan_{secrets.token_urlsafe(16)}", time.time() + PLAN_SECONDS
        self._plans[plan_id] = (expires_at, _digest(api_key), body)
        while len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return plan_id, int(expires_at)

    def body(self, api_key: str | None, plan_id: str) -> Json:
        """The planned body. Raises ToolError."""
        expires_at, digest, body = self._plans.get(plan_id, (0.0, b"", {}))
        if expires_at < time.time() or not secrets.compare_digest(digest, _digest(api_key)):
            raise ToolError(
                f"plan_id: this key has no plan {plan_id[:40]!r}, or it has expired. Plans are kept for "
                f"{PLAN_SECONDS // 60} minutes and until this server stops. Call plan_job, and use its plan_id."
            )
        return body


class Tools:
    def __init__(
        self, find_address: Callable[[Context[Any, Any]], ServiceAddress], root: Path, pages: list[str], write: bool
    ) -> None:
        """`pages` are the resources that `get_started` names."""
        self._find_address, self._root, self._pages, self._write = find_address, root, pages, write
        self._plans = Plans()

    def get_started(self, ctx: Context[Any, Any]) -> results.ShownStart:
        """Check the connection; return the steps from a dataset to a delivered adapter, and resources to read."""
        with self._client(ctx) as client:
            project = client.get("project")
            return results.ShownStart(
                server=client.address.base_url,
                project=project["name"],
                scopes=project["api_key"]["scopes"],
                write=self._write,
                steps=STEPS,
                pages=self._pages,
            )

    def list_models(self, ctx: Context[Any, Any]) -> results.ShownModels:
        """List base models, their aliases and fine-tuned models."""
        with self._client(ctx) as client:
            rows = client.get("models")["data"]
        models = [results.ShownModel.of(row) for row in rows[:MAX_MODELS]]
        return results.ShownModels(models=models, more=len(rows) > MAX_MODELS)

    def upload_file(
        self,
        ctx: Context[Any, Any],
        path: Annotated[str, Field(max_length=4096)],
        purpose: Purpose = "fine-tune",
        columns: Columns = None,
        held_out_percent: HeldOutPercent = None,
    ) -> results.ShownFile:
        """Upload a file below the server's root directory: JSONL, or a CSV, TSV, XLSX or Parquet table."""
        with self._client(ctx) as client, open_below(self._root, path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            return _upload(client, file, Path(path).name, size_bytes, purpose, columns, held_out_percent)

    def upload_content(
        self,
        ctx: Context[Any, Any],
        filename: Annotated[str, Field(min_length=1, max_length=255)],
        content: Annotated[str, Field(max_length=MAX_CONTENT_CHARACTERS)],
        purpose: Purpose = "fine-tune",
        columns: Columns = None,
        held_out_percent: HeldOutPercent = None,
    ) -> results.ShownFile:
        """Upload text: JSONL, or a CSV or TSV table."""
        data = content.encode()
        with self._client(ctx) as client:
            return _upload(client, io.BytesIO(data), filename, len(data), purpose, columns, held_out_percent)

    def validate_dataset(
        self,
        ctx: Context[Any, Any],
        file_id: Id,
        model: Id,
        validation_file: Id | None = None,
        method: Id | None = None,
    ) -> results.ShownReport:
        """Check a file by the rules of training. In first_row, trained parts are between [[ and ]]."""
        with self._client(ctx) as client:
            query: Json = {"model": model, "validation_file": validation_file, "method": method, "rows": 1}
            return results.ShownReport.of(client.post(f"{file_path(file_id)}/validate", **query))

    def plan_job(
        self,
        ctx: Context[Any, Any],
        model: Id,
        training_file: Id,
        validation_file: Id | None = None,
        suffix: Id | None = None,
        method: Id | None = None,
        settings: Settings = None,
    ) -> results.ShownPlan:
        """Estimate tokens, memory and hours of a job, and get the plan_id that create_job needs. Creates nothing."""
        named = given(
            model=model, training_file=training_file, validation_file=validation_file, suffix=suffix, method=method
        )
        body = create_body((settings or {}) | named)
        if (size_bytes := len(json.dumps(body))) > MAX_PLAN_BYTES:
            raise ToolError(f"settings: {size_bytes:,} bytes; at most {MAX_PLAN_BYTES:,} are allowed.")
        with self._client(ctx) as client:
            plan = client.post("fine_tuning/jobs/plan", body)
            # The job is what was planned: an alias may change, and the next seed would be another one.
            body |= {"seed": plan["seed"]} | ({"model": plan["model"]} if plan["model_alias"] else {})
            return results.ShownPlan.of(plan, *self._plans.add(client.address.api_key, body))

    def create_job(self, ctx: Context[Any, Any], plan_id: Id) -> results.ShownJob:
        """Train what was planned, once the person has accepted the plan. A repeated call returns the same job."""
        with self._client(ctx) as client:
            body = self._plans.body(client.address.api_key, plan_id)
            return results.ShownJob.of(client.post_once("fine_tuning/jobs", body, plan_id))

    def get_job(self, ctx: Context[Any, Any], job_id: Id) -> results.ShownJob:
        """Show a job, its newest evaluation and its deliveries."""
        with self._client(ctx) as client:
            return results.ShownJob.of(client.get(job_path(job_id)))

    async def wait_job(self, ctx: Context[Any, Any], job_id: Id, timeout_seconds: Timeout = 50) -> results.ShownJob:
        """Wait until a job and its evaluation have ended, the job is paused, or the timeout; call it again then."""
        with self._client(ctx) as client:
            read = partial(client.get, job_path(job_id))
            job = await _wait(ctx, read, _is_over, _job_text, timeout_seconds)
        return results.ShownJob.of(job)

    def list_jobs(
        self,
        ctx: Context[Any, Any],
        status: Id | None = None,
        limit: Annotated[int, Field(ge=1, le=50)] = 10,
    ) -> results.ShownJobs:
        """List the project's jobs, newest first."""
        with self._client(ctx) as client:
            jobs, more = client.first_items("fine_tuning/jobs", limit, status=status)
        return results.ShownJobs(jobs=[results.ShownJob.of(job) for job in jobs], more=more)

    def cancel_job(
        self, ctx: Context[Any, Any], job_id: Id, confirm: Annotated[Id, Field(description="The job_id again")]
    ) -> results.ShownJob:
        """Cancel a job; progress since its last checkpoint is lost. Only after the person has agreed."""
        if confirm != job_id:
            raise ToolError(f"confirm: {confirm[:40]!r} is not the job_id. Repeat the job_id to cancel this job.")
        with self._client(ctx) as client:
            return results.ShownJob.of(client.post(job_path(job_id, "cancel")))

    async def evaluate(
        self,
        ctx: Context[Any, Any],
        job_id: Id,
        file_id: Annotated[Id, Field(description="Rows that were not trained")],
        grader: Grader = "exact",
        max_rows: Annotated[int | None, Field(ge=1)] = None,
        timeout_seconds: Timeout = 50,
    ) -> results.ShownEvaluation:
        """Score the answers of base model and adapter. At the timeout it goes on: read it later with wait_job."""
        body = given(file=file_id, graders=[GRADERS[grader]], max_rows=max_rows)
        with self._client(ctx) as client:
            path = job_path(job_id, "evaluations")
            created = await anyio.to_thread.run_sync(client.post, path, body)
            read = partial(client.get, f"{path}/{created['id']}")
            is_over = lambda row: row["status"] not in UNFINISHED  # noqa: E731
            evaluation = await _wait(ctx, read, is_over, progress_text, timeout_seconds)
        return results.ShownEvaluation.of(evaluation)

    async def deliver(
        self,
        ctx: Context[Any, Any],
        job_id: Id,
        target: Annotated[Id, Field(description="Name of a delivery target of the project")],
        timeout_seconds: Timeout = 50,
    ) -> results.ShownDelivery:
        """Deliver the adapter to an engine, a bucket or a directory. Only after the person has agreed."""
        with self._client(ctx) as client:
            path = job_path(job_id, "deliveries")
            created = await anyio.to_thread.run_sync(client.post, path, {"target": target})
            read = partial(client.get, f"{path}/{created['id']}")
            is_over = lambda row: row["status"] != "pending" or row["error"] is not None  # noqa: E731
            delivery = await _wait(ctx, read, is_over, lambda row: str(row["status"]), timeout_seconds)
        return results.ShownDelivery.of(delivery)

    @contextmanager
    def _client(self, ctx: Context[Any, Any]) -> Iterator[Client]:
        """A client with the key of the caller. Errors of the API and of files become those of the tool."""
        try:
            with closing(Client(self._find_address(ctx))) as client:
                yield client
        except CliError as error:
            raise ToolError(str(error)) from None


def open_below(root: Path, path: str) -> BinaryIO:
    """Open a regular file below `root`. Raises ToolError, also for a link that leads out of it.

    The resolved path is opened directory by directory without links, so that none that is made meanwhile is followed.
    """
    try:
        root = root.resolve(strict=True)
        parts: tuple[str | Path, ...] = (root, *(root / path).resolve(strict=True).relative_to(root).parts)
        with ExitStack() as opened:
            fd = None
            for number, part in enumerate(parts, start=1):
                kind = os.O_DIRECTORY if number < len(parts) else os.O_NONBLOCK  # a pipe would block
                fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=fd)
                opened.callback(os.close, fd)
            assert fd is not None, "of the root at least"
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("no regular file")
            return os.fdopen(os.dup(fd), "rb")
    except (OSError, ValueError, RuntimeError):  # Python 3.12 and older raise the last for links in a circle
        raise ToolError(
            f"path: {path[:200]!r} is not a readable file below the root {root}. Give a path below it, or start "
            "the server with another --root."
        ) from None


def _upload(
    client: Client,
    file: BinaryIO,
    filename: str,
    size_bytes: int,
    purpose: str,
    columns: str | None,
    held_out_percent: int | None,
) -> results.ShownFile:
    fields = given(columns=columns, held_out_percent=held_out_percent)
    return results.ShownFile.of(client.upload(file, filename, purpose, None, fields, size_bytes))


async def _wait(
    ctx: Context[Any, Any],
    read: Callable[[], Json],
    is_over: Callable[[Json], bool],
    text: Callable[[Json], str],
    timeout_seconds: float,
) -> Json:
    """What `read` returns once it `is_over`, or at the timeout. The progress is the elapsed time, as it must grow."""
    start = time.monotonic()
    while True:
        row = await anyio.to_thread.run_sync(read)
        elapsed = time.monotonic() - start
        if is_over(row) or elapsed >= timeout_seconds:
            return row
        await ctx.report_progress(round(elapsed, 1), timeout_seconds, text(row) or row["status"])
        await anyio.sleep(min(POLL_SECONDS, timeout_seconds - elapsed))


def _is_over(job: Json) -> bool:
    evaluation = job["evaluation"] if job["status"] == "succeeded" else None
    is_evaluated = evaluation is None or evaluation["status"] not in UNFINISHED
    return job["status"] == "paused" or (is_finished(job) and is_evaluated)


def _job_text(job: Json) -> str:
    evaluation = job["evaluation"] and f"evaluation {job['evaluation']['status']}"
    return ", ".join(filter(None, (job["phase"] or job["status"], numbers_text(job, Losses()), evaluation)))


def _digest(api_key: str | None) -> bytes:
    return sha256((api_key or "").encode()).digest()
