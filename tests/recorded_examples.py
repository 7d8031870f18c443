"""Objects of the API for tests: the recorded examples of the OpenAPI document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXAMPLES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "app/api/openapi/examples.json").read_bytes())


def response(operation: str) -> dict[str, Any]:
    """The JSON response of an operation, such as `GET /v1/models`."""
    body: dict[str, Any] = EXAMPLES[operation]["responses"]["200 application/json"]
    return body


JOBS = "/v1/fine_tuning/jobs"
NEW_JOB = response(f"POST {JOBS}")
FINISHED_JOB = response(f"GET {JOBS}/{{job_id}}")
DELIVERY = response(f"GET {JOBS}/{{job_id}}/deliveries/{{delivery_id}}")
EVALUATION = response(f"GET {JOBS}/{{job_id}}/evaluations/{{evaluation_id}}")
