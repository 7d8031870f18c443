"""Deliveries into a bucket of a real S3 server (rclone): layout, order, owner, withdrawal, refused keys."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from botocore import awsrequest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import URLLib3Session
from urllib3 import HTTPResponse

from app.domain.access.outbound_networks import parse_networks
from app.domain.deliveries.targets import S3Destination
from app.system.artifact_directory import write_manifest
from tests.faulty_proxy import Fault, FaultyProxy
from tests.operations.deploy.containers import free_port
from tests.s3 import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, S3Server, rclone_server
from tests.sentences import Reviewed
from tests.worker.deliveries.conftest import DeliveryHarness, adapter, unsaved_delivery
from worker.deliveries.outbound import guard_connections
from worker.deliveries.s3 import MAX_RESPONSE_BYTES, S3Target
from worker.deliveries.targets import DeliveryError

KEYS = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}


OTHER_REASON = pytest.mark.extended("another reason of the same form")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(the server's URL, the directory that is its bucket)."""
    with rclone_server(tmp_path_factory.mktemp("s3")) as server:
        yield server.endpoint, server.log.parent / "objects" / BUCKET


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    with guard_connections(parse_networks("127.0.0.0/8")):
        yield


def target(url: str, **changes: str) -> S3Target:
    destination = S3Destination(kind="s3", bucket=BUCKET, prefix="lora", endpoint_url=url)
    return S3Target(destination, KEYS | changes, 5.0)


@pytest.mark.parametrize(("base_name", "segments"), [(None, "tiny"), ("/models/base", "models/base")])
def test_a_delivery_has_the_layout_of_resolvers_and_is_withdrawn(
    bucket: tuple[str, Path], tmp_path: Path, base_name: str | None, segments: str
) -> None:
    """A base name that is a path makes no empty segment."""
    url, directory = bucket
    destination = S3Destination(kind="s3", bucket=BUCKET, prefix="lora", endpoint_url=url, base_name=base_name)
    to_bucket = S3Target(destination, KEYS, 5.0)
    delivered = to_bucket.deliver(unsaved_delivery(), adapter(tmp_path / "a"))
    config = directory / "lora" / segments / "ft:tiny:x" / "adapter_config.json"
    assert json.loads(config.read_text()) == {"base_model_name_or_path": base_name or "tiny"}
    assert delivered.location["keys"][-1] == f"lora/{segments}/ft:tiny:x/adapter_config.json"
    assert to_bucket.deliver(unsaved_delivery(), adapter(tmp_path / "b")).location == delivered.location
    to_bucket.withdraw(unsaved_delivery(**delivered.location))
    assert [path for path in directory.rglob("*") if path.is_file()] == []


def test_a_name_of_another_target_is_kept(bucket: tuple[str, Path], tmp_path: Path, reviewed: Reviewed) -> None:
    url, directory = bucket
    delivered = target(url).deliver(unsaved_delivery("target_1"), adapter(tmp_path / "a"))
    with pytest.raises(DeliveryError) as caught:
        target(url).deliver(unsaved_delivery("target_2"), adapter(tmp_path / "b"))
    reviewed(str(caught.value))
    target(url).withdraw(unsaved_delivery("target_2", **delivered.location))
    assert (directory / delivered.location["keys"][-1]).exists()
    target(url).withdraw(unsaved_delivery("target_1", **delivered.location))


def test_one_of_two_targets_at_the_same_moment_gets_the_name(moto: S3Server, tmp_path: Path) -> None:
    """The other one writes its name after this one has found none."""
    proxy = FaultyProxy(moto)
    here, there = (
        S3Target(S3Destination(kind="s3", bucket=BUCKET, prefix="moment", endpoint_url=server.endpoint), KEYS, 5.0)
        for server in (proxy, moto)
    )
    proxy.fault = Fault(
        methods=("PUT",),
        times=1,
        action=lambda: str(there.deliver(unsaved_delivery("target_2"), adapter(tmp_path / "b"))),
    )
    with proxy.running(), pytest.raises(DeliveryError, match="target_2"):
        here.deliver(unsaved_delivery("target_1"), adapter(tmp_path / "a"))


def test_a_replacement_leaves_no_file_of_the_version_before(rclone: S3Server, tmp_path: Path) -> None:
    proxy = FaultyProxy(rclone)
    destination = S3Destination(kind="s3", bucket=BUCKET, prefix="mixture", endpoint_url=proxy.endpoint)
    served = {"served_model": "bot"}
    with proxy.running():
        bucket = S3Target(destination, KEYS, 5.0)
        first = adapter(tmp_path / "a")
        (first / "extra.json").write_text("{}")
        write_manifest(first, {"step": 1})
        before = bucket.deliver(unsaved_delivery(**served), first)
        proxy.requests.clear()
        after = bucket.deliver(unsaved_delivery(model="ft:tiny:y", **served), adapter(tmp_path / "b"))
        changes = [each.partition("?")[0] for each in proxy.requests if not each.startswith("GET")]
        bucket.withdraw(unsaved_delivery(**served, **before.location))  # whose name is another adapter's by now
    placed = rclone.log.parent / "objects" / BUCKET / "mixture" / "tiny" / "bot"
    assert {path.name for path in placed.iterdir()} == {key.rpartition("/")[2] for key in after.location["keys"]} | {
        ".tunery-owner"
    }
    config = f"/{BUCKET}/mixture/tiny/bot/adapter_config.json"
    uploads = [n for n, each in enumerate(changes) if each.startswith("PUT") and not each.endswith(".tunery-owner")]
    assert changes.index(f"DELETE {config}") < min(uploads)
    assert changes[-1] == f"PUT {config}"


@pytest.mark.parametrize("changed", ["access_key_id", "secret_access_key"])
def test_refused_keys_are_named(bucket: tuple[str, Path], tmp_path: Path, changed: str) -> None:
    with pytest.raises(DeliveryError, match=r"403|401") as refused:
        target(bucket[0], **{changed: "wrong"}).deliver(unsaved_delivery(), adapter(tmp_path / "a"))
    assert SECRET_ACCESS_KEY not in str(refused.value)


def test_a_target_without_credentials_does_not_use_those_of_the_server(
    bucket: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed
) -> None:
    """A target of an earlier release may have none; the sender's own reach the buckets of the operator."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["secret_access_key"])
    without = S3Target(S3Destination(kind="s3", bucket=BUCKET, endpoint_url=bucket[0]), {}, 5.0)
    with pytest.raises(DeliveryError) as caught:
        without.deliver(unsaved_delivery(), adapter(tmp_path / "a"))
    reviewed(str(caught.value))
    with pytest.raises(DeliveryError) as caught:
        without.withdraw(unsaved_delivery())
    reviewed(str(caught.value))
    assert [path for path in bucket[1].rglob("*") if path.is_file()] == []


def test_bodies_over_tls_have_no_trailing_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compatible servers refuse the trailing checksums that boto3 sends over TLS by itself."""
    puts: list[AWSPreparedRequest] = []

    def respond(_: URLLib3Session, request: AWSPreparedRequest) -> AWSResponse:
        puts.extend([request] if request.method == "PUT" else [])
        return AWSResponse(request.url, 200 if request.method == "PUT" else 404, {}, HTTPResponse(BytesIO()))

    monkeypatch.setattr(URLLib3Session, "send", respond)
    target("https://bucket.example").deliver(unsaved_delivery(), adapter(tmp_path / "a"))
    assert len(puts) == 4
    for put in puts:
        assert re.fullmatch("[0-9a-f]{64}", put.headers["x-amz-content-sha256"].decode())
        assert "x-amz-trailer" not in put.headers


def test_an_error_that_is_too_long_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(_: URLLib3Session, request: AWSPreparedRequest) -> AWSResponse:
        return awsrequest.AWSResponse(request.url, 403, {}, HTTPResponse(endless, preload_content=False))

    monkeypatch.setattr(URLLib3Session, "send", respond)
    with (
        Path("/dev/zero").open("rb") as endless,
        pytest.raises(DeliveryError, match=f"longer than {MAX_RESPONSE_BYTES:,} bytes"),
    ):
        target("http://127.0.0.1:1").deliver(unsaved_delivery(), adapter(tmp_path / "a"))


def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="is not reachable"):
        target(f"http://127.0.0.1:{free_port()}").deliver(unsaved_delivery(), adapter(tmp_path / "a"))


def test_a_private_address_is_refused(bucket: tuple[str, Path], tmp_path: Path) -> None:
    with guard_connections(()), pytest.raises(DeliveryError, match="TUNERY_DELIVERY_ALLOWED_NETWORKS"):
        target(bucket[0]).deliver(unsaved_delivery(), adapter(tmp_path / "a"))


@pytest.mark.parametrize(
    ("status", "code"), [(301, "PermanentRedirect"), (302, ""), (307, "TemporaryRedirect"), (308, "")]
)
def test_a_redirect_to_a_private_address_is_not_followed(
    rclone: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    proxy = FaultyProxy(rclone)
    proxy.fault = Fault(status=status, code=code, location="http://169.254.169.254/latest/meta-data")
    destination = S3Destination(kind="s3", bucket=BUCKET, endpoint_url=proxy.endpoint)
    hosts, resolve = set(), socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: hosts.add(host) or resolve(host, *rest, **named)
    )
    with proxy.running(), pytest.raises(DeliveryError, match="a redirect"):
        S3Target(destination, {"access_key_id": "x", "secret_access_key": "x"}, 5.0).deliver(
            unsaved_delivery(), adapter(tmp_path / "a")
        )
    assert hosts == {"127.0.0.1"}


class TestFaultyBucket:
    """What a bucket refuses stays pending with the reason and what to do, and is delivered once the cause is gone."""

    @pytest.mark.parametrize(
        ("status", "code", "advice"),
        [
            pytest.param(507, "XMinioStorageFull", "free space there", marks=OTHER_REASON),
            pytest.param(403, "QuotaExceeded", "free space there", marks=OTHER_REASON),
            pytest.param(
                403,
                "RequestTimeTooSkewed",
                "the clocks of this server and of the bucket differ by minutes",
                marks=OTHER_REASON,
            ),
            (403, "AccessDenied", "allow s3:PutObject, s3:GetObject and s3:DeleteObject"),
            (503, "SlowDown", "it limits requests; it is tried again"),
        ],
    )
    def test_the_reason_is_visible_and_nothing_is_lost(
        self, delivery: DeliveryHarness, rclone: S3Server, status: int, code: str, advice: str
    ) -> None:
        proxy = FaultyProxy(rclone)
        proxy.fault = Fault(methods=("PUT",), status=status, code=code)
        destination = {"kind": "s3", "bucket": BUCKET, "prefix": code, "endpoint_url": proxy.endpoint}
        with proxy.running():
            job = delivery.deliver(destination, secrets=KEYS)
            row = delivery.delivery(job)
            assert (row.state, row.next_attempt_at is not None) == ("pending", True)
            assert row.error is not None
            assert re.search(rf"responded with {code} \({status}\): .*{re.escape(advice)}", row.error)
            assert row.error in delivery.harness.messages(job)[-1]
            proxy.fault = None
            delivery.attempt_due(again=True)
            assert (delivery.delivery(job).state, delivery.delivery(job).error) == ("delivered", None)
