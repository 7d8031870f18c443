"""OpenAI's side of an import, read-only: files, jobs with their events and checkpoints, and answers of a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.cli.errors import AccessDenied, CliError, ServiceUnreachable, UsageError

Json = dict[str, Any]
KEY_VARIABLE = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"
TUNERY_KEY_PREFIX = "tnry_"
MAX_RETRIES = 8  # the client waits as long as `retry-after` says, up to two minutes each time
ONE_REQUEST_STATUSES = (400, 413, 422)  # they concern one request, and the next one may succeed
PAGE = 100
CHUNK_BYTES = 1 << 20


class NotReturned(Exception):
    """OpenAI does not return a file or a list of a job, which may be deleted; the message is OpenAI's."""


class AnswerRefused(Exception):
    """OpenAI refused one prompt; the message is OpenAI's."""


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
        self._openai = openai
        self._client = openai.OpenAI(api_key=key, base_url=base_url, max_retries=MAX_RETRIES)

    def close(self) -> None:
        self._client.close()

    def jobs(self) -> Iterator[Json]:
        """Every fine-tuning job, newest first."""
        with self._errors("list fine-tuning jobs"):
            for job in self._client.fine_tuning.jobs.list(limit=PAGE):
                yield job.to_dict(mode="json")

    def events(self, job_id: str) -> list[Json]:
        """The events of a job, newest first. Raises NotReturned."""
        with self._errors(f"list the events of {job_id}"), self._refusals(NotReturned):
            return [each.to_dict(mode="json") for each in self._client.fine_tuning.jobs.list_events(job_id, limit=PAGE)]

    def checkpoints(self, job_id: str) -> list[Json]:
        """The checkpoints of a job, newest first. Raises NotReturned."""
        with self._errors(f"list the checkpoints of {job_id}"), self._refusals(NotReturned):
            checkpoints = self._client.fine_tuning.jobs.checkpoints.list(job_id, limit=PAGE)
            return [each.to_dict(mode="json") for each in checkpoints]

    def training_files(self) -> Iterator[Json]:
        """Every file with purpose fine-tune."""
        with self._errors("list files"):
            for file in self._client.files.list(purpose="fine-tune"):
                yield file.to_dict(mode="json")

    def file(self, file_id: str) -> Json:
        """Raises NotReturned."""
        with self._errors(f"read {file_id}"), self._refusals(NotReturned):
            return self._client.files.retrieve(file_id).to_dict(mode="json")

    def download(self, file_id: str, path: Path) -> str:
        """Write the content to `path`, completely or not at all, and return its SHA-256. Raises NotReturned."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        digest = hashlib.sha256()
        with (
            self._errors(f"download {file_id}"),
            self._refusals(NotReturned),
            self._client.files.with_streaming_response.content(file_id) as response,
            temporary.open("wb") as out,
        ):
            for chunk in response.iter_bytes(CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
        os.replace(temporary, path)
        return digest.hexdigest()

    def answer(self, model: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> Json:
        """The message with which a model answers. Raises AnswerRefused."""
        given: Json = {"tools": list(tools)} if tools else {}
        request: Json = {"model": model, "messages": list(messages), "temperature": 0, **given}
        with self._errors(f"ask {model}"), self._refusals(AnswerRefused):
            completion: Any = self._client.chat.completions.create(**request)
        choice = completion.choices[0]
        if choice.finish_reason == "content_filter":
            raise AnswerRefused("the content filter cut the answer.")
        return dict(choice.message.to_dict(mode="json"))

    @contextmanager
    def _refusals(self, kind: type[NotReturned | AnswerRefused]) -> Iterator[None]:
        """Raise errors that concern this request only as `kind`. A model that does not exist concerns every prompt."""
        statuses = ONE_REQUEST_STATUSES if kind is AnswerRefused else (*ONE_REQUEST_STATUSES, 404, 410)
        errors: Any = self._openai
        try:
            yield
        except errors.APIStatusError as error:
            if error.status_code not in statuses:
                raise
            raise kind(_message(error)) from error

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Raise errors of the client as CliError: what was refused, and what to do."""
        openai_errors: Any = self._openai
        try:
            yield
        except (openai_errors.AuthenticationError, openai_errors.PermissionDeniedError) as error:
            text = f"OpenAI refused to {action}: {_message(error)} Use a key that may read files and fine-tuning jobs."
            raise AccessDenied(text) from None
        except openai_errors.APIStatusError as error:
            raise CliError(
                f"OpenAI could not {action} ({error.status_code}): {_message(error)} Run the command again to continue."
            ) from None
        except openai_errors.APIConnectionError as error:
            reason = error.__cause__ or error
            raise ServiceUnreachable(
                f"Lost the connection to OpenAI while trying to {action} ({reason}). Run the command again to continue."
            ) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("httpx2", "httpcore2"):
                raise
            raise ServiceUnreachable(  # a stream that broke off
                f"Lost the connection to OpenAI while trying to {action} ({error}). Run the command again to continue."
            ) from None


def _message(error: Any) -> str:
    """OpenAI's own message, without the code that some versions of the client put before it."""
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message)
