"""The programs of `tunery up`: a worker for each GPU, or each group of as many as a job takes, and their settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli.local_stack import machine, services


@pytest.mark.parametrize(
    ("gpus", "environment", "groups"),
    [
        (0, {}, [None]),
        (1, {}, [None]),
        (3, {}, ["0", "1", "2"]),
        (4, {"TUNERY_GPUS_PER_JOB": "2"}, ["0,1", "2,3"]),
        (3, {"TUNERY_GPUS_PER_JOB": "2"}, [None]),
        (8, {"CUDA_VISIBLE_DEVICES": "5,GPU-1a"}, ["5", "GPU-1a"]),
        (2, {"TUNERY_DEVICE": "cpu"}, [None]),
        (0, {"TUNERY_SLOTS_PER_GPU": "2"}, [None]),
        (1, {"TUNERY_SLOTS_PER_GPU": "2"}, [None, None]),
        (2, {"TUNERY_SLOTS_PER_GPU": "2"}, ["0", "0", "1", "1"]),
        (4, {"TUNERY_SLOTS_PER_GPU": "2", "TUNERY_GPUS_PER_JOB": "2"}, ["0,1", "2,3"]),
    ],
)
def test_every_gpu_gets_a_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, environment: dict[str, str], groups: list[str | None]
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "TUNERY_GPUS_PER_JOB", "TUNERY_SLOTS_PER_GPU", "TUNERY_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "gpus", lambda: ["NVIDIA L4"] * gpus)
    has_rest = gpus % int(environment.get("TUNERY_GPUS_PER_JOB", 1)) > 0
    assert bool(machine.unused_gpus_text()) == has_rest
    found = [each for each in services.programs(tmp_path, "127.0.0.1", 8000) if each.name.startswith("gpu-worker")]
    assert [each.env.get("CUDA_VISIBLE_DEVICES") for each in found] == groups
    slots = [next(word for word in each.command if "@%h" in word).split("-")[0] for each in found]
    assert slots == [f"gpu{number}" for number in range(len(groups))]
    assert len({each.name for each in found}) == len(groups)


SETTINGS = {
    "DATABASE_URL": "postgresql://u:database-secret@h/d",
    "REDIS_URL": "redis://:broker-secret@h",
    "TUNERY_SECRET_KEYS": "encryption-secret",
    "TUNERY_STORAGE_SECRET_ACCESS_KEY": "storage-secret",
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
    "TUNERY_HUB_TOKEN": "hub-secret",
    "HF_TOKEN": "hub-secret",
    "TUNERY_ENDPOINTS": '{"judge": {"base_url": "http://h/v1", "api_key": "judge-secret"}}',
    "TUNERY_OPERATOR_WEBHOOK_SECRET": "operator-secret",
    "PGPASSWORD": "database-secret",
    "TUNERY_API_KEY": "key-secret",
    "TUNERY_WEB_SESSION_SECONDS": "60",
    "PATH": "/bin",
}


def test_each_program_gets_the_secrets_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.setenv(name, SETTINGS[name])
    monkeypatch.setattr(machine, "gpus", lambda: ["NVIDIA L4"] * 2)
    common = services.child_environment(tmp_path, {"database_url": SETTINGS["DATABASE_URL"]})
    names = ["convert", *(each.name for each in services.programs(tmp_path, "127.0.0.1", 8000))]
    got = {name: services.needed_by(name, common) for name in names}

    def readers(secret: str) -> set[str]:
        return {name for name, environment in got.items() if secret in "".join(environment.values())}

    others = got.keys() - {"web", "convert"}
    assert readers("database-secret") == readers("broker-secret") == readers("storage-secret") == others
    assert readers("encryption-secret") == {"api", "webhooks", "deliveries"}
    assert readers("hub-secret") == {"cpu-worker", "gpu-worker", "gpu-worker-1"}
    assert readers("judge-secret") == {"api", "gpu-worker", "gpu-worker-1"}
    assert readers("operator-secret") == {"webhooks"}
    assert readers("-secret") == others
    assert readers("key-secret") == set()
    assert (got["web"]["PATH"], got["web"]["TUNERY_WEB_SESSION_SECONDS"]) == ("/bin", "60")
