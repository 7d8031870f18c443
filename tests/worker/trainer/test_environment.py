"""What the package sets before torch is loaded, for OpenMP's threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SHOW = f"import json, os, worker.trainer; print(json.dumps([os.environ.get(name) for name in {NAMES}]))"


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        ({}, ["PASSIVE", "5000"]),
        ({"GOMP_SPINCOUNT": "0"}, ["PASSIVE", "0"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
    ],
)
def test_threads_spin_for_a_short_while_unless_an_operator_says_otherwise(
    operators: dict[str, str], expected: list[str | None]
) -> None:
    others = {name: value for name, value in os.environ.items() if name not in NAMES}
    shown = subprocess.run([sys.executable, "-c", SHOW], env=others | operators, capture_output=True, check=True)
    assert json.loads(shown.stdout) == expected
