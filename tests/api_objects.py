"""Objects of the API for tests: the recorded examples of the OpenAPI document, and results that a GPU would give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from httpx2 import Response

from app.domain.evaluations.headline import headline

PATH = Path(__file__).parents[1] / "app/api/openapi/examples.json"
EXAMPLES: dict[str, Any] = json.loads(PATH.read_bytes())


def response(operation: str) -> dict[str, Any]:
    """The JSON response of an operation, such as `GET /v1/models`."""
    body: dict[str, Any] = EXAMPLES[operation]["responses"]["200 application/json"]
    return body


def error_of(answer: Response, status: int = 400) -> dict[str, Any]:
    """The error of a refused request."""
    assert answer.status_code == status, answer.text
    return dict(answer.json()["error"])


def param_of(answer: Response) -> str:
    return str(error_of(answer)["param"])


JOBS = "/v1/fine_tuning/jobs"
NEW_JOB = response(f"POST {JOBS}")
FINISHED_JOB = response(f"GET {JOBS}/{{job_id}}")
CHECK = {
    "verdict": "same",
    "prompts": 16,
    "tokens": 645,
    "noise": 0.0015,
    "trainer_effect": 1.862,
    "engine_effect": 1.861,
    "difference": 0.0017,
    "largest_difference": 0.086,
    "top1_agreement": 1.0,
    "method": "prompt",
    "reason": None,
}
DELIVERY = response(f"GET {JOBS}/{{job_id}}/deliveries/{{delivery_id}}") | {"check": CHECK}
SUMMARY: dict[str, Any] = {
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
EVALUATION = response(f"GET {JOBS}/{{job_id}}/evaluations/{{evaluation_id}}") | {
    "summary": SUMMARY,
    "headline": headline(SUMMARY).model_dump(mode="json"),  # type: ignore[union-attr]
    "estimated_finish": None,
}
