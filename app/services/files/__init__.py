"""Use cases of files: ingest; multipart and resumable uploads with their queries."""
