"""Queries for jobs: claims and leases, events, checkpoints, exports, evaluations, logs, lists."""
