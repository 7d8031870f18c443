from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.schemas.exports import ExportBody
from app.db.engine import Sessions, transaction
from app.db.jobs import checkpoints, exports
from app.db.jobs.leases import Lease
from app.db.scheduling import workers
from app.db.tables import BaseModelRow, Export, Job, Project
from app.domain.artifacts.exports import ExportErrorCode, ExportType
from app.storage import LocalStorage
from tests.api_objects import error_of
from tests.factories import fail_attempt, make_file

JOBS = "/v1/fine_tuning/jobs"


def path(job: Job, *rest: str) -> str:
    return "/".join((JOBS, job.id, "exports", *rest))


def ask(client: TestClient, job: Job, **body: Any) -> dict[str, Any]:
    answer = client.post(path(job), json={"type": "merged"} | body)
    assert answer.status_code == 200, answer.text
    export: dict[str, Any] = answer.json()
    ExportBody.model_validate(export)
    return export


def finish(sessions: Sessions, storage: LocalStorage, project: Project, job: Job) -> list[str]:
    """As a worker would: two files and the success, in one transaction."""
    with transaction(sessions) as session:
        export = exports.claim(session, "export.cpu0@a#1", 60)
        assert export is not None
        made = [
            make_file(session, storage, project, b"x" * size, "fine-tune-results", name, job, line_count=None)
            for name, size in (("config.json", 10), ("model.safetensors", 90))
        ]
        ids = [file.id for file in made]
        exports.succeed(session, Lease(export.id, export.attempt, "export.cpu0@a#1"), {"files": {}}, ids, 100)
    return ids


class TestAsking:
    def test_a_repeated_request_returns_the_export(
        self, client: TestClient, succeeded: Job, sessions: Sessions
    ) -> None:
        export = ask(client, succeeded)
        assert (export["status"], export["files"], export["bytes"], export["error"]) == ("queued", [], None, None)
        assert (export["model"], export["base_model"]) == (succeeded.fine_tuned_model, "tiny")
        with transaction(sessions) as session:
            base = session.get_one(BaseModelRow, "tiny")
        assert export["expected_bytes"] == sum(each["bytes"] for each in base.files.values())
        assert ask(client, succeeded)["id"] == export["id"]

    def test_a_finished_export_has_files(
        self, client: TestClient, succeeded: Job, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        export_id = ask(client, succeeded)["id"]
        ids = finish(sessions, storage, project, succeeded)
        export = client.get(path(succeeded, export_id)).json()
        ExportBody.model_validate(export)
        assert (export["status"], export["bytes"], export["attempts"]) == ("succeeded", 100, 1)
        assert [file["id"] for file in export["files"]] == ids
        assert client.get(f"/v1/files/{ids[1]}/content").content == b"x" * 90
        listed = client.get("/v1/files", params={"purpose": "fine-tune-results"}).json()["data"]
        assert set(ids) <= {file["id"] for file in listed}

    @pytest.mark.parametrize(
        ("body", "param", "code"),
        [
            ({}, "type", "missing_required_parameter"),
            ({"type": None}, "type", "missing_required_parameter"),
            ({"type": 3}, "type", "unsupported_value"),
            ({"type": "merged", "typ": "x"}, "typ", "unknown_parameter"),
            ({"type": "gguf", "quantization": "q8_0"}, "quantization", "unsupported_value"),
            ({"type": "merged", "quantization": "Q8_0"}, "quantization", "invalid_value"),
            ({"type": "merged", "checkpoint": 3}, "checkpoint", "invalid_type"),
            ({"type": "merged", "checkpoint": "ftckpt_none"}, "checkpoint", "invalid_value"),
        ],
        ids=["nothing", "null", "number", "typo", "quantization", "of merged", "checkpoint's type", "unknown"],
    )
    def test_a_refusal_names_the_parameter(
        self, client: TestClient, succeeded: Job, body: dict[str, Any], param: str, code: str
    ) -> None:
        answer = client.post(path(succeeded), json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert answer.json()["error"]["code"] == code

    def test_each_quantization_is_an_export_of_its_own(
        self, client: TestClient, succeeded: Job, sessions: Sessions
    ) -> None:
        default = ask(client, succeeded, type="gguf")
        assert (default["quantization"], default["format"]) == ("Q8_0", "gguf")
        assert ask(client, succeeded, type="gguf", quantization="Q8_0")["id"] == default["id"]
        small = ask(client, succeeded, type="gguf", quantization="Q4_K_M")
        assert small["id"] != default["id"]
        assert small["expected_bytes"] < default["expected_bytes"]
        adapter = ask(client, succeeded, type="gguf_adapter")
        assert (adapter["quantization"], adapter["format"]) == (None, "gguf")
        assert ask(client, succeeded)["format"] == "safetensors"

    def test_a_gguf_export_waits_for_a_worker_that_makes_it(
        self, client: TestClient, succeeded: Job, sessions: Sessions
    ) -> None:
        export = ask(client, succeeded, type="gguf")
        assert export["phase"] == "waiting_for_worker"
        for worker, about in (("a", {}), ("b", {"exports": ["merged"]})):
            with transaction(sessions) as session:
                workers.heartbeat(session, f"cpu0@{worker}", "cpu", worker, 1, about)
            assert client.get(path(succeeded, export["id"])).json()["phase"] == "waiting_for_worker"
        with transaction(sessions) as session:
            workers.heartbeat(session, "cpu0@c", "cpu", "c", 1, {"exports": ["merged", "gguf", "gguf_adapter"]})
        assert client.get(path(succeeded, export["id"])).json()["phase"] is None
        assert ask(client, succeeded)["phase"] is None

    def test_a_worker_claims_the_types_that_it_makes(
        self, client: TestClient, succeeded: Job, sessions: Sessions
    ) -> None:
        gguf, merged = ask(client, succeeded, type="gguf"), ask(client, succeeded)
        with transaction(sessions) as session:
            claimed = [exports.claim(session, f"a#{number}", 60, [ExportType.MERGED]) for number in range(2)]
            assert [each and each.id for each in claimed] == [merged["id"], None]
            other = exports.claim(session, "b#1", 60, list(ExportType))
            assert other is not None
            assert other.id == gguf["id"]

    @pytest.mark.parametrize(
        "lora",
        [{"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"q_proj": 4}}, {"modules_to_save": ["lm_head"]}],
        ids=lambda lora: next(iter(lora)),
    )
    def test_an_adapter_that_llama_cpp_serves_wrongly_is_refused(
        self, client: TestClient, succeeded: Job, sessions: Sessions, lora: dict[str, Any]
    ) -> None:
        with transaction(sessions) as session:
            for checkpoint in checkpoints.kept(session, succeeded.id):
                plain = {"r": 16, "alpha": 32, "target_modules": ["q_proj"]}
                checkpoint.manifest = checkpoint.manifest | {"lora": plain | lora}
        answer = client.post(path(succeeded), json={"type": "gguf_adapter"})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, "type", "unsupported_value")
        assert ask(client, succeeded, type="gguf")["status"] == "queued"

    @pytest.mark.parametrize("kind", ["merged", "gguf", "gguf_adapter"])
    def test_an_adapter_of_experts_is_not_exported(
        self, client: TestClient, succeeded: Job, sessions: Sessions, kind: str
    ) -> None:
        lora = {"r": 16, "alpha": 32, "target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}
        with transaction(sessions) as session:
            for checkpoint in checkpoints.kept(session, succeeded.id):
                checkpoint.manifest = checkpoint.manifest | {"lora": lora}
        assert error_of(client.post(path(succeeded), json={"type": kind}))["code"] == "unsupported_value"

    def test_a_job_without_a_result_is_not_exported(self, client: TestClient, job: Job) -> None:
        assert error_of(client.post(path(job), json={"type": "merged"}))["code"] == "invalid_job_state"

    def test_a_deleted_adapter_or_base_is_not_exported(
        self, client: TestClient, succeeded: Job, sessions: Sessions
    ) -> None:
        adapter = client.get(f"{JOBS}/{succeeded.id}/adapter").json()
        client.delete(f"/v1/files/{adapter['files'][0]['id']}")
        assert error_of(client.post(path(succeeded), json={"type": "merged"}))["code"] == "adapter_deleted"
        with transaction(sessions) as session:
            session.delete(session.get_one(BaseModelRow, "tiny"))
        assert error_of(client.post(path(succeeded), json={"type": "merged"}))["code"] == "model_unavailable"


class TestReading:
    def test_a_page_follows_a_deleted_export(self, client: TestClient, succeeded: Job, sessions: Sessions) -> None:
        kept = client.get(f"{JOBS}/{succeeded.id}/checkpoints").json()["data"]
        made = [ask(client, succeeded, checkpoint=checkpoint["id"])["id"] for checkpoint in kept]
        first = client.get(path(succeeded), params={"limit": 2}).json()
        assert ([each["id"] for each in first["data"]], first["has_more"]) == (made[:0:-1], True)
        client.delete(path(succeeded, first["last_id"]))
        rest = client.get(path(succeeded), params={"after": first["last_id"]}).json()
        assert [each["id"] for each in rest["data"]] == made[:1]

    def test_a_failed_export_has_an_error(self, client: TestClient, succeeded: Job, sessions: Sessions) -> None:
        export_id = ask(client, succeeded)["id"]
        with transaction(sessions) as session:
            export = exports.claim(session, "a#1", 60)
            assert export is not None
            fail_attempt(session, Export, Lease(export.id, 1, "a#1"), ExportErrorCode.CANNOT_MERGE, "others")
        seen = client.get(path(succeeded, export_id)).json()
        assert (seen["status"], seen["error"]) == ("failed", {"code": "cannot_merge", "message": "others"})
        assert ask(client, succeeded)["id"] != export_id


class TestDeleting:
    def test_a_deleted_export_deletes_its_files(
        self, client: TestClient, succeeded: Job, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        export_id = ask(client, succeeded)["id"]
        ids = finish(sessions, storage, project, succeeded)
        answer = client.delete(path(succeeded, export_id)).json()
        assert answer == {"id": export_id, "object": "fine_tuning.job.export", "deleted": True}
        for gone in (path(succeeded, export_id), *(f"/v1/files/{file_id}" for file_id in ids)):
            assert client.get(gone).status_code == 404
        assert client.delete(path(succeeded, export_id)).status_code == 404
        assert client.get(f"{JOBS}/{succeeded.id}/adapter").status_code == 200

    def test_a_deleted_export_is_not_claimed(self, client: TestClient, succeeded: Job, sessions: Sessions) -> None:
        client.delete(path(succeeded, ask(client, succeeded)["id"]))
        with transaction(sessions) as session:
            assert exports.claim(session, "a#1", 60) is None
            assert session.query(Export).one().state == "cancelled"
