"""What the tools return, at most ten fields each: agents read them, so they have what a decision needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from app.cli.output.progress import Losses, numbers_text
from app.domain.error_text.json_text import unquoted

Json = dict[str, Any]
MAX_ITEMS = 20  # of findings, warnings and devices
MAX_PREVIEW_CHARACTERS = 2_000
SECONDS_PER_HOUR = 3600


class ShownStart(BaseModel):
    server: str
    project: str
    scopes: list[str]
    write: bool
    steps: list[str]
    pages: list[str]


class ShownModel(BaseModel):
    id: str
    base_model: str | None
    alias_of: str | None
    job_id: str | None
    max_context_length: int | None

    @classmethod
    def of(cls, row: Json) -> ShownModel:
        names = {"job_id": "fine_tuning_job_id"}
        return cls(**{name: row.get(names.get(name, name)) for name in cls.model_fields})


class ShownModels(BaseModel):
    models: list[ShownModel]
    more: bool


class ShownFile(BaseModel):
    id: str
    filename: str
    bytes: int
    rows: int | None
    purpose: str
    held_out_file_id: str | None

    @classmethod
    def of(cls, file: Json) -> ShownFile:
        return cls(rows=file["line_count"], **{name: file.get(name) for name in cls.model_fields if name != "rows"})


class ShownReport(BaseModel):
    valid: bool
    message: str
    method: str
    rows: int
    tokens: int
    trained_tokens: int
    findings: list[str]
    warnings: list[str]
    first_row: str  # as the model receives it, with trained parts between [[ and ]]

    @classmethod
    def of(cls, report: Json) -> ShownReport:
        found = report["findings"]["data"][:MAX_ITEMS]
        documents = report["rows"][0]["documents"] if report["rows"] else []
        segments = [segment for document in documents for segment in document["segments"]]
        shown = "".join(f"[[{one['text']}]]" if one["trained"] else one["text"] for one in segments)
        return cls(
            valid=report["valid"],
            message=report["message"],
            method=report["method"],
            rows=sum(report["formats"].values()),
            tokens=report["tokens"]["total"],
            trained_tokens=report["tokens"]["trained"],
            findings=[f"line {one['line']}: {one['message']}" for one in found],
            warnings=_messages(report["warnings"]),
            first_row=unquoted(shown, MAX_PREVIEW_CHARACTERS),
        )


class ShownDevice(BaseModel):
    name: str
    fits: bool
    peak_bytes: int
    memory_bytes: int
    hours: float
    basis: str


class ShownPlan(BaseModel):
    plan_id: str
    expires_at: int
    message: str
    model: str
    examples: int
    total_tokens: int  # of all epochs; those of a report are of one
    total_steps: int
    devices: list[ShownDevice]
    warnings: list[str]
    settings: Json

    @classmethod
    def of(cls, plan: Json, plan_id: str, expires_at: int) -> ShownPlan:
        devices = [
            ShownDevice(
                name=one["name"],
                fits=one["fits"],
                peak_bytes=one["memory"]["peak"],
                memory_bytes=one["memory_bytes"],
                hours=round(one["seconds"] / SECONDS_PER_HOUR, 4),
                basis=one["basis"],
            )
            for one in plan["devices"][:MAX_ITEMS]
        ]
        same = ("message", "model", "examples", "total_steps")
        resolved = ("method", "hyperparameters", "lora", "quantization", "seed")
        return cls(
            plan_id=plan_id,
            expires_at=expires_at,
            total_tokens=plan["trained_tokens"],
            devices=devices,
            warnings=_messages(plan["warnings"]),
            settings={name: plan[name] for name in resolved},
            **{name: plan[name] for name in same},
        )


class ShownJob(BaseModel):
    id: str
    name: str | None
    status: str
    model: str
    fine_tuned_model: str | None
    progress: str
    estimated_finish: int | None
    error: str | None
    evaluation: str | None
    notes: list[str]

    @classmethod
    def of(cls, job: Json) -> ShownJob:
        error, evaluation = job.get("error") or {}, job.get("evaluation")
        delivered = [f"delivery to {one['target']}: {one['status']}" for one in job["deliveries"]]
        same = ("id", "status", "model", "fine_tuned_model", "estimated_finish")
        return cls(
            name=job["user_provided_suffix"],
            progress=numbers_text(job, Losses()),
            error=f"{error['code']}: {error['message']}" if error.get("code") else None,
            evaluation=evaluation and (evaluation.get("headline") or {}).get("text", evaluation["status"]),
            notes=[*_messages(job["warnings"]), *delivered],
            **{name: job[name] for name in same},
        )


class ShownJobs(BaseModel):
    jobs: list[ShownJob]
    more: bool


class ShownScore(BaseModel):
    grader: str
    base: float | None
    adapter: float | None
    difference: float | None
    low: float | None  # of the 95 % interval of the difference
    high: float | None


class ShownEvaluation(BaseModel):
    id: str
    status: str
    result: str | None
    scores: list[ShownScore]
    rows: int | None
    answers: int
    total_answers: int | None
    warnings: list[str]
    report_file: str | None
    error: str | None

    @classmethod
    def of(cls, row: Json) -> ShownEvaluation:
        summary, progress, error = row["summary"] or {}, row["progress"] or {}, row["error"]
        return cls(
            id=row["id"],
            status=row["status"],
            result=(row["headline"] or {}).get("text"),
            scores=[_score(one) for one in summary.get("graders", ())],
            rows=summary.get("rows"),
            answers=progress.get("answers", 0),
            total_answers=progress.get("total_answers"),
            warnings=list(summary.get("warnings", ()))[:MAX_ITEMS],
            report_file=row["report_file"],
            error=error and f"{error['code']}: {error['message']}",
        )


class ShownDelivery(BaseModel):
    id: str
    target: str
    status: str
    served_model: str | None
    check: str | None
    error: str | None

    @classmethod
    def of(cls, row: Json) -> ShownDelivery:
        values = {name: row.get(name) for name in cls.model_fields}
        return cls(**values | {"check": row["check"] and row["check"]["verdict"]})


def _score(grader: Mapping[str, Any]) -> ShownScore:
    difference = grader["difference"] or {}
    return ShownScore(
        grader=grader["name"],
        base=grader["base"]["mean"],
        adapter=grader["adapter"]["mean"],
        difference=difference.get("mean"),
        low=difference.get("low"),
        high=difference.get("high"),
    )


def _messages(warnings: Iterable[Mapping[str, Any]]) -> list[str]:
    return [str(one["message"]) for one in warnings][:MAX_ITEMS]
