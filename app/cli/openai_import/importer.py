"""An import: files and jobs at OpenAI, saved in a directory, stored here, planned and created, each once.

DIRECTORY/
  record.jsonl                            a line for each step: the id of a file or a job at OpenAI, and what is known
  files/<id>/<name>                       the files
  jobs/<id>.json                          the jobs
  jobs/<id>.{events,checkpoints}.jsonl    their events and checkpoints
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.client.references import file_path, job_path
from app.cli.client.transfers import find_stored, upload_with_progress
from app.cli.errors import CliError, NotFoundError, TooManyRequests, UsageError
from app.cli.openai_import.record import ImportRecord
from app.cli.openai_import.recreate import IMPOSSIBLE, KEPT, LATER, Recreation
from app.cli.openai_import.source import OpenAISource, Refused
from app.cli.output.console import print_note, size_text
from app.domain.error_text.json_text import counted
from app.system.files import write_json

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
    say: Callable[[str], None]  # gets what OpenAI does not return

    def path_of(self, file_id: str, filename: str) -> Path:
        name = Path(filename).name
        return self.record.root / "files" / Path(file_id).name / ("file" if name in ("", "..") else name)

    def save_file(self, file_id: str, listed: Json | None = None) -> Json:
        """Download a file unless that has been done; its facts. Raises Refused."""
        saved = self.record.of(file_id)
        if "filename" in saved and self.path_of(file_id, saved["filename"]).is_file():
            return saved
        file = listed or self.source.file(file_id)
        path = self.path_of(file_id, file["filename"])
        print_note(f"Downloading {file_id} ({file['filename']}, {size_text(file['bytes'])})")
        provenance = {key: file[key] for key in ("filename", "bytes", "created_at", "purpose")}
        sha256 = self.source.download(file_id, path)
        return self.record.add(file_id, **provenance, sha256=sha256, path=str(path), saved_at=int(time.time()))

    def save_all(self, wanted: Sequence[str]) -> list[Json]:
        """Save every training file, and all jobs or the wanted ones with their events, checkpoints and result files,
        unless they are saved as they are now; the jobs, oldest first. What OpenAI does not return is left out, and
        asked for again by the next import. Raises UsageError for an unknown job.
        """
        for file in self.source.training_files():
            self._try(f"{file['id']}:", partial(self.save_file, file["id"], file))
        jobs = _jobs(self.source, wanted)
        for job in jobs:
            job_id, path = job["id"], self.record.root / "jobs" / f"{job['id']}.json"
            if self.record.of(job_id).get("saved") != job or not path.exists():
                path.parent.mkdir(exist_ok=True)
                lists = [(kind, partial(self._save_list, path, job_id, kind)) for kind in ("events", "checkpoints")]
                saved = [self._try(f"{job_id}: {kind}", save) for kind, save in lists]
                write_json(path, job)
                self.record.add(job_id, saved=job if all(saved) else None)
            for file_id in job.get("result_files") or ():
                self._try(f"{file_id}:", partial(self.save_file, file_id))
        return jobs

    def _try(self, what: str, save: Callable[[], object]) -> bool:
        """Whether OpenAI returned what is to be saved."""
        try:
            save()
        except Refused as error:
            self.say(f"{what} not saved, OpenAI does not return it ({error})")
            return False
        return True

    def _save_list(self, path: Path, job_id: str, kind: str) -> None:
        lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in self.source.of_job(job_id, kind)]
        path.with_suffix(f".{kind}.jsonl").write_text("".join(lines), encoding="utf-8")

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
        stored, has_origin = known.get("tunery_file"), known.get("has_origin", True)  # False: of an earlier release
        if stored and has_origin and self._get(file_path(stored)) is not None:
            return known
        known = self.save_file(file_id)  # it was deleted here, or the record is of another server
        path = self.path_of(file_id, known["filename"])
        stored = find_stored(self.client, path, lambda file: _may_be(file, file_id, path.name), known["sha256"])
        stored = stored or upload_with_progress(self.client, path)["id"]
        origin = {"service": "openai", "id": file_id, "imported_at": known["saved_at"]}
        origin |= {key: known[key] for key in ("filename", "created_at")}
        self.client.post(file_path(stored), {"origin": origin})
        return self.record.add(file_id, tunery_file=stored, has_origin=True)

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
                    made.add("plan", "", f"{each['name']}: {each['message']}")
                if not plan["devices"]:
                    made.add("plan", "", plan["message"])
        self.record.add(made.openai_job, checked=made.request)

    def _get(self, path: str) -> Json | None:
        try:
            return self.client.get(path)
        except NotFoundError:
            return None


def _jobs(source: OpenAISource, wanted: Sequence[str]) -> list[Json]:
    """All jobs or those that were named, oldest first."""
    found = source.jobs()
    if unknown := sorted(set(wanted) - {each["id"] for each in found}):
        raise UsageError(f"OpenAI has no fine-tuning job {', '.join(unknown)}; it has {counted(len(found), 'job')}.")
    return [each for each in reversed(found) if not wanted or each["id"] in wanted]


def _may_be(stored: Json, file_id: str, filename: str) -> bool:
    """Whether a file here may be the one that an earlier import uploaded, before it was killed or lost its record."""
    return (stored["filename"], (stored.get("origin") or {}).get("id", file_id)) == (filename, file_id)


def _outcome(error: CliError) -> str:
    return LATER if isinstance(error, TooManyRequests) else IMPOSSIBLE
