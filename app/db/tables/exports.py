"""Exports of checkpoints: a separate queue, with leases and fencing tokens as that of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, and_, text
from sqlalchemy.orm import Mapped, foreign, relationship

from app.db.tables.base import Base, CheckpointWork, Strings, checks, lease_constraints, sql_string_list
from app.db.tables.files import File
from app.domain.artifacts.exports import WAITING_FOR_WORKER, ExportType
from app.domain.artifacts.full_disk import WAITING_FOR_STORAGE
from app.domain.jobs.states import FINISHED_WORK, WorkState


class Export(CheckpointWork, Base):
    """`model` names the content: a checkpoint that is published again gets another name in the same row."""

    __tablename__ = "exports"
    __table_args__ = (
        *checks(
            type=f"type IN ({sql_string_list(ExportType)})",
            quantization="(type = 'gguf') = (quantization IS NOT NULL)",
            manifest="(state = 'succeeded') = (manifest IS NOT NULL)",
            cancelled_is_deleted="(state = 'cancelled') <= (deleted_at IS NOT NULL)",
            deleted_is_finished="(deleted_at IS NOT NULL) <= (finished_at IS NOT NULL)",
        ),
        *lease_constraints(WorkState, FINISHED_WORK),
        # One export per model, type and quantization, also for concurrent requests.
        Index(
            "uq_exports_one_of_a_kind",
            "model",
            "type",
            "quantization",
            unique=True,
            postgresql_where=text("deleted_at IS NULL AND state <> 'failed'"),
            postgresql_nulls_not_distinct=True,
        ),
        Index("ix_exports_claim", "seq", postgresql_where=text("state = 'queued'")),
        Index("ix_exports_lease", "lease_expires_at", postgresql_where=text("lease_owner IS NOT NULL")),
        Index("ix_exports_page", "job_id", "seq"),
    )

    # the request, in addition to that of all CheckpointWork
    type: Mapped[str]
    quantization: Mapped[str | None]  # the weights of a GGUF file of the merged model
    expected_bytes: Mapped[int]  # the estimated size; that of a merged model is the size of the base model's files

    # the state, in addition to that of every LeasedRow
    storage_full_since: Mapped[datetime | None]  # when the first of consecutive attempts ended on a full disk
    deleted_at: Mapped[datetime | None]

    # the result
    file_ids: Mapped[Strings]
    size_bytes: Mapped[int | None]
    manifest: Mapped[dict[str, Any] | None]
    files: Mapped[list[File]] = relationship(  # those that are not deleted
        primaryjoin=lambda: and_(
            Export.job_id == foreign(File.job_id), Export.file_ids.has_key(File.id), File.is_available()
        ),
        order_by=File.seq,
        viewonly=True,
        lazy="selectin",
    )
    has_worker = True  # no column: app.services.jobs.exports sets it; False: no running worker makes this type

    @property
    def format(self) -> str:
        return "safetensors" if self.type == ExportType.MERGED else "gguf"

    @property
    def phase(self) -> str | None:
        if self.state != WorkState.QUEUED:
            return None
        if self.storage_full_since is not None:
            return WAITING_FOR_STORAGE
        return None if self.has_worker else WAITING_FOR_WORKER
