"""The import contracts, each in a fresh interpreter: the modules that one process must never load."""

from __future__ import annotations

import graphlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = ("torch", "transformers", "peft", "bitsandbytes")
WEB = ("fastapi", "starlette", "uvicorn")

# What each process must never load; import-linter has the contracts of all modules.
CONTRACTS = {
    "app.main": (*TORCH, "worker"),
    "app.cli.main": (*TORCH, "worker", "nicegui"),
    # NiceGUI imports redis for a storage of its own if it is installed
    "app.web.server": (
        *TORCH,
        "sqlalchemy",
        "psycopg",
        "celery",
        "worker",
        "app.main",
        "app.api",
        "app.services",
        "app.db",
    ),
    "worker.tasks": (*TORCH, *WEB, "worker.trainer", "app.main", "app.api", "app.services", "app.cli"),
    "worker.reconciler.reconciler": (*TORCH, *WEB, "worker.trainer", "app.main", "app.api", "app.services", "app.cli"),
    # torch's inductor imports redis for a remote cache of its own if it is installed, so redis is not listed here
    "worker.trainer.training.run": (*WEB, "sqlalchemy", "psycopg", "celery", "app.db", "app.storage", "app.log"),
}
PROCESSES = ("app.main", "app.web.server", "worker.tasks")


def each_contract() -> list[Any]:
    rest = pytest.mark.extended("a fresh interpreter for each contract, which import-linter checks, too")
    return [
        pytest.param(module, forbidden, id=module, marks=[] if module in PROCESSES else rest)
        for module, forbidden in CONTRACTS.items()
    ]


@pytest.mark.parametrize(("module", "forbidden"), each_contract())
def test_importing_a_module_does_not_load_what_its_contract_forbids(module: str, forbidden: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    environment = {"PATH": "", "DATABASE_URL": "postgresql://nowhere/x", "REDIS_URL": "redis://nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert [name for name in loaded if name in forbidden or name.startswith(tuple(f"{f}." for f in forbidden))] == []


def test_no_module_imports_itself_over_others() -> None:
    graph = grimp.build_graph("app", "worker", "migrations")  # with the imports for types alone
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert set(graphlib.TopologicalSorter(imports).static_order()) == graph.modules  # CycleError names the circle


def test_no_source_file_has_more_than_400_lines() -> None:
    files = [path for package in ("app", "worker") for path in (ROOT / package).rglob("*.py")]
    assert {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 400} == {}
