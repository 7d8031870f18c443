"""The worker: a Celery process per slot, which claims jobs and supervises their child processes."""
