"""Targets of kind `s3`: objects `<prefix>/<base>/<served model>/<file>`, adapter_config.json last.

A reader that finds adapter_config.json finds all other files. The object OWNER beside it names the delivery target that
owns the served model; it is written first and deleted last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from app.domain.deliveries.targets import S3Destination
from app.system.artifact_directory import ADAPTER_CONFIG
from worker.deliveries.adapter_files import address
from worker.deliveries.destination import Delivered, DeliveryError, Parcel
from worker.deliveries.outbound import refused_address

OWNER = ".tunery-owner"
CONNECT_SECONDS = 5
NO_BUCKET = "NoSuchBucket"
MAX_READ_BYTES = 200
RETRIES = 3  # of botocore, within an attempt
ADVICE = {
    "AccessDenied": "the credentials may not write there; allow s3:PutObject, s3:GetObject and s3:DeleteObject",
    "InvalidAccessKeyId": "the access key is unknown there; set the credentials of the target",
    "SignatureDoesNotMatch": "the secret key is wrong; set the credentials of the target",
    "RequestTimeTooSkewed": "the clocks of this server and of the bucket differ by minutes; synchronize them",
    NO_BUCKET: "the bucket does not exist; create it, or set the right one",
    "XMinioStorageFull": "the bucket is full; free space there",
    "QuotaExceeded": "the bucket is full; free space there",
}


@dataclass(frozen=True)
class S3Target:
    destination: S3Destination
    credentials: Mapping[str, str]
    timeout_seconds: float
    can_forget = False

    def deliver(self, parcel: Parcel, adapter: Path) -> Delivered:
        base_name = self.destination.base_name or parcel.base_model
        version = address(adapter, parcel.model, base_name)
        prefix = "/".join(filter(None, [self.destination.prefix.strip("/"), base_name, parcel.served_model]))
        files = sorted(adapter.iterdir(), key=lambda path: (path.name == ADAPTER_CONFIG, path.name))
        try:
            client = self._client()
            self._own(client, prefix, parcel)
            for path in files:
                with path.open("rb") as file:
                    client.put_object(Bucket=self.destination.bucket, Key=f"{prefix}/{path.name}", Body=file)
        except (BotoCoreError, ClientError, OSError) as error:
            raise self._error(error) from error
        keys = [f"{prefix}/{path.name}" for path in files]
        location = {"bucket": self.destination.bucket, "prefix": prefix, "keys": keys, "version": version}
        return Delivered(location)

    def has(self, parcel: Parcel) -> bool:
        return bool(parcel.location)

    def withdraw(self, parcel: Parcel) -> None:
        if not parcel.location:
            return
        prefix, keys = parcel.location["prefix"], parcel.location["keys"]
        try:
            client = self._client()
            if self._read(client, f"{prefix}/{OWNER}") == parcel.target_id:
                for key in [*reversed(keys), f"{prefix}/{OWNER}"]:  # adapter_config.json first
                    client.delete_object(Bucket=self.destination.bucket, Key=key)
        except (BotoCoreError, ClientError, OSError) as error:
            raise self._error(error) from error

    def _client(self) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.destination.endpoint_url,
            region_name=self.destination.region or "us-east-1",
            config=Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=self.timeout_seconds,
                retries={"total_max_attempts": RETRIES, "mode": "standard"},
                proxies={},
                s3={"addressing_style": "path"} if self.destination.endpoint_url else {},
            ),
            aws_access_key_id=self.credentials.get("access_key_id"),
            aws_secret_access_key=self.credentials.get("secret_access_key"),
            aws_session_token=self.credentials.get("session_token"),
        )

    def _own(self, client: Any, prefix: str, parcel: Parcel) -> None:
        """Raises DeliveryError for a name of another target, or of something else."""
        owner = self._read(client, f"{prefix}/{OWNER}")
        if owner is None and self._read(client, f"{prefix}/{ADAPTER_CONFIG}") is not None:
            owner = "of another program"
        if owner not in (None, parcel.target_id):
            raise DeliveryError(
                f"s3://{self.destination.bucket}/{prefix} belongs to the delivery target {owner}; choose another "
                "prefix or served_model"
            )
        client.put_object(Bucket=self.destination.bucket, Key=f"{prefix}/{OWNER}", Body=parcel.target_id.encode())

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
            advice = ADVICE.get(code) or ADVICE.get({403: "AccessDenied"}.get(status, ""), "it is tried again")
            return DeliveryError(f"{where} responded with {code} ({status}): {advice}")
        return DeliveryError(f"{where} is not reachable: {error}")
