"""Downloads a base model from a model hub: huggingface.co, or the server that HF_ENDPOINT names.

The client is huggingface_hub's: a broken connection is resumed, and a second call downloads the files that are
missing. Each commit has a directory of its own, so a download never changes the files of a registered
model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import HfApi, RepoFile, constants, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.tqdm import tqdm

from app.domain.base_models.catalog import RefusedModel
from app.errors import Unavailable

# Code, pickles, and weights of other formats are not downloaded, nor anything in subdirectories.
WANTED = ("model*.safetensors", "*.json", "*.jinja", "tokenizer.model", "LICENSE*", "README.md")
SILENCE_SECONDS = 60.0  # without a byte until a request is given up; the library's default is never
RESERVE_BYTES = 256 << 20  # that stay free on the disk
COMMIT_CHARACTERS = 12
UNREACHABLE = (httpx2.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError)


def _client() -> httpx2.Client:
    client = default_client_factory()
    client.event_hooks = {"request": [*client.event_hooks["request"], silence_limit(SILENCE_SECONDS)]}
    return client


def silence_limit(seconds: float) -> Callable[[httpx2.Request], None]:
    """A hook of clients for huggingface_hub: it passes None, no limit, with each request for metadata, which the
    timeout of a client does not replace."""

    def limit(request: httpx2.Request) -> None:
        if None in request.extensions["timeout"].values():
            request.extensions["timeout"] = httpx2.Timeout(seconds).as_dict()

    return limit


set_client_factory(_client)


@dataclass(frozen=True)
class PulledModel:
    """The files of one commit of `source`, such as "Qwen/Qwen3-4B"."""

    source: str
    commit: str
    directory: Path


def pull(
    source: str,
    revision: str | None,
    parent: Path,
    say: Callable[[str], None],
    token: str | None = None,
    check: Callable[[], None] = lambda: None,
) -> PulledModel:
    """Download the files of a base model into a directory of its own in `parent`, as far as they are missing.

    `revision` is a branch, a tag or a commit; None is the main branch. `token` is HF_TOKEN by default. `check` is
    called after each block of bytes, and its exceptions end the download. Raises RefusedModel for what the hub does not
    have or does not give, or for which the disk is too small, and Unavailable if the hub cannot be reached.
    """
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    api = HfApi(endpoint=endpoint, token=token)
    with _explained(source, revision, endpoint):
        commit = str(api.model_info(source, revision=revision).sha)
        files = [
            file
            for file in api.list_repo_tree(source, revision=commit)
            if isinstance(file, RepoFile) and any(map(PurePosixPath(file.path).match, WANTED))
        ]
        directory = parent / f"{source.rpartition('/')[2]}-{commit[:COMMIT_CHARACTERS]}"
        missing_bytes = _check_space(source, files, directory)
        say(f"Downloading {missing_bytes / 1e9:.2f} GB of {source} ({commit}) into {directory} …")
        api.snapshot_download(
            source,
            revision=commit,
            local_dir=directory,
            allow_patterns=[one.path for one in files],
            tqdm_class=_checked_progress(check),
        )
    return PulledModel(source, commit, directory)


def _checked_progress(check: Callable[[], None]) -> type[tqdm]:
    """A progress bar that calls `check`, as the client has no other hook into its downloads."""

    class CheckedProgress(tqdm):
        def update(self, n: float | None = 1) -> None:
            check()
            super().update(n)

    return CheckedProgress


def _check_space(source: str, files: Sequence[RepoFile], directory: Path) -> int:
    """Return the bytes that are still to be downloaded. Raises RefusedModel if the disk has too little space."""
    missing_bytes = sum(file.size for file in files if not _is_complete(directory / file.path, file.size))
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    if missing_bytes + RESERVE_BYTES > free_bytes:
        raise RefusedModel(
            f"{source} needs {(missing_bytes + RESERVE_BYTES) / 1e9:.2f} GB in {existing}, which has "
            f"{free_bytes / 1e9:.2f} GB free. Free some space, or name a directory on a larger disk"
        )
    return missing_bytes


def _is_complete(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


@contextmanager
def _explained(source: str, revision: str | None, endpoint: str) -> Iterator[None]:
    try:
        yield
    except RevisionNotFoundError as error:
        text = f"{source} has no revision {revision} at {endpoint}. Name a branch, a tag or a commit of it"
        raise RefusedModel(text) from error
    except GatedRepoError as error:
        raise RefusedModel(
            f"{source} is gated: accept its conditions at {endpoint}/{source}, and set HF_TOKEN to a token of that "
            "account"
        ) from error
    except RepositoryNotFoundError as error:
        raise RefusedModel(
            f"{endpoint} has no model {source}, or it is private: check the name, or set HF_TOKEN to a token that can "
            "read it"
        ) from error
    except UNREACHABLE as error:
        raise Unavailable(
            f"{endpoint} cannot be reached ({type(error).__name__}). The same command downloads what is "
            "missing. Without a network, copy the model's directory to this machine and register it: "
            f"`tunery models add NAME DIRECTORY --source {source} --revision COMMIT`."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        text = f"{endpoint} answered {status} for {source}. The same command downloads what is missing."
        raise Unavailable(text) from error
