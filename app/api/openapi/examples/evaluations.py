"""Examples of evaluations."""

from __future__ import annotations

from typing import Any

from app.api.openapi.examples import all_operations
from app.api.openapi.examples.all_operations import OpenApi
from app.domain.evaluations.graders import CreateEvaluation

EVALUATION_FILE = "file-3a1b2c3d4e5f60718293a4b5"
GRADERS: list[dict[str, Any]] = [
    {"type": "label_accuracy", "name": "label", "labels": ["billing", "shipping"]},
    {
        "type": "text_similarity",
        "name": "similarity",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.reference_answer }}",
        "evaluation_metric": "fuzzy_match",
    },
]
CREATE_EVALUATION = {
    "file": EVALUATION_FILE,
    "graders": GRADERS,
    "max_rows": 200,
    "promote_if": {"grader": "label", "margin": 0.02},
}
SETTINGS = CreateEvaluation.model_validate(CREATE_EVALUATION).settings().model_dump(mode="json")
SUMMARY = {
    "rows": 200,
    "rows_in_file": 1200,
    "precision": "4 bits (nf4, as in the training), computed in bfloat16",
    "device": "cuda (NVIDIA L4)",
    "seconds": 61.5,
    "seconds_per_answer": 0.154,
    "answers": {
        "base": {"answered": 200, "failed": 0, "cut": 31, "empty": 0, "tokens": 9120},
        "adapter": {"answered": 200, "failed": 0, "cut": 0, "empty": 0, "tokens": 814},
        "reference": None,
    },
    "graders": [
        {
            "name": "label",
            "type": "label_accuracy",
            "base": {"mean": 0.41, "rows": 200, "failed_rows": 0, "pass_rate": None},
            "adapter": {"mean": 0.93, "rows": 200, "failed_rows": 0, "pass_rate": None},
            "reference": None,
            "difference": {"mean": 0.52, "low": 0.444, "high": 0.587, "rows": 200, "method": "paired_wilson"},
            "reference_difference": None,
            "confusion": {
                "base": {"labels": ["billing", "shipping"], "counts": [[40, 12, 48], [9, 42, 49]]},
                "adapter": {"labels": ["billing", "shipping"], "counts": [[94, 6, 0], [8, 92, 0]]},
                "reference": None,
            },
            "fields": None,
        }
    ],
    "promotion": {
        "grader": "label",
        "margin": 0.02,
        "allowed": True,
        "reason": "label: adapter 0.93, base 0.41; the interval of the difference begins at +0.444, above -0.02",
    },
    "warnings": [],
}
PLAN = {
    "rows": 200,
    "prompt_tokens": 21_400,
    "max_answer_tokens": 102_400,
    "estimated_seconds": 70.0,
    "basis": "measured",
}
EVALUATION = {
    "id": "fteval-8a1b2c3d4e5f60718293a4b5",
    "object": "fine_tuning.job.evaluation",
    "created_at": 1795000500,
    "started_at": 1795000501,
    "finished_at": 1795000570,
    "fine_tuning_job_id": all_operations.JOB_ID,
    "status": "succeeded",
    "file": EVALUATION_FILE,
    "model": all_operations.TUNED,
    "checkpoint": all_operations.CHECKPOINT["id"],
    "step_number": 90,
    "base_model": all_operations.MODEL,
    "settings": SETTINGS,
    "plan": PLAN,
    "progress": {"answers": 400, "total_answers": 400},
    "attempts": 1,
    "precision": SUMMARY["precision"],
    "results_file": "file-e3b2c3d4e5f60718293a4b56",
    "report_file": "file-e4b2c3d4e5f60718293a4b57",
    "summary": SUMMARY,
    "error": None,
}
QUEUED = EVALUATION | {
    "started_at": None,
    "finished_at": None,
    "status": "queued",
    "plan": PLAN
    | {"rows": None, "prompt_tokens": None, "max_answer_tokens": None, "estimated_seconds": None}
    | {"basis": None},
    "progress": None,
    "attempts": 0,
    "precision": None,
    "results_file": None,
    "report_file": None,
    "summary": None,
}
CANCELLED = QUEUED | {"status": "cancelled", "finished_at": 1795000503}

RESPONSE_EXAMPLES: dict[str, Any] = {
    "POST /v1/fine_tuning/jobs/{job_id}/evaluations": QUEUED,
    "GET /v1/fine_tuning/jobs/{job_id}/evaluations": all_operations.page_of(EVALUATION),
    "GET /v1/fine_tuning/jobs/{job_id}/evaluations/{evaluation_id}": EVALUATION,
    "POST /v1/fine_tuning/jobs/{job_id}/evaluations/{evaluation_id}/cancel": CANCELLED,
}
CREATE_EVALUATION_SCHEMA = CreateEvaluation.model_json_schema(ref_template="#/components/schemas/{model}")
CREATE_EVALUATION_BODY: OpenApi = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/CreateEvaluation"},
                "example": CREATE_EVALUATION,
            }
        },
    }
}
