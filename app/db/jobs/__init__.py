"""Queries for jobs: claims and leases, events, checkpoints, exports, logs, lists."""
