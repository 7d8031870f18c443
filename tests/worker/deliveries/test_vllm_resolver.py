"""vLLM's own filesystem resolver finds what was delivered into a directory and into a bucket, without an engine.

It runs where `make test-serving` has installed vLLM.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from app.domain.access.outbound_networks import parse_networks
from app.domain.deliveries.targets import DirectoryDestination, S3Destination
from tests.engines.__main__ import PYTHON
from tests.s3 import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, S3Server
from tests.worker.deliveries.conftest import adapter, unsaved_delivery
from worker.deliveries.outbound import guard_connections
from worker.deliveries.s3 import S3Target
from worker.deliveries.targets import DirectoryTarget

SERVED_BASE = "/models/tiny"  # as `vllm serve --model`
FT_NAME, ONE_NAME = "ft:tiny:tunery:demo:2a9b31d5", "support-bot"
RESOLVE = """
import asyncio, json, sys
from vllm.plugins.lora_resolvers.filesystem_resolver import FilesystemResolver

found = [asyncio.run(FilesystemResolver(root).resolve_lora(base, name)) for root, base, name in json.loads(sys.argv[1])]
print(json.dumps([each and each.lora_path for each in found]))
"""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed: make test-serving installs it")


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    with guard_connections(parse_networks("127.0.0.0/8")):
        yield


def resolve(*requests: tuple[Path, str, str]) -> list[str | None]:
    """The paths from which vLLM loads (VLLM_LORA_RESOLVER_CACHE_DIR, its base model, requested name); None: a 404."""
    arguments = json.dumps([[str(root), base, name] for root, base, name in requests])
    done = subprocess.run([PYTHON, "-c", RESOLVE, arguments], capture_output=True, text=True, check=True)
    found: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_directory(root: Path, base_name: str, name: str) -> Path:
    root.mkdir()
    target = DirectoryTarget(DirectoryDestination(kind="directory", path=str(root), base_name=base_name), [str(root)])
    target.deliver(unsaved_delivery(model=FT_NAME, served_model=name), adapter(root.parent / f"{root.name}-adapter"))
    return root


def downloaded_from_bucket(server: S3Server, root: Path, base_name: str, name: str) -> Path:
    """A copy of the prefix of the base model, as `aws s3 sync` makes it."""
    place = S3Destination(kind="s3", bucket=BUCKET, prefix="lora", endpoint_url=server.endpoint, base_name=base_name)
    secrets = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}
    target = S3Target(place, secrets, 5.0)
    target.deliver(unsaved_delivery(model=FT_NAME, served_model=name), adapter(root.parent / f"{root.name}-adapter"))
    keys = {"aws_access_key_id": ACCESS_KEY_ID, "aws_secret_access_key": SECRET_ACCESS_KEY}
    bucket = boto3.resource("s3", endpoint_url=server.endpoint, **keys).Bucket(BUCKET)
    prefix = f"lora/{base_name.strip('/')}/"
    for each in bucket.objects.filter(Prefix=prefix):
        copy = root / each.key.removeprefix(prefix)
        copy.parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(each.key, str(copy))
    return root


def test_the_resolver_finds_deliveries_of_its_base_model_only(rclone: S3Server, tmp_path: Path) -> None:
    shared = in_directory(tmp_path / "shared", SERVED_BASE, FT_NAME)
    named = in_directory(tmp_path / "named", "Qwen/tiny", ONE_NAME)
    copied = downloaded_from_bucket(rclone, tmp_path / "copied", SERVED_BASE, ONE_NAME)
    assert resolve(
        (shared, SERVED_BASE, FT_NAME),
        (named, "Qwen/tiny", ONE_NAME),
        (copied, SERVED_BASE, ONE_NAME),
        (shared, "tiny", FT_NAME),
        (shared, SERVED_BASE, ONE_NAME),
    ) == [str(shared / FT_NAME), str(named / ONE_NAME), str(copied / ONE_NAME), None, None]
