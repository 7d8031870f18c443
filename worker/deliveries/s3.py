"""Targets of kind `s3`: objects `<prefix>/<base>/<served model>/<file>`, adapter_config.json last.

A reader that finds adapter_config.json finds all other files of the same adapter. The object OWNER beside it names the
delivery target that owns the served model; it is written first and deleted last, and MANIFEST.json names the adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import boto3
from botocore import awsrequest
from botocore.exceptions import BotoCoreError, ClientError

from app.db.tables import Delivery
from app.domain.deliveries.targets import REQUIRED_CREDENTIALS, S3Destination, TargetKind
from app.storage.s3 import DEFAULT_REGION, client_config
from app.system.artifact_directory import ADAPTER_CONFIG, MANIFEST
from worker.deliveries.outbound import refused_address
from worker.deliveries.targets import Delivered, DeliveryError, address_adapter

OWNER = ".tunery-owner"
CONNECT_SECONDS = 5
NO_BUCKET = "NoSuchBucket"
MAX_READ_BYTES = 1 << 20
MAX_RESPONSE_BYTES = 8 << 20  # of what botocore reads whole, such as errors: a client chooses the server
RETRIES = 3  # of botocore, within an attempt
ADVICE = {
    "AccessDenied": "the credentials may not write there; allow s3:PutObject, s3:GetObject and s3:DeleteObject",
    "InvalidAccessKeyId": "the access key is unknown there; set the credentials of the target",
    "SignatureDoesNotMatch": "the secret key is wrong; set the credentials of the target",
    "RequestTimeTooSkewed": "the clocks of this server and of the bucket differ by minutes; synchronize them",
    NO_BUCKET: "the bucket does not exist; create it, or set the right one",
    "SlowDown": "it limits requests; it is tried again, and fewer requests of other programs help",
    "XMinioStorageFull": "the bucket is full; free space there",
    "QuotaExceeded": "the bucket is full; free space there",
}
FAILURES = (BotoCoreError, ClientError, OSError)
REDIRECT = "a redirect, which is not followed: set `endpoint_url` and `region` of the target to the final ones"


class _LimitedResponse(awsrequest.AWSResponse):
    @cached_property
    def content(self) -> bytes:
        """Raises OSError for a response that is too long."""
        content: bytes = self.raw.read(MAX_RESPONSE_BYTES + 1)
        if len(content) > MAX_RESPONSE_BYTES:
            raise OSError(f"a response is longer than {MAX_RESPONSE_BYTES:,} bytes")
        return content


awsrequest.AWSResponse = _LimitedResponse  # type: ignore[misc]  # botocore has no setting for it


@dataclass(frozen=True)
class S3Target:
    destination: S3Destination
    credentials: Mapping[str, str]
    timeout_seconds: float

    def deliver(self, delivery: Delivery, adapter: Path) -> Delivered:
        version = address_adapter(adapter, delivery.model, self._base_name(delivery))
        prefix = self._prefix(delivery)
        files = sorted(adapter.iterdir(), key=lambda path: (path.name == ADAPTER_CONFIG, path.name))
        try:
            client = self._client()
            self._own(client, prefix, delivery)
            self._remove_replaced(client, prefix, version)
            for path in files:
                with path.open("rb") as file:
                    client.put_object(Bucket=self.destination.bucket, Key=f"{prefix}/{path.name}", Body=file)
        except FAILURES as error:
            raise self._error(error) from error
        keys = [f"{prefix}/{path.name}" for path in files]
        where = {"bucket": self.destination.bucket, "endpoint_url": self.destination.endpoint_url, "prefix": prefix}
        return Delivered(where | {"keys": keys, "version": version})

    def withdraw(self, delivery: Delivery) -> None:
        """Delete the objects, also those of an attempt that ended half way, unless another adapter has the name now."""
        prefix = (delivery.location or {}).get("prefix") or self._prefix(delivery)
        try:
            client = self._client()
            if self._read(client, f"{prefix}/{OWNER}") != delivery.target_id:
                return
            manifest = _manifest(self._read(client, f"{prefix}/{MANIFEST}"))
            if manifest.get("fine_tuned_model", delivery.model) == delivery.model:
                self._delete(client, prefix, [*_file_names(manifest or delivery.checkpoint.manifest), MANIFEST, OWNER])
        except FAILURES as error:
            raise self._error(error) from error

    def _base_name(self, delivery: Delivery) -> str:
        return self.destination.base_name or delivery.job.base_model

    def _prefix(self, delivery: Delivery) -> str:
        parts = (self.destination.prefix, self._base_name(delivery), delivery.served_model)
        return "/".join(filter(None, (part.strip("/") for part in parts)))  # a base name may be a path

    def _client(self) -> Any:
        """Raises DeliveryError without credentials: boto3 would use the operator's own, which reach other buckets."""
        if missing := set(REQUIRED_CREDENTIALS[TargetKind.S3]) - self.credentials.keys():
            names = ", ".join(sorted(missing))
            raise DeliveryError(
                f"s3://{self.destination.bucket}: the target has no {names}, and those of the server are not used for "
                "targets; set `credentials` of the target"
            )
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.destination.endpoint_url,
            region_name=self.destination.region or DEFAULT_REGION,
            config=client_config(
                has_endpoint=self.destination.endpoint_url is not None,
                connect_timeout=CONNECT_SECONDS,
                read_timeout=self.timeout_seconds,
                retries={"total_max_attempts": RETRIES, "mode": "standard"},
                proxies={},
                ignore_configured_endpoint_urls=True,  # AWS_ENDPOINT_URL is the operator's
            ),
            aws_access_key_id=self.credentials["access_key_id"],
            aws_secret_access_key=self.credentials["secret_access_key"],
            aws_session_token=self.credentials.get("session_token"),
        )
        client.meta.events.register("before-call.s3.HeadBucket", _end_redirects)
        return client

    def _own(self, client: Any, prefix: str, delivery: Delivery) -> None:
        """Raises DeliveryError for a name of another target, or of something else."""
        owner = self._read(client, f"{prefix}/{OWNER}")
        if owner is None and self._read(client, f"{prefix}/{ADAPTER_CONFIG}") is not None:
            owner = "of another program"
        if owner is None:
            owner = self._claim(client, f"{prefix}/{OWNER}", delivery.target_id)
        if owner != delivery.target_id:
            raise DeliveryError(
                f"s3://{self.destination.bucket}/{prefix} belongs to the delivery target {owner}; choose another "
                "prefix or served_model"
            )

    def _claim(self, client: Any, key: str, target_id: str) -> str | None:
        """Write the owner where there is none, and return it: of two targets at the same moment one becomes it."""
        put = partial(client.put_object, Bucket=self.destination.bucket, Key=key, Body=target_id.encode())
        try:
            put(IfNoneMatch="*")
        except ClientError as error:
            match error.response["Error"]["Code"]:
                case "PreconditionFailed":
                    return self._read(client, key)
                case "NotImplemented":
                    put()
                case _:
                    raise
        return target_id

    def _remove_replaced(self, client: Any, prefix: str, version: str) -> None:
        """Delete the files of another version, so that no reader finds files of both."""
        manifest = self._read(client, f"{prefix}/{MANIFEST}")
        if manifest is not None and hashlib.sha256(manifest.encode()).hexdigest() != version:
            self._delete(client, prefix, _file_names(_manifest(manifest)))

    def _delete(self, client: Any, prefix: str, names: Sequence[str]) -> None:
        for name in names:
            client.delete_object(Bucket=self.destination.bucket, Key=f"{prefix}/{name}")

    def _read(self, client: Any, key: str) -> str | None:
        """The content of a small object; None if there is none."""
        try:
            body: bytes = client.get_object(Bucket=self.destination.bucket, Key=key)["Body"].read(MAX_READ_BYTES)
        except ClientError as error:
            if (
                error.response["ResponseMetadata"]["HTTPStatusCode"] == 404
                and error.response["Error"]["Code"] != NO_BUCKET
            ):
                return None
            raise
        return body.decode(errors="replace")

    def _error(self, error: Exception) -> DeliveryError:
        where = f"s3://{self.destination.bucket}"
        if refusal := refused_address(error):
            return DeliveryError(f"{where}: {refusal}")
        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", "error"))
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            by_status = {403: ADVICE["AccessDenied"]} | dict.fromkeys((301, 302, 307, 308), REDIRECT)
            advice = ADVICE.get(code) or by_status.get(status, "it is tried again")
            return DeliveryError(f"{where} responded with {code} ({status}): {advice}")
        text = "check `endpoint_url` and `region` of the target, and that the server runs"
        return DeliveryError(f"{where} is not reachable: {error}; {text}")


def _end_redirects(context: dict[str, Any], **_: Any) -> None:
    """Botocore asks a server that redirects for the region of the bucket, and asks again if that is redirected, too."""
    context.get("s3_redirect", {})["redirected"] = True


def _manifest(text: str | None) -> dict[str, Any]:
    """Empty if it is missing or damaged."""
    try:
        return dict(json.loads(text or "{}"))
    except (ValueError, TypeError):
        return {}


def _file_names(manifest: Mapping[str, Any]) -> list[str]:
    """adapter_config.json first: without it a reader finds no adapter."""
    return sorted({ADAPTER_CONFIG, *manifest.get("files", {})}, key=lambda name: (name != ADAPTER_CONFIG, name))
