"""The trainer with a limit on its memory: RLIMIT_DATA counts private mappings, touched or not."""

from __future__ import annotations

import json
import os
import resource
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

LIMIT_BYTES = 740_000_000  # a trainer that has loaded takes about 450 MB of data, 1,024 tokens of this model 350 more
# Into one of these a short row fits, and a row of 1,024 tokens does not. Which one depends on the processor: here 650
# to 700 MB with products in float32; with AMX, oneDNN's products in bfloat16 take 100 MB more.
TIGHT_BYTES = range(650_000_000, 860_000_000, 40_000_000)


UNDERESTIMATE = Measurement(recompute="nothing", cache_weights=True, loaded_ratio=1.0, working_ratio=0.01)


def make_wide_base(directory: Path, intermediate_size: int) -> Path:
    """The tiny model with more activations: 0.4 MB a token at 6,144 in 16 bits, and at 3,072 in float32."""
    return make_tiny_base(directory, hidden_size=64, intermediate_size=intermediate_size, num_hidden_layers=10)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return make_tiny_dataset(tmp_path / "many.jsonl", 60)


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


@pytest.mark.slow
def test_a_plan_stays_within_the_limit_of_its_process(many: Path, tmp_path: Path) -> None:
    base = make_wide_base(tmp_path / "base", intermediate_size=6144)
    spec = make_spec(base, many, batch_size=30, max_steps=1)
    code, records, log = train(spec, tmp_path / "limited", LIMIT_BYTES)
    assert code == ExitCode.DONE, log
    (planned,) = of("planned", records)
    assert planned["memory_bytes"] == LIMIT_BYTES
    _, free, _ = train(spec, tmp_path / "free", resource.RLIM_INFINITY)
    assert of("planned", free)[0]["mode"] == {
        "row_tokens": 1024, "recompute": "elementwise", "recompute_layers": 0, "cache_weights": True
    }  # fmt: skip
    assert planned["mode"] != of("planned", free)[0]["mode"]
    losses = [of("metric", each)[0]["train_loss"] for each in (records, free)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)  # bfloat16, in rows of other lengths


@pytest.mark.extended("trains under a limit of memory")
def test_a_plan_that_needs_too_much_memory_is_reduced_and_the_job_succeeds(many: Path, tmp_path: Path) -> None:
    """In float32, with half the width: a processor that emulates bfloat16 takes three minutes for the same bytes."""
    base = make_wide_base(tmp_path / "base", intermediate_size=3072)
    changes = {"measurements": (UNDERESTIMATE,), "quantization": {"compute_dtype": "float32"}}
    spec = make_spec(base, many, batch_size=30, max_steps=1, **changes)
    for limit_bytes in TIGHT_BYTES:
        code, records, log = train(spec, tmp_path / f"work-{limit_bytes}", limit_bytes)
        if code == ExitCode.DONE:
            break
    assert code == ExitCode.DONE, log
    warned = [each for each in of("message", records) if each["level"] == "warn"]
    warned = [each for each in warned if each["message"].startswith("Out of memory")]
    assert "1,024 tokens" in warned[0]["message"]
    assert warned[1]["data"]["before"] != warned[1]["data"]["after"]
    assert of("probed", records)
