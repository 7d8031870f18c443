"""The comparison of jobs: names that tell them apart, and the settings as text."""

from __future__ import annotations

from app.web.pages.jobs.compare import distinct_names, job_settings
from tests.api_objects import FINISHED_JOB

CLONE = FINISHED_JOB | {"id": "ftjob-0123456789ab", "cloned_from": FINISHED_JOB["id"]}
OTHER = FINISHED_JOB | {"id": "ftjob-ffffffffffff", "user_provided_suffix": "other"}


def test_jobs_of_the_same_name_have_their_short_ids() -> None:
    first = FINISHED_JOB | {"id": "ftjob-4f6e1c0b9d2a"}
    assert distinct_names([first, CLONE, OTHER]) == ["demo (ftjob-4f6e1c0b)", "demo (ftjob-01234567)", "other"]


def test_settings_have_dotted_names() -> None:
    settings = job_settings(FINISHED_JOB | {"quantization": None})
    assert settings["lora.r"] == "16"
    assert settings["n_epochs"] == "1"
    assert settings["quantization"] == "none"
