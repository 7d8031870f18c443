"""Run registrations of base models: one at a time on this host, beside its exports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy.orm import Session

from app.db.base_models import models, registrations
from app.db.jobs.claims import Lease
from app.db.tables import BaseModelRegistration
from app.domain.base_models.catalog import RefusedModel
from app.domain.base_models.registrations import MAX_NOTES, RegistrationErrorCode, is_inside
from app.errors import Unavailable
from app.log import get_logger
from app.model_hub import PulledModel, pull
from app.system.model_registration import CheckedModel, RegistrationOptions, check_and_hash
from worker.jobs.lease import observed_attempt
from worker.jobs.leased_rows import AttemptFailed, RowClaimer, RowLeaseKeeper
from worker.jobs.sanitize import clean_text
from worker.node.resources import Resources

log = get_logger(__name__)


class Registrar:
    """Runs the registrations of one slot, one at a time."""

    def __init__(self, resources: Resources, owner: str) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.owner = owner
        self._claimer = RowClaimer(resources, BaseModelRegistration, owner)

    def run_next(self) -> bool:
        """Run one registration from its claim to its end; False if none is due."""
        claimed = self._claimer.claim_next(self._claim)
        if claimed is None:
            return False
        row, keeper = claimed
        with observed_attempt("registration", keeper), keeper:
            log.info("registration started", model=row.name, directory=row.directory)
            keeper.run("registration", lambda: self._register(row, keeper), _fail)
        return True

    def _claim(self, session: Session) -> BaseModelRegistration | None:
        return registrations.claim(session, self.owner, self.settings.lease_ttl_seconds)

    def _register(self, row: BaseModelRegistration, keeper: RowLeaseKeeper[BaseModelRegistration]) -> None:
        """Raises AttemptFailed, AttemptInterrupted, FencedError."""
        notes: list[str] = []

        def on_note(text: str) -> None:
            keeper.check_running()
            notes.append(clean_text(text))

        options = RegistrationOptions(row.learning_rate, row.license, row.source, row.revision)
        try:
            directory = Path(row.directory)
            if row.is_pull:
                pulled = self._pull(row, on_note, keeper.check_running)
                directory, options = pulled.directory, replace(options, revision=pulled.commit)
            else:
                _check_inside(directory, self.settings.base_model_directories)
            checked = check_and_hash(directory, options, on_note, keeper.check_running)
        except RefusedModel as error:
            raise AttemptFailed(RegistrationErrorCode.REFUSED_MODEL, str(error)) from error
        except Unavailable as error:
            raise AttemptFailed(RegistrationErrorCode.HUB_UNAVAILABLE, str(error)) from error
        except OSError as error:
            text = f"{row.directory} cannot be read: {error.strerror or error}"
            raise AttemptFailed(RegistrationErrorCode.REFUSED_MODEL, text) from error
        keeper.finish(lambda session: self._store(session, row, keeper, checked, notes[-MAX_NOTES:]))

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
        self,
        session: Session,
        row: BaseModelRegistration,
        keeper: RowLeaseKeeper[BaseModelRegistration],
        checked: CheckedModel,
        notes: list[str],
    ) -> None:
        if (alias := models.get_alias(session, row.name)) is not None:
            text = f"{row.name} is an alias of {alias.base_model} by now; remove the alias first"
            raise AttemptFailed(RegistrationErrorCode.REFUSED_MODEL, text)
        entry = checked.entry
        registrations.succeed(session, keeper.lease, str(checked.directory), entry.revision, notes)
        models.register(session, row.name, checked.directory, checked.files, checked.manifest_sha256, entry)


def _fail(session: Session, lease: Lease, error: AttemptFailed) -> None:
    registrations.fail(session, lease, error.code, error.message)


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
