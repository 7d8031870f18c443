"""One worker process: its slots, devices, locks, disk space and local base models."""
