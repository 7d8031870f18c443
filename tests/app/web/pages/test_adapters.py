"""The lines that load an adapter, which a user pastes as they are."""

from __future__ import annotations

import shlex

import pytest

from app.web.pages.adapters import BASE_DIRECTORY, snippet

ADAPTER = {"base_model": "tiny", "fine_tuned_model": "ft:tiny:tunery:demo:1f8a20c4"}
SOURCE = "hub/tiny-1B"


def lines(engine: str, is_served: bool = True, source: str | None = SOURCE) -> list[str]:
    text = snippet(engine, is_served, ["--enable-lora", "--max-lora-rank", "16"], "ftjob-1", ADAPTER, source)
    return [line for line in text.split("\n") if not line.startswith("#")]


def test_a_server_loads_the_base_model_from_its_hub_with_the_adapter() -> None:
    assert lines("vllm") == [
        "tunery adapters download ftjob-1 -o adapter",
        f"vllm serve {SOURCE} --enable-lora --max-lora-rank 16 --lora-modules ft:tiny:tunery:demo:1f8a20c4=adapter",
    ]
    assert f"launch_server --model-path {SOURCE} " in lines("sglang")[1]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers", "llama_cpp"])
def test_a_base_model_without_a_hub_is_a_directory_to_fill_in(engine: str) -> None:
    """Its registered name is none that an engine finds."""
    text = "\n".join(lines(engine, source=None))
    assert BASE_DIRECTORY in text
    assert "tiny " not in text


def test_python_compiles() -> None:
    compile("\n".join(lines("transformers")), "snippet", "exec")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_server_that_does_not_serve_the_adapter_gets_the_merged_model(engine: str) -> None:
    export, serve = lines(engine, is_served=False)
    assert export == "tunery jobs export ftjob-1 -o merged"
    assert serve.endswith(" merged")


@pytest.mark.parametrize(("engine", "is_served"), [("ollama", True), ("ollama", False), ("llama_cpp", False)])
def test_a_gguf_file_is_an_export(engine: str, is_served: bool) -> None:
    export, run = lines(engine, is_served)
    assert export == "tunery jobs export ftjob-1 --type gguf --quantization Q8_0 -o tuned"
    assert any(word.startswith("tuned/") for word in shlex.split(run))


def test_llama_cpp_loads_the_exported_adapter_beside_a_base_that_is_made_first() -> None:
    assert lines("llama_cpp") == [
        "tunery jobs export ftjob-1 --type gguf_adapter -o tuned",
        f"python convert_hf_to_gguf.py {BASE_DIRECTORY} --outfile base.gguf",
        "llama-server -m base.gguf --lora tuned/adapter.gguf",
    ]
