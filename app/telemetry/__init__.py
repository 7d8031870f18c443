"""Metrics for Prometheus and traces for OpenTelemetry, in every process but the trainer."""
