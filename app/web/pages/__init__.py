"""The screens of the dashboard, one module or package per subject."""

from __future__ import annotations

from importlib import import_module

# routes are matched in order: /jobs/new precedes /jobs/{job_id}
MODULES = (
    "jobs.jobs",
    "jobs.new_job",
    "jobs.compare",
    "jobs.job",
    "convert",
    "datasets",
    "adapters",
    "queue",
    "project",
    "admin",
)


def load() -> None:
    """Import all screens, which registers them."""
    for module in MODULES:
        import_module(f"{__name__}.{module}")
