"""Queries for jobs and their work: claims and leases, events, logs, checkpoints, exports, evaluations."""
