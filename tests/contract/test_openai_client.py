"""What the official client does that needs no trainer, over a real socket; the rest is end to end."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from app.db.tables import Job
from app.settings import Settings
from tests.contract.conftest import Connect
from tests.factories import chat_lines
from tests.serving import LiveServer

pytestmark = pytest.mark.usefixtures("base_model")
Work = Callable[[], Job]


class TestRepointing:
    def test_takes_two_environment_variables(
        self, live_server: LiveServer, api_key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("OPENAI_BASE_URL", live_server.url)
        monkeypatch.setenv("OPENAI_API_KEY", api_key)
        with OpenAI() as client:
            models = client.models.list()
            assert [model.id for model in models] == ["tiny"]
            assert models._request_id


class TestErrors:
    def test_are_the_exceptions_that_scripts_catch(self, official: OpenAI, connect: Connect) -> None:
        with pytest.raises(openai.AuthenticationError) as wrong_key:
            connect(api_key="wrong").models.list()
        assert wrong_key.value.code == "invalid_api_key"
        asks: tuple[Callable[[], object], ...] = (
            lambda: official.files.retrieve("file-nothere"),
            lambda: official.fine_tuning.jobs.retrieve("ftjob-nothere"),
            lambda: official.models.retrieve("gpt-4o"),
            lambda: official.get("/nowhere", cast_to=object),
        )
        for ask in asks:
            with pytest.raises(openai.NotFoundError) as missing:
                ask()
            assert missing.value.message
            assert missing.value.type == "invalid_request_error"
            assert missing.value.request_id

    def test_of_an_upload_name_the_line(self, official: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="Line 2: not valid JSON") as caught:
            official.files.create(file=b'{"a": 1}\noops\n', purpose="fine-tune")
        assert caught.value.param == "file"

    def test_of_a_create_name_the_dotted_param(self, official: OpenAI, data_set: Path) -> None:
        file = official.files.create(file=data_set, purpose="fine-tune")
        with pytest.raises(openai.BadRequestError) as caught:
            official.fine_tuning.jobs.create(model="tiny", training_file=file.id, extra_body={"lora": {"rnk": 8}})
        assert (caught.value.code, caught.value.param) == ("unknown_parameter", "lora.rnk")

    @pytest.mark.parametrize("megabytes", [1, 40])
    def test_that_come_before_the_body_was_read_still_arrive(self, connect: Connect, megabytes: int) -> None:
        with pytest.raises(openai.AuthenticationError):
            connect(api_key="wrong", max_retries=0).files.create(file=b"x" * (megabytes << 20), purpose="batch")


class TestAFileThatIsTooLarge:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"max_file_bytes": 1_000_000})

    def test_is_a_413_that_arrives(self, connect: Connect, api_key: str) -> None:
        for size in (1_000_001, 30_000_000):
            with pytest.raises(openai.APIStatusError) as caught:
                connect(api_key=api_key, max_retries=0).files.create(file=b"x" * size, purpose="batch")
            assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")


class TestFiles:
    def test_are_uploaded_in_every_shape_and_come_back(self, official: OpenAI, data_set: Path) -> None:
        content = data_set.read_bytes()
        with data_set.open("rb") as opened:
            shapes: dict[str, Any] = {
                "train.jsonl": data_set,
                "upload": content,
                "größe.jsonl": ("größe.jsonl", content, "application/jsonl"),
            }
            files = {name: official.files.create(file=shape, purpose="fine-tune") for name, shape in shapes.items()}
            files["opened"] = official.files.create(file=opened, purpose="fine-tune")
        for name, file in files.items():
            assert file.filename == ("train.jsonl" if name == "opened" else name)
            assert (file.object, file.bytes, file.purpose) == ("file", len(content), "fine-tune")
            assert official.files.wait_for_processing(file.id).status == "processed"
            assert official.files.content(file.id).read() == content

    def test_expire_at_the_requested_time(self, official: OpenAI) -> None:
        file = official.files.create(
            file=b"x", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert file.expires_at == file.created_at + 3600
        with pytest.raises(openai.BadRequestError):
            official.files.create(file=b"x", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 10})

    def test_are_listed_page_by_page(self, official: OpenAI) -> None:
        ids = [official.files.create(file=b"x", purpose="batch").id for _ in range(5)]
        official.files.create(file=chat_lines(), purpose="fine-tune")
        assert [file.id for file in official.files.list(limit=2, order="asc", purpose="batch")] == ids
        assert [file.id for file in official.files.list(limit=2, order="desc", purpose="batch")] == ids[::-1]

    def test_are_deleted_while_they_are_listed(self, official: OpenAI) -> None:
        for _ in range(5):
            official.files.create(file=b"x", purpose="batch")
        for file in official.files.list(limit=2):
            assert official.files.delete(file.id).deleted
        assert list(official.files.list()) == []

    def test_stream_to_disk_and_in_ranges(self, official: OpenAI, tmp_path: Path) -> None:
        content = bytes(range(256)) * 12_000
        file = official.files.create(file=content, purpose="user_data")
        with official.files.with_streaming_response.content(file.id) as answer:
            answer.stream_to_file(tmp_path / "whole")
        assert (tmp_path / "whole").read_bytes() == content
        pieces = io.BytesIO()
        for start in range(0, len(content), 1_000_000):
            header = {"Range": f"bytes={start}-{start + 999_999}"}
            pieces.write(official.files.content(file.id, extra_headers=header).read())
        assert pieces.getvalue() == content


class TestJobs:
    def test_minimal_create_is_complete_at_once(self, official: OpenAI, data_set: Path) -> None:
        file = official.files.create(file=data_set, purpose="fine-tune")
        job = official.fine_tuning.jobs.create(model="tiny", training_file=file.id)
        assert job.status == "validating_files"
        assert isinstance(job.seed, int)
        assert (job.error, job.fine_tuned_model, job.result_files) == (None, None, [])
        assert official.fine_tuning.jobs.retrieve(job.id) == job

    def test_run_to_the_adapter(self, official: OpenAI, data_set: Path, work: Work, tmp_path: Path) -> None:
        file = official.files.create(file=data_set, purpose="fine-tune")
        created = official.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            suffix="demo",
            seed=7,
            metadata={"team": "search"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}},
            extra_body={"lora": {"r": 8, "alpha": 16, "target_modules": ["q_proj"]}, "quantization": None},
        )
        work()
        job = official.fine_tuning.jobs.retrieve(created.id)
        assert job.status == "succeeded"
        assert job.hyperparameters.n_epochs == 8
        assert job.lora["r"] == 8  # type: ignore[attr-defined]
        assert job.trained_tokens == 1234
        assert job.finished_at
        assert job.fine_tuned_model

        events = list(official.fine_tuning.jobs.list_events(job.id, limit=3))
        assert events[0].message == "The job has successfully completed"
        assert events[-1].message == f"Created fine-tuning job: {job.id}"
        assert {event.type for event in events} == {"message", "metrics"}

        checkpoints = list(official.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
        assert [checkpoint.step_number for checkpoint in checkpoints] == [3, 2, 1]
        assert checkpoints[0].fine_tuned_model_checkpoint == job.fine_tuned_model
        for file_id in checkpoints[0].result_files:  # type: ignore[attr-defined]
            filename = official.files.retrieve(file_id).filename
            official.files.content(file_id).write_to_file(tmp_path / filename)
        assert (tmp_path / "adapter_model.safetensors").exists()

        (results,) = job.result_files
        assert official.files.content(results).text.startswith("step,train_loss,train_accuracy,valid_loss,")

        adapter = official.get(f"/fine_tuning/jobs/{job.id}/adapter", cast_to=object)
        archive = official.files.content(adapter["archive"]["id"]).read()  # type: ignore[index]
        assert hashlib.sha256(archive).hexdigest() == job.adapter["sha256"]  # type: ignore[attr-defined]

        assert official.models.retrieve(job.fine_tuned_model).owned_by == "tunery"
        assert official.models.delete(job.fine_tuned_model).deleted
        with pytest.raises(openai.NotFoundError):
            official.models.retrieve(job.fine_tuned_model)

    def test_learn_from_preferences(self, official: OpenAI, data_set: Path) -> None:
        file = official.files.create(file=data_set, purpose="fine-tune")
        job = official.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": "auto"}}},
        )
        assert job.method
        assert job.method.type == "dpo"
        assert job.method.dpo
        assert job.method.dpo.hyperparameters
        assert job.method.dpo.hyperparameters.beta == 0.2
        assert job.hyperparameters.n_epochs is None
        assert official.fine_tuning.jobs.retrieve(job.id) == job
        assert next(iter(official.fine_tuning.jobs.list())) == job

    def test_accept_their_hyperparameters_in_every_place(self, official: OpenAI, data_set: Path) -> None:
        file = official.files.create(file=data_set, purpose="fine-tune")
        flat: Any = {"lora_r": 8, "lora_alpha": 4, "lora_trainable_modules": "q_proj,v_proj", "load_in_4bit": False}
        create = official.fine_tuning.jobs.create
        ways = [
            create(
                model="tiny",
                training_file=file.id,
                extra_body={
                    "lora": {"rank": 8, "alpha": 4, "target_modules": ["v_proj", "q_proj"]},
                    "quantization": None,
                },
            ),
            create(model="tiny", training_file=file.id, hyperparameters=flat),
            create(
                model="tiny",
                training_file=file.id,
                method={"type": "supervised", "supervised": {"hyperparameters": flat}},
            ),
        ]
        assert ways[0].lora["r"] == 8  # type: ignore[attr-defined]
        assert all(job.lora == ways[0].lora for job in ways)  # type: ignore[attr-defined]
        assert all(job.quantization is None for job in ways)  # type: ignore[attr-defined]

    def test_send_explicit_nulls(self, official: OpenAI, data_set: Path) -> None:
        file = official.files.create(file=data_set, purpose="fine-tune")
        job = official.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            suffix=None,
            seed=None,
            validation_file=None,
            metadata=None,
            integrations=None,
        )
        assert job.metadata is None

    def test_are_filtered_by_metadata(self, official: OpenAI, data_set: Path) -> None:
        file = official.files.create(file=data_set, purpose="fine-tune")
        marked = official.fine_tuning.jobs.create(model="tiny", training_file=file.id, metadata={"k": "v", "e": ""})
        plain = official.fine_tuning.jobs.create(model="tiny", training_file=file.id)
        jobs = official.fine_tuning.jobs
        assert [job.id for job in jobs.list(metadata={"k": "v"})] == [marked.id]
        assert [job.id for job in jobs.list(metadata={"e": ""})] == [marked.id]
        assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == [plain.id]
        assert [job.id for job in jobs.list(limit=1)] == [plain.id, marked.id]

    def test_cancelled_twice_are_the_same_and_finished_ones_refuse_in_one_request(
        self, official: OpenAI, data_set: Path, work: Work
    ) -> None:
        file = official.files.create(file=data_set, purpose="fine-tune")
        first = official.fine_tuning.jobs.create(model="tiny", training_file=file.id)
        assert official.fine_tuning.jobs.cancel(first.id).status == "cancelled"
        assert official.fine_tuning.jobs.cancel(first.id).status == "cancelled"
        second = official.fine_tuning.jobs.create(model="tiny", training_file=file.id)
        work()
        for act in (
            official.fine_tuning.jobs.cancel,
            official.fine_tuning.jobs.pause,
            official.fine_tuning.jobs.resume,
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                act(second.id)
            assert caught.value.request.headers["x-stainless-retry-count"] == "0"


class TestAsync:
    def test_client_works_too(self, live_server: LiveServer, api_key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_PROXY", "*")

        async def run() -> list[str]:
            async with openai.AsyncOpenAI(base_url=live_server.url, api_key=api_key) as client:
                file = await client.files.create(file=chat_lines(), purpose="fine-tune")
                await client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
                return [
                    job.training_file async for job in client.fine_tuning.jobs.list() if job.training_file == file.id
                ]

        assert len(asyncio.run(run())) == 1
