"""25: going on from an adapter, and its model's end."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from material import Created
from world import CONTEXT, MAJOR, MODEL, extra, need_route, succeeded


@pytest.fixture(scope="session")
def continued(default: openai.OpenAI, jobs: Created, training_file: str) -> Any:
    """A job that goes on from the model of another."""
    parent = succeeded(default, jobs.main).fine_tuned_model
    job = default.fine_tuning.jobs.create(
        model=parent, training_file=training_file, suffix="more", hyperparameters={"n_epochs": 1}
    )
    assert job.model == parent
    return succeeded(default, job.id)


def test_training_goes_on_from_an_earlier_model(client: openai.OpenAI, jobs: Created, continued: Any) -> None:
    job, parent = client.fine_tuning.jobs.retrieve(continued.id), client.fine_tuning.jobs.retrieve(jobs.main)
    assert job.status == "succeeded"
    assert extra(job)["lora"] == extra(parent)["lora"]
    assert job.fine_tuned_model
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:")
    model = client.models.retrieve(job.fine_tuned_model)
    assert (model.id, model.object) == (job.fine_tuned_model, "model")
    assert isinstance(model.created, int)
    assert model.owned_by
    assert job.fine_tuned_model in {listed.id for listed in client.models.list()}


def test_a_model_is_deleted_and_its_job_stays(default: openai.OpenAI, continued: Any) -> None:
    gone = default.models.delete(continued.fine_tuned_model)
    assert (gone.id, gone.object, gone.deleted) == (continued.fine_tuned_model, "model", True)
    with pytest.raises(openai.NotFoundError):
        default.models.retrieve(continued.fine_tuned_model)
    assert default.fine_tuning.jobs.retrieve(continued.id).status == "succeeded"


def test_the_permissions_of_a_checkpoint_have_the_clients_shape(client: openai.OpenAI, jobs: Created) -> None:
    need_route("GET /v1/fine_tuning/checkpoints/{model}/permissions")
    model = succeeded(client, jobs.main).fine_tuned_model
    permissions = client.fine_tuning.checkpoints.permissions
    page = permissions.retrieve(model) if MAJOR == 1 else permissions.list(model)
    assert list(page.data) == []
    assert page.has_more is False


def test_a_base_model_belongs_to_the_operator(client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete(MODEL)


def test_a_model_with_a_slash_in_its_name_can_be_tuned(client: openai.OpenAI, training_file: str) -> None:
    job = client.fine_tuning.jobs.create(model=CONTEXT["slashed_model"], training_file=training_file)
    client.fine_tuning.jobs.cancel(job.id)
    assert job.model == CONTEXT["slashed_model"]
