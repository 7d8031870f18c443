"""The trainer with a limit on its memory: RLIMIT_DATA counts private mappings, touched or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.domain.jobs.spec import TrainerSpec
from app.domain.jobs.states import ExitCode
from app.domain.planning.execution_plan import Measurement
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.trainer.helpers import make_spec

# Into one of these a short row fits, and a row of 1,024 tokens does not. Which one depends on the processor: here 650
# to 700 MB with products in float32; with AMX, oneDNN's products in bfloat16 take 100 MB more.
TIGHT_BYTES = range(650_000_000, 860_000_000, 40_000_000)
UNDERESTIMATE = Measurement(recompute="nothing", cache_weights=True, loaded_ratio=1.0, working_ratio=0.01)


def train(spec: TrainerSpec, workdir: Path, limit_bytes: int) -> tuple[int, list[dict[str, Any]], str]:
    """Run a trainer that may map `limit_bytes`; return (exit code, records, log)."""
    workdir.mkdir(exist_ok=True)
    (workdir / "spec.json").write_text(spec.model_dump_json())
    command = (
        "import resource, runpy, sys; "
        f"resource.setrlimit(resource.RLIMIT_DATA, ({limit_bytes}, {limit_bytes})); "
        f"sys.argv = ['trainer', {str(workdir)!r}]; "
        "runpy.run_module('worker.trainer', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], stdin=subprocess.DEVNULL, capture_output=True, cwd=Path.cwd(),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def of(kind: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == kind]


@pytest.mark.extended("trains under a limit of memory")
def test_a_plan_that_needs_too_much_memory_is_reduced_and_the_job_succeeds(tmp_path: Path) -> None:
    """In float32, 0.4 MB a token: a processor that emulates bfloat16 takes three minutes for the same bytes."""
    base = make_tiny_base(tmp_path / "base", hidden_size=64, intermediate_size=3072, num_hidden_layers=10)
    many = make_tiny_dataset(tmp_path / "many.jsonl", 60)
    changes = {"measurements": (UNDERESTIMATE,), "quantization": {"compute_dtype": "float32"}}
    spec = make_spec(base, many, batch_size=30, max_steps=1, **changes)
    for limit_bytes in TIGHT_BYTES:
        code, records, log = train(spec, tmp_path / f"work-{limit_bytes}", limit_bytes)
        if code == ExitCode.DONE:
            break
    assert code == ExitCode.DONE, log
    assert of("planned", records)[0]["memory_bytes"] == limit_bytes
    warned = [each for each in of("message", records) if each["level"] == "warn"]
    warned = [each for each in warned if each["message"].startswith("Out of memory")]
    assert "1,024 tokens" in warned[0]["message"]
    assert warned[1]["data"]["before"] != warned[1]["data"]["after"]
    assert of("probed", records)
