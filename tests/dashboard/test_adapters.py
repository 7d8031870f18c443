"""The lines that load an adapter, which a user pastes as they are."""

from __future__ import annotations

import shlex

import pytest

from app.web.pages.adapters import BASE_DIRECTORY, snippet

JOB = {"id": "ftjob-1", "chat_template_kwargs": {"enable_thinking": False}}
ADAPTER = {"base_model": "tiny", "fine_tuned_model": "ft:tiny:tunery:demo:1f8a20c4"}
SOURCE = "hub/tiny-1B"
FLAGS = ["--enable-lora", "--max-lora-rank", "16"]
DOWNLOAD, EXPORT = "tunery adapters download ftjob-1 -o adapter", "tunery jobs export ftjob-1"


def lines(engine: str, is_served: bool = True, source: str | None = SOURCE) -> list[str]:
    text = snippet(engine, is_served, FLAGS, JOB, ADAPTER, source)
    return [line for line in text.split("\n") if not line.startswith("#")]


@pytest.mark.parametrize(("engine", "start"), [("vllm", "vllm serve"), ("sglang", "--model-path")])
def test_a_server_loads_the_base_model_from_its_hub_with_the_adapter(engine: str, start: str) -> None:
    download, serve = lines(engine)
    assert download == DOWNLOAD
    assert f"{start} {SOURCE} {shlex.join(FLAGS)} --lora-" in serve
    assert serve.endswith(f"{ADAPTER['fine_tuned_model']}=adapter")


@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers", "llama_cpp"])
def test_a_base_model_without_a_hub_is_a_directory_to_fill_in(engine: str) -> None:
    """Its registered name is none that an engine finds."""
    text = "\n".join(lines(engine, source=None))
    assert BASE_DIRECTORY in text
    assert "tiny " not in text


def test_the_python_lines_compile() -> None:
    compile("\n".join(lines("transformers")), "snippet", "exec")


@pytest.mark.parametrize(
    ("engine", "is_served", "options", "used"),
    [
        ("vllm", False, "-o merged", "merged"),
        ("sglang", False, "-o merged", "merged"),
        ("ollama", True, "--type gguf --quantization Q8_0 -o tuned", "tuned/Modelfile"),
        ("ollama", False, "--type gguf --quantization Q8_0 -o tuned", "tuned/Modelfile"),
        ("llama_cpp", False, "--type gguf --quantization Q8_0 -o tuned", "tuned/model-Q8_0.gguf"),
        ("llama_cpp", True, "--type gguf_adapter -o tuned", "tuned/adapter.gguf"),
    ],
)
def test_an_engine_gets_the_export_that_it_serves(engine: str, is_served: bool, options: str, used: str) -> None:
    export, *_, run = lines(engine, is_served)
    assert export == f"{EXPORT} {options}"
    assert run.endswith(f" {used}")
