"""8, 12 (the request), 13 and 22: what a job may be asked for, and what is refused."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from material import LORA, QUANTIZATION
from world import MODEL, counting, extra

FLAT = {
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_trainable_modules": "q_proj,v_proj",
    "load_in_4bit": True,
}


def supervised(**hyperparameters: Any) -> Any:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


@pytest.fixture
def create(client: openai.OpenAI, training_file: str) -> Any:
    """Create a job and cancel it: what it was resolved to is what is looked at."""

    def create(**asked: Any) -> Any:
        job = client.fine_tuning.jobs.create(**{"model": MODEL, "training_file": training_file, **asked})
        client.fine_tuning.jobs.cancel(job.id)
        return job

    return create


def test_a_minimal_job_is_complete_at_once(create: Any) -> None:
    job = create()
    assert job.object == "fine_tuning.job"
    assert job.status in ("validating_files", "queued")
    assert isinstance(job.seed, int)
    assert (job.error, job.fine_tuned_model, job.finished_at, job.result_files) == (None, None, None, [])
    assert (job.method.type, job.integrations, job.trained_tokens) == ("supervised", [], None)
    assert job.hyperparameters.n_epochs == 10  # a hundred examples' worth


def test_explicit_nulls_are_taken(create: Any) -> None:
    job = create(suffix=None, seed=None, validation_file=None, metadata=None, integrations=None)
    assert (job.metadata, job.validation_file) == (None, None)


def test_the_hyperparameters_are_the_same_in_either_place(create: Any) -> None:
    jobs = [
        create(extra_body={"lora": LORA, "quantization": QUANTIZATION}),
        create(method=supervised(**FLAT)),
        create(method=supervised(lora=LORA, quantization=QUANTIZATION)),
        create(hyperparameters=FLAT),
    ]
    assert {**LORA, "target_modules": sorted(LORA["target_modules"])}.items() <= {
        **extra(jobs[0])["lora"],
        "target_modules": sorted(extra(jobs[0])["lora"]["target_modules"]),
    }.items()
    assert extra(jobs[0])["quantization"] == QUANTIZATION
    for job in jobs[1:]:
        assert extra(job)["lora"] == extra(jobs[0])["lora"]
        assert extra(job)["quantization"] == extra(jobs[0])["quantization"]
        assert job.hyperparameters == jobs[0].hyperparameters


def test_metrics_go_to_a_project_at_weights_and_biases(create: Any) -> None:
    job = create(integrations=[{"type": "wandb", "wandb": {"project": "p", "name": None, "tags": ["a"]}}])
    (shown,) = job.integrations
    assert (shown.type, shown.wandb.project, shown.wandb.tags, shown.wandb.run_id) == ("wandb", "p", ["a"], job.id)


def test_a_null_quantization_is_a_16_bit_base(create: Any) -> None:
    assert extra(create(extra_body={"quantization": None}))["quantization"] is None
    assert extra(create(method=supervised(load_in_4bit=False)))["quantization"] is None


def test_auto_is_resolved_at_once(create: Any) -> None:
    job = create(method=supervised(n_epochs="auto", batch_size="auto", learning_rate_multiplier="auto"))
    found = job.method.supervised.hyperparameters
    assert (found.n_epochs, found.batch_size, found.learning_rate_multiplier) == (10, 1, 1.0)


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"extra_body": {"lora": {"r": 4}}, "method": supervised(lora_r=8)}, "conflicting_parameters", "lora.r"),
        ({"method": supervised(lora_rnk=8)}, "unknown_parameter", "method.supervised.hyperparameters.lora_rnk"),
        ({"hyperparameters": {"lora_rnk": 8}}, "unknown_parameter", "hyperparameters.lora_rnk"),
        ({"extra_body": {"loar": {"r": 8}}}, "unknown_parameter", "loar"),
        (
            {"integrations": [{"type": "wandb", "wandb": {}}]},
            "missing_required_parameter",
            "integrations.0.wandb.project",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_refused_is_named_in_one_request(
    training_file: str, asked: dict[str, Any], code: str, param: str
) -> None:
    seen: list[str] = []
    with counting(seen) as counted, pytest.raises(openai.BadRequestError) as caught:
        counted.fine_tuning.jobs.create(**{"model": MODEL, "training_file": training_file, **asked})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.message
    assert len(seen) == 1


def test_a_file_of_another_purpose_is_refused(client: openai.OpenAI) -> None:
    file = client.files.create(file=b"x", purpose="user_data")
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(model=MODEL, training_file=file.id)
    assert caught.value.param == "training_file"


def test_jobs_are_found_by_their_metadata(client: openai.OpenAI, create: Any) -> None:
    marked = create(metadata={"team": "search", "run": client.api_key[-4:] + str(client._strict_response_validation)})
    plain = create()
    jobs = client.fine_tuning.jobs
    assert marked.id in [job.id for job in jobs.list(metadata={"team": "search"})]
    assert [job.id for job in jobs.list(metadata=dict(marked.metadata))] == [marked.id]
    assert list(jobs.list(metadata={"team": "nobody"})) == []
    without = [job.id for job in jobs.list(extra_query={"metadata": "null"})]
    assert plain.id in without
    assert marked.id not in without
    page = jobs.list(limit=1)
    assert page.data[0].id == plain.id
    assert page.has_next_page()
