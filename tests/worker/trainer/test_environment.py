"""The environment variables that the package sets for OpenMP before torch is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SHOW = f"import json, os, worker.trainer; print(json.dumps([os.environ.get(name) for name in {NAMES}]))"


@pytest.mark.parametrize(
    ("operator_variables", "expected"),
    [
        ({}, ["PASSIVE", "5000"]),
        ({"GOMP_SPINCOUNT": "0"}, ["PASSIVE", "0"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
    ],
)
def test_threads_spin_for_a_short_time_unless_an_operator_has_set_it(
    operator_variables: dict[str, str], expected: list[str | None]
) -> None:
    others = {name: value for name, value in os.environ.items() if name not in NAMES}
    shown = subprocess.run(
        [sys.executable, "-c", SHOW], env=others | operator_variables, capture_output=True, check=True
    )
    assert json.loads(shown.stdout) == expected
