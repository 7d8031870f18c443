"""The screens of the dashboard, one module or package per subject, named as in `app.api.routes`."""

from __future__ import annotations

from importlib import import_module

MODULES = ("jobs.jobs", "jobs.job")


def load() -> None:
    """Import all screens, which registers them."""
    for module in MODULES:
        import_module(f"{__name__}.{module}")
