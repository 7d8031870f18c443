"""Descriptions of files, uploads and reports on datasets."""

from __future__ import annotations

BY_SCHEMA = {
    "ExpiresAfter.anchor": "The start of the period: the creation of the file.",
    "ExpiresAfter.seconds": "The file is deleted automatically after this time: an hour to 30 days.",
    "PartBody.upload_id": "The upload of the part.",
    "UploadBody.bytes": "The size of the content, as declared at creation.",
    "UploadBody.expires_at": (
        "When the upload expires unless completed, in seconds since 1970. The file of a completed upload has its own."
    ),
    "UploadBody.file": "The resulting file; null until the upload is completed.",
    "UploadBody.mime_type": "The declared type. It is not used: the content determines the type.",
    "UploadBody.purpose": "The purpose of the resulting file.",
    "UploadBody.received_bytes": "Bytes received so far, in all parts (including repeated ones) or in the stream.",
    "UploadBody.status": "`pending` accepts content; the other three are final.",
}
