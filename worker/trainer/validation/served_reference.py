"""What an engine that serves the adapter must compute: log-probabilities of some expected answers, in 16 bits.

The pass uses the original weights of the base model, never quantized ones, as engines serve those: the rounding of
NF4 changes as much as a wrong checkpoint does. The weights of one decoder layer at a time are read from the model's
files, once for all computations (layer_by_layer.py). For engines and gateways that take messages only, the
conversations behind the recorded prompts are kept too.

Letters: N expected tokens of a batch, D the hidden size, V the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from app.domain.datasets.chat_template import TemplateRefused
from app.domain.datasets.documents import Document
from app.domain.datasets.examples import Example, read_examples
from app.domain.datasets.jsonl import Finding
from app.domain.datasets.render import Renderer
from app.domain.deliveries.served_check import MAX_PROMPT_TOKENS, MAX_PROMPTS, ReferencePrompt, ServedReference
from app.domain.jobs.spec import DataParameters
from app.domain.planning.memory import VERIFY_HEAD_ROWS
from worker.trainer.adapter.lora import AdaptedLinear
from worker.trainer.data.batch import TokenizedDataset, pack_batches
from worker.trainer.model.base_model import FrozenBase, in_place, stored_layers
from worker.trainer.model.frozen_linear import StoredLinear
from worker.trainer.runtime.records import Keepalive
from worker.trainer.training.state import Run
from worker.trainer.validation.layer_by_layer import Forward, hidden_states_of

SENT_KEYS = frozenset({"role", "content", "weight"})  # a message with others is not sent, as engines differ in them
POSITIONS_AT_ONCE = 64  # whose logits are in memory: 39 MB at V = 151,936
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def examples_at(path: Path, lines: Collection[int], parameters: DataParameters) -> dict[int, Example]:
    """{line: its example}; the file is read up to the last of these lines."""
    found: dict[int, Example] = {}
    with path.open("rb") as file:
        for example in read_examples(file, path.stat().st_size, parameters):
            if not isinstance(example, Finding) and example.line in lines:
                found[example.line] = example
            if len(found) == len(lines):
                break
    return found


def with_messages(renderer: Renderer, example: Example | None, prompt: ReferencePrompt) -> ReferencePrompt:
    """Add the messages from which the template makes the tokens before the first expected one, if there are such."""
    if example is None or example.tools:
        return prompt
    renderer = renderer.with_arguments(example.chat_template_kwargs)
    conversation = [*example.messages, *example.preferred]
    for number, message in enumerate(conversation):
        before = conversation[:number]
        if message["role"] != "assistant" or not all(map(_is_sent, before)):
            continue
        try:
            tokens = renderer.prompt(before)[1]
        except TemplateRefused:
            continue
        first = prompt.positions[0]  # the answer is the positions from here on without a gap
        if tokens == prompt.tokens[:first]:
            answer = [prompt.tokens[each] for number, each in enumerate(prompt.positions) if each == first + number]
            found = {
                "messages": [{"role": str(each["role"]), "content": str(each["content"])} for each in before],
                "answer": [renderer.tokenizer.decode([token], skip_special_tokens=False) for token in answer],
                "chat_template_kwargs": example.chat_template_kwargs,
            }
            return prompt.model_copy(update=found)
    return prompt


def _is_sent(message: dict[str, object]) -> bool:
    return message.keys() <= SENT_KEYS and isinstance(message.get("content"), str)


class _Pass(NamedTuple):
    """The result of one pass, over the expected tokens of all prompts in their order."""

    logprobs: list[float]
    top: list[int]


@torch.no_grad()
def measure_reference(
    base: FrozenBase, run: Run, renderer: Renderer, row_tokens: int, keepalive: Keepalive
) -> ServedReference | None:
    """Measure base model and adapter on held-out answers; None if there are none, or quantized experts."""
    chosen = _choose(run.validation_dataset or run.dataset)
    if not len(chosen) or (layers := stored_layers(base)) is None:
        return None
    dtype = _stored_dtype(base)

    def beat(*_: object) -> None:
        keepalive("recording what an engine must compute")

    @contextmanager
    def read_once(layer: torch.nn.Module) -> Iterator[None]:
        with ExitStack() as held:
            for module in layer.modules():
                if isinstance(module, AdaptedLinear) and isinstance(module.base, StoredLinear):
                    beat()  # one weight of a large base may take seconds to read
                    held.enter_context(module.base.held())
            yield

    batches = [each.to(base.device) for each in pack_batches(chosen, range(len(chosen)), row_tokens)]
    variants = [(None, dtype), (run.adapter, dtype), (run.adapter, torch.float32)]
    forwards = [Forward(batch, *variant) for variant in variants for batch in batches]
    with in_place(base, layers), register_module_forward_pre_hook(beat):
        hidden = hidden_states_of(base, forwards, read_once)
    of_base, of_adapter, exact = (
        _score(base, forwards[start : start + len(batches)], hidden[start : start + len(batches)])
        for start in range(0, len(forwards), len(batches))
    )
    file = run.spec.training_file if run.validation_dataset is None else run.spec.validation_file
    assert file is not None
    examples = examples_at(file, set(chosen.lines), run.spec.data_parameters)
    differences = [abs(a - b) for a, b in zip(of_adapter.logprobs, exact.logprobs, strict=True)]
    agreeing = [a == b for a, b in zip(of_adapter.top, exact.top, strict=True)]
    return ServedReference(
        dtype=str(dtype).removeprefix("torch."),
        source="training_file" if run.validation_dataset is None else "validation_file",
        noise=sum(differences) / len(differences),
        top1_agreement=sum(agreeing) / len(agreeing),
        prompts=[
            with_messages(renderer, examples.get(line), prompt)
            for line, prompt in zip(chosen.lines, _prompts(chosen, of_base, of_adapter), strict=True)
        ],
    )


def _choose(dataset: TokenizedDataset) -> TokenizedDataset:
    """Return the first documents with an expected token among their first MAX_PROMPT_TOKENS.

    Of a pair it is that of the preferred answer.
    """
    chosen = TokenizedDataset()
    for example in range(len(dataset)):
        tokens, labels = dataset.tokens_and_labels(max(dataset.documents(example), key=dataset.role))
        labelled = [bool(label) for label in labels[:MAX_PROMPT_TOKENS]]
        labelled[0] = False  # nothing predicts the first token
        if any(labelled):
            line = dataset.lines[example]
            chosen.add(line, [Document(line, tokens[:MAX_PROMPT_TOKENS].tolist(), labelled)])
        if len(chosen) == MAX_PROMPTS:
            break
    return chosen


def _score(base: FrozenBase, forwards: Sequence[Forward], hidden: Sequence[torch.Tensor]) -> _Pass:
    logprobs: list[float] = []
    top: list[int] = []
    for (batch, adapter, dtype), hidden_T_D in zip(forwards, hidden, strict=True):
        head_V_D = base.head_with(adapter)
        parts = (
            torch.split(each, POSITIONS_AT_ONCE) for each in (hidden_T_D[batch.logit_positions_N], batch.targets_N)
        )
        for some_N_D, targets_N in zip(*parts, strict=True):
            logits = [some_N_D @ rows.to(dtype).t() for rows in torch.split(head_V_D, VERIFY_HEAD_ROWS)]
            logits_N_V = base.logit_scaling.apply_(torch.cat(logits, dim=1).float())
            logprobs += logits_N_V.log_softmax(dim=1).gather(1, targets_N[:, None])[:, 0].tolist()
            top += logits_N_V.argmax(dim=1).tolist()
    return _Pass(logprobs, top)


def _prompts(chosen: TokenizedDataset, of_base: _Pass, of_adapter: _Pass) -> Iterator[ReferencePrompt]:
    start = 0
    for document in chosen.documents_of(range(len(chosen))):
        tokens, labels = chosen.tokens_and_labels(document)
        positions = [position for position, label in enumerate(labels) if label]
        end = start + len(positions)
        yield ReferencePrompt(
            tokens=tokens.tolist(),
            positions=positions,
            base=of_base.logprobs[start:end],
            adapter=of_adapter.logprobs[start:end],
            top=of_adapter.top[start:end],
        )
        start = end


def _stored_dtype(base: FrozenBase) -> torch.dtype:
    """Return the 16-bit dtype in which engines serve the base model: that of its files, else bfloat16."""
    config = json.loads((base.directory / "config.json").read_bytes())
    return DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.bfloat16)
