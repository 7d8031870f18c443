"""OpenAI's side of an import, read-only: files, jobs with their events and checkpoints, and answers of a model."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.cli.errors import AccessDenied, CliError, ServiceUnreachable, UsageError
from app.system.artifact_directory import sha256_file

Json = dict[str, Any]
KEY_VARIABLE = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"
TUNERY_KEY_PREFIX = "tnry_"
MAX_RETRIES = 8  # the client waits as long as `retry-after` says, up to two minutes each time
REFUSED = (400, 413, 422)  # they concern one request, and the next one may succeed
GONE = (*REFUSED, 404, 410)  # a file or a job that is gone; a model that does not exist concerns every prompt
AGAIN = "Run the command again to continue."
PAGE = 100


class Refused(Exception):
    """OpenAI does not return one file or one list, or refuses one prompt; the message is OpenAI's."""


class OpenAISource:
    """Only GET requests, except `answer`, which asks a model."""

    def __init__(self, base_url: str = OPENAI_URL) -> None:
        try:
            import openai
        except ImportError:
            raise UsageError("This command needs OpenAI's client: pip install openai.") from None
        key = os.environ.get(KEY_VARIABLE, "")
        if not key or key.startswith(TUNERY_KEY_PREFIX):
            seen = "is a key of Tunery" if key else "is not set"
            raise UsageError(f"{KEY_VARIABLE} {seen}; set it to a key of your organization at OpenAI that may read.")
        self._openai: Any = openai
        self._client = openai.OpenAI(api_key=key, base_url=base_url, max_retries=MAX_RETRIES)

    def close(self) -> None:
        self._client.close()

    def jobs(self) -> list[Json]:
        """Every fine-tuning job, newest first."""
        with self._errors("list fine-tuning jobs"):
            return [each.to_dict(mode="json") for each in self._client.fine_tuning.jobs.list(limit=PAGE)]

    def of_job(self, job_id: str, kind: str) -> list[Json]:
        """The "events" or "checkpoints" of a job, newest first. Raises Refused."""
        jobs: Any = self._client.fine_tuning.jobs
        request = jobs.list_events if kind == "events" else jobs.checkpoints.list
        with self._errors(f"list the {kind} of {job_id}", GONE):
            return [each.to_dict(mode="json") for each in request(job_id, limit=PAGE)]

    def training_files(self) -> list[Json]:
        """Every file with purpose fine-tune."""
        with self._errors("list files"):
            return [each.to_dict(mode="json") for each in self._client.files.list(purpose="fine-tune")]

    def file(self, file_id: str) -> Json:
        """Raises Refused."""
        with self._errors(f"read {file_id}", GONE):
            return self._client.files.retrieve(file_id).to_dict(mode="json")

    def download(self, file_id: str, path: Path) -> str:
        """Write the content to `path`, completely or not at all, and return its SHA-256. Raises Refused."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        with (
            self._errors(f"download {file_id}", GONE),
            self._client.files.with_streaming_response.content(file_id) as response,
        ):
            response.stream_to_file(temporary)
        os.replace(temporary, path)
        return sha256_file(path)

    def answer(self, model: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> Json:
        """The message with which a model answers. Raises Refused."""
        request: Json = {"model": model, "messages": list(messages), "temperature": 0}
        request |= {"tools": list(tools)} if tools else {}
        with self._errors(f"ask {model}", REFUSED):
            completion: Any = self._client.chat.completions.create(**request)
        choice = completion.choices[0]
        if choice.finish_reason == "content_filter":
            raise Refused("the content filter cut the answer.")
        return dict(choice.message.to_dict(mode="json"))

    @contextmanager
    def _errors(self, action: str, refused: Collection[int] = ()) -> Iterator[None]:
        """Raise errors of the client as CliError: what failed, and what to do; `refused` statuses as Refused."""
        try:
            yield
        except self._openai.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            message = str(body.get("message") or error.message)  # some versions of the client put a code before it
            if error.status_code in refused:
                raise Refused(message) from error
            if error.status_code in (401, 403):
                text = f"OpenAI refused to {action}: {message} Use a key that may read files and fine-tuning jobs."
                raise AccessDenied(text) from None
            raise CliError(f"OpenAI could not {action} ({error.status_code}): {message} {AGAIN}") from None
        except Exception as error:
            is_stream = type(error).__module__.split(".")[0] in ("httpx2", "httpcore2")  # that broke off
            if not is_stream and not isinstance(error, self._openai.APIConnectionError):
                raise
            reason = error if is_stream else error.__cause__ or error
            text = f"Lost the connection to OpenAI while trying to {action} ({reason}). {AGAIN}"
            raise ServiceUnreachable(text) from None
