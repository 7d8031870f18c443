"""Descriptions of evaluations."""

from __future__ import annotations

BY_SCHEMA = {
    "EvaluationOfJob.error": "Why it failed.",
    "EvaluationOfJob.file": "The file of held-out rows.",
    "EvaluationOfJob.id": "The evaluation; null while it is only requested.",
    "EvaluationOfJob.precision": "The precision in which the base model answered.",
    "EvaluationOfJob.status": "Its state; `requested` until the training has succeeded.",
    "EvaluationOfJob.summary": "The result; null until it has succeeded.",
    "JobBody.evaluation": "The newest evaluation of the job; null without one.",
}
