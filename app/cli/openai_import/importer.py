"""The jobs of an import at Tunery: their files stored, planned, and created, each once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.cli.client.references import file_path, job_path
from app.cli.client.transfers import find_stored, upload_with_progress
from app.cli.errors import CliError, NotFoundError, TooManyRequests, UsageError
from app.cli.openai_import.record import ImportRecord
from app.cli.openai_import.recreate import IMPOSSIBLE, KEPT, LATER, Recreation
from app.cli.openai_import.source import OpenAISource, Refused
from app.cli.options import given
from app.cli.output.console import duration_text

if TYPE_CHECKING:
    from app.cli.client.http import Client

Json = dict[str, Any]
# The job counts the tokens itself: the file is too large for a plan, or the API cannot read the base model.
NOT_PLANNED = ("file_too_large_to_plan", "service_unavailable")


@dataclass(frozen=True)
class Importer:
    client: Client
    source: OpenAISource
    record: ImportRecord

    def bring(self, made: Recreation, plan: bool, run: bool) -> None:
        """Store the files of a job here, and plan or create it. What an earlier import did is not done again."""
        for name, file_id in made.files.items():
            try:
                stored = self._store_file(file_id)
            except Refused as error:
                made.add(IMPOSSIBLE, name, f"{file_id}: OpenAI does not return it ({error})")
            except (UsageError, NotFoundError) as error:
                made.add(_outcome(error), name, f"{file_id}: {error}")
            else:
                made.request[name] = stored["tunery_file"]
                made.add(KEPT, name, f"{file_id} ({stored['filename']}) -> {stored['tunery_file']}")
        if not made.is_possible:
            return
        try:
            made.job = self._find_job(made.openai_job) if run else None
            if made.job is None:
                self._check(made, plan)
            if run:
                made.job = made.job or self.client.post("fine_tuning/jobs", made.request)
                self.record.add(made.openai_job, job=made.job["id"])
                made.add("job", "", f"{made.job['id']} ({made.job['status']})")
        except (UsageError, NotFoundError) as error:
            made.add(_outcome(error), error.param or "request", str(error))
            made.is_possible = False

    def _store_file(self, file_id: str) -> Json:
        """Store a file here, once, with its origin; what is known of it. Raises Refused, and errors of Tunery."""
        known = self.record.of(file_id)
        stored = known.get("tunery_file")
        if not stored or self._get(file_path(stored)) is None:  # deleted, or the record is of another server
            known = self.record.save_file(self.source, file_id)
            path = self.record.file_path(file_id, known["filename"])
            stored = find_stored(self.client, path, lambda file: _may_be(file, file_id, path.name), known["sha256"])
            stored = stored or upload_with_progress(self.client, path)["id"]
            self.record.add(file_id, tunery_file=stored, has_origin=False)
        if not known.get("has_origin"):
            origin = {"service": "openai", "id": file_id, "filename": known.get("filename")}
            origin |= given(created_at=known.get("created_at"), imported_at=known.get("saved_at"))
            self.client.post(file_path(stored), {"origin": origin})
            self.record.add(file_id, has_origin=True)
        return known

    def _find_job(self, openai_job: str) -> Json | None:
        """The job that an earlier import created, also if it was interrupted right after it."""
        job_id = self.record.of(openai_job).get("job")
        if job_id and (job := self._get(job_path(job_id))) is not None:
            return job
        found = self.client.get("fine_tuning/jobs", **{"metadata[openai_job]": openai_job})["data"]
        return found[0] if found else None

    def _check(self, made: Recreation, is_plan: bool) -> None:
        """Check the request and every line of its files by the rules of a job, so that no created job would fail.

        A request that was checked by an earlier import is not checked again, as that takes a second; a plan depends on
        the workers of the moment. Raises UsageError and NotFoundError.
        """
        if self.record.of(made.openai_job).get("checked") == made.request and not is_plan:
            return
        try:
            plan = self.client.post("fine_tuning/jobs/plan", made.request)
        except CliError as error:
            if error.code not in NOT_PLANNED:
                raise
            made.add("plan", "", f"unknown: {error}")
        else:
            if is_plan:
                made.add("plan", "", f"{plan['trained_tokens']:,} tokens in {plan['total_steps']:,} steps")
                for each in plan["devices"]:
                    time = duration_text(each["seconds"])
                    made.add("plan", "", f"{each['name']}: {each['message']} Time about {time}.")
                if not plan["devices"]:
                    made.add("plan", "", plan["message"])
        self.record.add(made.openai_job, checked=made.request)

    def _get(self, path: str) -> Json | None:
        try:
            return self.client.get(path)
        except NotFoundError:
            return None


def _may_be(stored: Json, file_id: str, filename: str) -> bool:
    """Whether a file here may be the one that an earlier import uploaded, before it was killed or lost its record."""
    return (stored["filename"], (stored.get("origin") or {}).get("id", file_id)) == (filename, file_id)


def _outcome(error: CliError) -> str:
    return LATER if isinstance(error, TooManyRequests) else IMPOSSIBLE
