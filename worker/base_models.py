"""Run registrations of base models: one at a time on this host, beside its exports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.jobs import leases
from app.db.tables import BaseModelRegistration
from app.domain.base_models.catalog import RefusedModel
from app.domain.base_models.registrations import MAX_NOTES, RegistrationErrorCode, is_inside
from app.domain.jobs.states import WorkState
from app.errors import Unavailable
from app.model_hub import PulledModel, pull
from app.system.model_registration import CheckedModel, RegistrationOptions, check_and_hash
from worker.jobs.base_and_adapter import AttemptFailed
from worker.jobs.program_attempt import ProgramAttempt, ProgramRunner
from worker.jobs.sanitize import clean_text


class Registrar(ProgramRunner[BaseModelRegistration]):
    """Runs the registrations of one slot."""

    kind = "registration"
    table = BaseModelRegistration
    is_retried = False  # its user can begin again at once

    def claim(self, session: Session) -> BaseModelRegistration | None:
        return leases.claim_oldest(session, BaseModelRegistration, self.owner, self.settings.lease_ttl_seconds)

    def work(self, attempt: ProgramAttempt[BaseModelRegistration]) -> None:
        row = attempt.row
        notes: list[str] = []

        def on_note(text: str) -> None:
            attempt.check_running()
            notes.append(clean_text(text))

        options = RegistrationOptions(row.learning_rate, row.license, row.source, row.revision)
        try:
            directory = Path(row.directory)
            if row.is_pull:
                pulled = self._pull(row, on_note, attempt.check_running)
                directory, options = pulled.directory, replace(options, revision=pulled.commit)
            else:
                _check_inside(directory, self.settings.base_model_directories)
            checked = check_and_hash(directory, options, on_note, attempt.check_running)
        except RefusedModel as error:
            raise AttemptFailed(RegistrationErrorCode.REFUSED_MODEL, str(error)) from error
        except Unavailable as error:
            raise AttemptFailed(RegistrationErrorCode.HUB_UNAVAILABLE, str(error)) from error
        except OSError as error:
            text = f"{row.directory} cannot be read: {error.strerror or error}"
            raise AttemptFailed(RegistrationErrorCode.REFUSED_MODEL, text) from error
        attempt.finish(lambda session: _store(session, attempt, checked, notes[-MAX_NOTES:]))

    def _pull(
        self, row: BaseModelRegistration, on_note: Callable[[str], None], check: Callable[[], None]
    ) -> PulledModel:
        """Download the model into the directory of all downloads, as this host names it."""
        parent, token = self.settings.base_model_pull_directory, self.settings.hub_token
        if parent is None or row.source is None:
            text = "This worker downloads no models: set TUNERY_BASE_MODEL_PULL_DIRECTORY as for the API"
            raise AttemptFailed(RegistrationErrorCode.DIRECTORY_NOT_ALLOWED, text)
        secret = token.get_secret_value() if token is not None else None
        return pull(row.source, row.revision, Path(parent), on_note, secret, check)


def _store(
    session: Session, attempt: ProgramAttempt[BaseModelRegistration], checked: CheckedModel, notes: list[str]
) -> None:
    name, entry = attempt.row.name, checked.entry
    if (alias := models.get_alias(session, name)) is not None:
        text = f"{name} is an alias of {alias.base_model} by now; remove the alias first"
        raise AttemptFailed(RegistrationErrorCode.REFUSED_MODEL, text)
    # A download or a conversion makes the directory, and a branch is a commit by now.
    made = {"directory": str(checked.directory), "revision": entry.revision, "notes": notes}
    columns = leases.finished_columns(WorkState.SUCCEEDED) | made
    leases.update_held(session, BaseModelRegistration, attempt.lease, **columns)
    models.register(session, name, checked.directory, checked.files, checked.manifest_sha256, entry)


def _check_inside(directory: Path, allowed: Sequence[str]) -> None:
    """Check where the directory and its files really are: symbolic links must not lead out of the allowed directories.

    Raises AttemptFailed, OSError.
    """
    roots = [str(Path(root).resolve()) for root in allowed]
    places = [directory.resolve(strict=True), *(path.resolve(strict=True) for path in directory.iterdir())]
    outside = [place for place in places if not any(is_inside(str(place), root) for root in roots)]
    if outside:
        text = f"{directory} leads to {outside[0]}, which is outside {', '.join(allowed) or 'any allowed directory'}"
        raise AttemptFailed(RegistrationErrorCode.DIRECTORY_NOT_ALLOWED, text)
