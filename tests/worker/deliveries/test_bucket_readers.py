"""The keys that Ray Serve LLM and KServe read are those that were delivered.

Written from their source: Ray's `llm/_internal/common/utils/lora_utils.py` and `llm/_internal/serve/utils/`, KServe's
`pkg/controller/v1alpha2/llmisvc/workload_lora.go` and `python/storage/kserve_storage/kserve_storage.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from app.domain.access.outbound_networks import parse_networks
from app.domain.deliveries.targets import S3Destination
from tests.s3 import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, S3Server
from tests.worker.deliveries.conftest import adapter, unsaved_delivery
from worker.deliveries.outbound import guard_connections
from worker.deliveries.s3 import OWNER, S3Target

BASE = "readers/tiny"  # <prefix>/<base>
FILES = {"adapter_config.json", "adapter_model.safetensors", "MANIFEST.json", OWNER}


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    with guard_connections(parse_networks("127.0.0.0/8")):
        yield


@pytest.fixture
def delivered(rclone: S3Server, tmp_path: Path) -> S3Server:
    destination = S3Destination(kind="s3", bucket=BUCKET, prefix="readers", endpoint_url=rclone.endpoint)
    keys = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}
    for name in ("ft:tiny:x", "bot", "bot-2"):
        S3Target(destination, keys, 5.0).deliver(unsaved_delivery(served_model=name), adapter(tmp_path / name))
    return rclone


def below(server: S3Server, prefix: str) -> set[str]:
    """What a program downloads that lists by prefix and removes it from the keys."""
    keys = {"aws_access_key_id": ACCESS_KEY_ID, "aws_secret_access_key": SECRET_ACCESS_KEY}
    bucket = boto3.resource("s3", endpoint_url=server.endpoint, **keys).Bucket(BUCKET)
    return {each.key.removeprefix(prefix).lstrip("/") for each in bucket.objects.filter(Prefix=prefix)}


@pytest.mark.parametrize("name", ["ft:tiny:x", "bot"])
def test_ray_finds_what_follows_the_first_colon_of_the_requested_model(delivered: S3Server, name: str) -> None:
    _, _, folder = f"my-model:{name}".partition(":")
    assert below(delivered, f"{BASE}/{folder}/") == FILES


def test_kserve_gets_one_adapter_if_its_uri_ends_with_a_slash(delivered: S3Server) -> None:
    assert below(delivered, f"{BASE}/bot/") == FILES
    assert below(delivered, f"{BASE}/bot") == FILES | {f"-2/{name}" for name in FILES}
