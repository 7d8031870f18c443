"""Artifacts of jobs: stored files, checkpoints, snapshots, parent adapters."""
