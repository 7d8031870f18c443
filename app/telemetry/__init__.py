"""Metrics for Prometheus, in every process but the trainer."""
