"""Targets of kind `huggingface`: one commit of a repository for each delivery, whose revision is recorded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_DISABLE_XET"] = "1"  # its transfers are made by native code, which the check of addresses cannot see

import httpx2
from huggingface_hub import CommitOperationDelete, HfApi, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils.tqdm import disable_progress_bars

from app.domain.deliveries.targets import HuggingFaceDestination
from worker.deliveries.adapter_files import address
from worker.deliveries.destination import Delivered, DeliveryError, Parcel
from worker.deliveries.outbound import refused_address

constants.HF_HUB_DISABLE_XET = True  # also if something has imported the library before
disable_progress_bars()
FAILURES = (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError, RuntimeError)  # the last one of a failed upload


@dataclass(frozen=True)
class HuggingFaceTarget:
    destination: HuggingFaceDestination
    token: str
    timeout_seconds: float
    can_forget = False

    def deliver(self, parcel: Parcel, adapter: Path) -> Delivered:
        address(adapter, parcel.model, self.destination.base_name or parcel.base_model)
        repo_id = self.destination.repo_id
        try:
            api = self._api()
            api.create_repo(repo_id, private=self.destination.private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=adapter, commit_message=f"Deliver {parcel.model}")
        except FAILURES as error:
            raise self._error(error) from error
        files = sorted(path.name for path in adapter.iterdir())
        return Delivered({"repo_id": repo_id, "revision": commit.oid, "files": files})

    def has(self, parcel: Parcel) -> bool:
        return bool(parcel.location)

    def withdraw(self, parcel: Parcel) -> None:
        """Delete the files in a further commit, if no later commit is there; the history keeps them."""
        try:
            api, repo_id = self._api(), self.destination.repo_id
            if parcel.location.get("revision") != api.repo_info(repo_id).sha:
                return
            files = [CommitOperationDelete(name) for name in parcel.location["files"]]
            api.create_commit(repo_id, files, commit_message=f"Withdraw {parcel.model}")
        except FAILURES as error:
            raise self._error(error) from error

    def _api(self) -> HfApi:
        set_client_factory(self._client)
        return HfApi(endpoint=self.destination.endpoint_url, token=self.token)

    def _client(self) -> httpx2.Client:
        return httpx2.Client(timeout=self.timeout_seconds, follow_redirects=True, trust_env=False)

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
