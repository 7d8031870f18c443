"""Bodies of files and of uploads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.api.schemas.common import Body, Strict, UnixTime
from app.domain.datasets.template_arguments import StoredIfSet
from app.domain.files import EXPIRES_SECONDS, MAX_FILENAME, MAX_PARTS, FileOrigin, Purpose
from app.domain.jobs.create_job import Id


class LabelRows(Body):
    training: int
    """Rows of the training file with this label."""
    held_out: int
    """Rows of the held-out file with it."""


class PreparationBody(Body):
    columns: str | None
    """The columns of the table that became input, output and system prompt; null for JSON lines."""
    held_out_percent: int | None
    """The requested share of rows in the held-out file; null: none."""
    seed: int
    """The seed of the choice: the same file, share and seed give the same two files."""
    rows: int
    """Rows of both files."""
    held_out_rows: int
    """Rows of the held-out file."""
    skipped_rows: int
    """Rows of the table without input or output, which are in neither file."""
    labels: dict[str, LabelRows] | None
    """Of a classification, the rows of each label; null for other outputs."""
    held_out_max_bytes: int
    """The longest row of the held-out file."""
    grader: Literal["label_accuracy", "json_fields", "text_similarity"] | None
    """The grader that suits the outputs, which the evaluation of a job on the file has by default; null: none does."""


class FileBody(Body):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: UnixTime
    filename: str
    purpose: str
    """The purpose of the upload, or `fine-tune-results` for a file that a job created."""
    status: Literal["uploaded", "processed", "error"]
    """`processed`: the file was checked and can be used."""
    status_details: str | None = None
    """Null; OpenAI's older place for findings. The error of a refused upload has them."""
    expires_at: UnixTime | None
    """When the file is deleted automatically, in seconds since 1970; null: never."""
    sha256: str
    line_count: int | None
    """The number of lines of a JSONL file that are not blank."""
    origin: FileOrigin | None
    """Where an imported file comes from; null for other files."""
    held_out_file_id: Annotated[str | None, StoredIfSet] = None
    """The file with the held-out rows, which jobs on this one use for validation and evaluation by default; absent
    without one.
    """
    training_file_id: Annotated[str | None, StoredIfSet] = None
    """Of a held-out file: the file with the other rows; else absent."""
    preparation: Annotated[PreparationBody | None, StoredIfSet] = None
    """How the file was made of the one that was sent; absent for a file that was stored as it is."""


class UpdateFile(Strict):
    """Absent fields keep their values."""

    filename: Annotated[str | None, Field(min_length=1, max_length=4 * MAX_FILENAME)] = None
    """Another name for an uploaded file; null keeps the name."""
    origin: FileOrigin | None = None
    """Where the file comes from; null removes it."""


MAX_INT64 = (1 << 63) - 1


class ExpiresAfter(Strict):
    anchor: Literal["created_at"]
    """The start of the period: the creation of the file."""
    seconds: Annotated[int, Field(ge=EXPIRES_SECONDS[0], le=EXPIRES_SECONDS[1])]
    """The file is deleted automatically after this time: an hour to 30 days."""


class CreateUpload(Strict):
    filename: Annotated[str, Field(min_length=1, max_length=4 * MAX_FILENAME)]
    purpose: Purpose
    """Jobs take files with purpose fine-tune."""
    bytes: Annotated[int, Field(ge=0, le=MAX_INT64)]
    """The exact size of the whole content in bytes."""
    mime_type: Annotated[str, Field(min_length=1, max_length=255)]
    """Stored but not used: the content determines the type."""
    expires_after: ExpiresAfter | None = None
    """The expiry of the completed file."""


class CompleteUpload(Strict):
    part_ids: Annotated[list[Id] | None, Field(max_length=MAX_PARTS)] = None
    """All parts of the file, in order. Omit it if the content was sent by PUT."""
    md5: Annotated[str | None, Field(pattern="^[0-9a-fA-F]{32}$")] = None
    """MD5 of the whole file, in hexadecimal digits."""


class UploadBody(Body):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    """The size of the content, as declared at creation."""
    created_at: UnixTime
    expires_at: UnixTime
    """When the upload expires unless completed, in seconds since 1970. The file of a completed upload has its own."""
    filename: str
    purpose: str
    """The purpose of the resulting file."""
    status: Literal["pending", "completed", "cancelled", "expired"] = Field(validation_alias="current_status")
    """`pending` accepts content; the other three are final."""
    file: FileBody | None
    """The resulting file; null until the upload is completed."""
    mime_type: str
    """The declared type. It is not used: the content determines the type."""
    received_bytes: int
    """Bytes received so far, in all parts (including repeated ones) or in the stream."""


class PartBody(Body):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: UnixTime
    upload_id: str
    """The upload of the part."""
    bytes: int
    sha256: str
