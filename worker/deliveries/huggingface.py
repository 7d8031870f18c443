"""Targets of kind `huggingface`: one commit of a repository for each delivery, whose revision is recorded.

A repository holds one adapter, so a delivery replaces the one before. MANIFEST.json in it names the adapter and the
delivery target that owns the repository. Each commit names its parent: of two at the same time one is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_DISABLE_XET"] = "1"  # its transfers are made by native code, which the check of addresses cannot see

import httpx2
from huggingface_hub import CommitOperationDelete, HfApi, constants, hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status
from huggingface_hub.utils.tqdm import disable_progress_bars

from app.db.tables import Delivery
from app.domain.deliveries.targets import HuggingFaceDestination
from app.model_hub import silence_limit
from app.system.artifact_directory import MANIFEST
from worker.deliveries.outbound import refused_address
from worker.deliveries.targets import Delivered, DeliveryError, address_adapter

MAX_RESPONSE_BYTES = 8 << 20  # the library and `_manifest` read responses whole, and a client chooses the server
OWNER = "delivery_target"  # key of the manifest
constants.HF_HUB_DISABLE_XET = True  # also if something has imported the library before
disable_progress_bars()
FAILURES = (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError, RuntimeError)  # the last one of a failed upload


@dataclass(frozen=True)
class HuggingFaceTarget:
    destination: HuggingFaceDestination
    token: str
    timeout_seconds: float

    def deliver(self, delivery: Delivery, adapter: Path) -> Delivered:
        base_name, owner = self.destination.base_name or delivery.job.base_model, {OWNER: delivery.target_id}
        address_adapter(adapter, delivery.model, base_name, **owner)
        repo_id = self.destination.repo_id
        try:
            api = self._api()
            api.create_repo(repo_id, private=self.destination.private, exist_ok=True)
            parent = api.repo_info(repo_id).sha
            self._refuse_other_owner(self._manifest(parent), delivery)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=adapter,
                commit_message=f"Deliver {delivery.model}",
                parent_commit=parent,
            )
        except FAILURES as error:
            raise self._error(error) from error
        files = sorted(path.name for path in adapter.iterdir())
        return Delivered({"repo_id": repo_id, "revision": commit.oid, "files": files})

    def withdraw(self, delivery: Delivery) -> None:
        """Delete the files in a further commit, unless another adapter is there by now; the history keeps them."""
        repo_id = self.destination.repo_id
        try:
            api = self._api()
            repository = api.model_info(repo_id)
            manifest = self._manifest(repository.sha)
            is_ours = manifest.get(OWNER, delivery.target_id) == delivery.target_id
            if not is_ours or manifest.get("fine_tuned_model") != delivery.model:
                return
            there = {each.rfilename for each in repository.siblings or ()} & {MANIFEST, *manifest["files"]}
            files = [CommitOperationDelete(name) for name in sorted(there)]
            message = f"Withdraw {delivery.model}"
            api.create_commit(repo_id, files, commit_message=message, parent_commit=repository.sha)
        except FAILURES as error:
            if not (isinstance(error, HfHubHTTPError) and error.response.status_code == 404):  # deleted by its owner
                raise self._error(error) from error

    def _manifest(self, revision: str | None) -> dict[str, Any]:
        """MANIFEST.json of the repository; empty if there is none. Raises HfHubHTTPError, ValueError."""
        url = hf_hub_url(self.destination.repo_id, MANIFEST, revision=revision, endpoint=self.destination.endpoint_url)
        response = get_session().get(url, headers=build_hf_headers(token=self.token))
        if response.status_code == 404:
            return {}
        hf_raise_for_status(response)
        return dict(response.json())

    def _refuse_other_owner(self, manifest: Mapping[str, Any], delivery: Delivery) -> None:
        """Raises DeliveryError for a repository of another target, which may belong to another server."""
        if (owner := manifest.get(OWNER, delivery.target_id)) != delivery.target_id:
            raise DeliveryError(
                f"The repository {self.destination.repo_id} belongs to the delivery target {owner}, perhaps of another "
                f"Tunery server; choose another repository, or delete {MANIFEST} there"
            )

    def _api(self) -> HfApi:
        _set_client(self.timeout_seconds)
        return HfApi(endpoint=self.destination.endpoint_url, token=self.token)

    def _error(self, error: Exception) -> DeliveryError:
        where = f"The repository {self.destination.repo_id}"
        if refusal := refused_address(error):
            return DeliveryError(f"{where}: {refusal}")
        if (
            isinstance(error, HfHubHTTPError)
            and error.response is not None
            and error.response.status_code in (401, 403)
        ):
            return DeliveryError(f"{where}: the hub refuses the token; set credentials.token, with the right to write")
        return DeliveryError(f"{where}: {' '.join(str(error).split())[:600]}")


class _BoundedStream(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size_bytes = 0
        for chunk in self._stream:
            size_bytes += len(chunk)
            if size_bytes > MAX_RESPONSE_BYTES:
                raise ValueError(f"a response is longer than {MAX_RESPONSE_BYTES:,} bytes")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _limit_size(response: httpx2.Response) -> None:
    """A hook of the client. Raises ValueError for a compressed response, whose size is not limited."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ValueError("a response is compressed, which was not asked for")
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _BoundedStream(response.stream)


@lru_cache(maxsize=1)  # every call closes the connections of all threads
def _set_client(timeout_seconds: float) -> None:
    limits = httpx2.Limits(max_keepalive_connections=0)  # an attempt has connections of its own, which its limit ends

    def client() -> httpx2.Client:
        return httpx2.Client(
            timeout=timeout_seconds,
            follow_redirects=True,
            trust_env=False,
            limits=limits,
            headers={"accept-encoding": "identity"},
            event_hooks={"request": [silence_limit(timeout_seconds)], "response": [_limit_size]},
        )

    set_client_factory(client)
