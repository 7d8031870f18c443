"""Can a model directory be trained? `python -m worker.trainer.model.check_model DIRECTORY` prints a TrainerReport.

The report is one line of JSON; the exit code is 0 also for a model that cannot be trained, and 71 where the memory of
this machine is too small to tell. Names, shapes and numbers of all tensors are checked first, so that every problem is
reported at once. Then the base is loaded in 4 bits on the CPU and passes the check that a job makes before its first
step.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from app.domain.base_models.catalog import TrainerReport
from app.domain.datasets.chat_template import TemplateRefused, UnusableTemplate
from app.domain.error_text.json_text import as_json
from app.domain.jobs.spec import QuantizationSpec
from app.domain.jobs.states import ExitCode
from app.system.limited_rendering import limited_renderer
from app.system.model_files import weight_files
from worker.trainer.adapter.modules_to_save import trainable_names
from worker.trainer.kernels.kernels import choose_kernels
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.memory.activation_count import count_without_adapter
from worker.trainer.model.architecture import UnsupportedBase, meta_model, read_config, remove_other_modalities
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import FrozenBase, load_base
from worker.trainer.model.checkpoint_tensors import FLOATS, CheckpointNames, CheckpointTensors, open_weights
from worker.trainer.runtime.failures import Failure, is_out_of_memory
from worker.trainer.runtime.process import die_with_parent

SHOWN = 3  # tensors of each problem
CONVERSATION = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Goodbye"}]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m worker.trainer.model.check_model DIRECTORY", file=sys.stderr)
        return 2
    die_with_parent()
    descriptor = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to standard error
    try:
        report = check_model(Path(arguments[0]))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        traceback.print_exc(file=sys.stderr)
        return ExitCode.OUT_OF_MEMORY
    os.write(descriptor, report.model_dump_json().encode() + b"\n")
    return 0


def check_model(directory: Path) -> TrainerReport:
    """Check the files, then load the base and compare it with transformers."""
    try:
        problems = [*_tensor_problems(directory), *_tokenizer_problems(directory)]
        if problems:
            return TrainerReport(problems=tuple(problems))
        kernels = choose_kernels(torch.device("cpu"))
        base = load_base(directory.name, directory, QuantizationSpec(), torch.bfloat16, kernels)
        check_base(base)
    except UnsupportedBase as error:
        return TrainerReport(problems=(str(error),))
    except Failure as failure:  # its message, as a clause about the model without the remedy of jobs
        sentence = failure.message.removesuffix(" Choose another base model.").rstrip(".")
        return TrainerReport(problems=(sentence.replace(f"The base model {directory.name} ", "it ", 1),))
    layers = {name: (layer.base.out_features, layer.base.in_features) for name, layer in base.layers.items()}
    experts = {name: (stack.count, stack.out_features, stack.in_features) for name, stack in base.experts.items()}
    return TrainerReport(
        notes=tuple(_notes(base, directory)),
        text_config=base.text_config.to_dict(),
        layers={name: shape for name, shape in layers.items() if name in base.adaptable},
        experts=experts,
        whole_modules=tuple(trainable_names(base.model)),
        parameters=base.frozen_parameters,
        linear_parameters=sum(out * width for out, width in layers.values()),
        expert_parameters=sum(count * out * width for count, out, width in experts.values()),
        activation_bytes=count_without_adapter(base, Recomputation(base)),
    )


def _notes(base: FrozenBase, directory: Path) -> Iterator[str]:
    named, loaded = (base.model.config.architectures or ["no class"])[0], type(base.model).__name__
    if named != loaded:
        yield f"config.json names {named}, but its model_type is trained as {loaded}: engines may load another model."
    if base.skipped_tensors:
        yield f"Only text is trained: {base.skipped_tensors} tensors of images or sound are skipped."
    if not base.packs_documents:
        yield "Its layers carry state from token to token, so each document of a batch runs alone, which is slower."
    if base.experts:
        yield "Experts are not adapted without lora.experts."
    renderer = limited_renderer(directory)
    if rowless := renderer.rowless_tokens:
        shown = ", ".join(as_json(token) for token in rowless[:SHOWN]) + (" and more" if len(rowless) > SHOWN else "")
        yield f"Its embedding has no rows for {shown}: examples with these tokens are refused."
    if renderer.template is None:
        yield "It has no chat template: only text and prompt/completion lines can be trained."
        return
    try:
        prompt, complete = renderer.text(CONVERSATION[:1], prompt=True), renderer.text(CONVERSATION)
    except TemplateRefused as error:
        yield f"Its chat template refuses a question with an answer ({error})."
        return
    if not complete.startswith(prompt):
        yield "Its chat template does not start an answer with its generation prompt: conversations will be refused."
    elif prompt == renderer.text(CONVERSATION[:1]):
        yield "Its chat template has no generation prompt: the words that begin an answer are trained and generated."


def _tensor_problems(directory: Path) -> Iterator[str]:
    """Yield the problems of names, shapes and dtypes, and numbers that are not finite."""
    model = meta_model(read_config(directory), torch.bfloat16)
    names = CheckpointNames(model)
    removed = remove_other_modalities(model)
    paths = weight_files(directory)
    sources = CheckpointTensors(names, removed, paths)
    yield from _problem("are in more than one file", sources.doubled)
    found = sources.targets
    if not sources.converted:  # of conversions only the result tells what is missing
        # No file has buffers, nor the head's matrix if it is the embedding's.
        needed = {key for key, _ in model.named_parameters(remove_duplicate=False)}
        if model.config.get_text_config().tie_word_embeddings:
            needed -= (getattr(model, "_tied_weights_keys", None) or {}).keys()
        missing = [key for key in model.state_dict() if key in needed - found]
        yield from _problem(f"of {type(model).__name__} are missing", missing)
    wrong_shape, wrong_dtype, not_finite = [], [], []
    for path in paths:
        with open_weights(path) as file:
            for key in file.keys():  # noqa: SIM118  not a dictionary
                target, pattern = names.target(key)
                if target not in found:
                    continue
                tensor = file.get_tensor(key)
                expected = tuple(names.expected[target].shape)
                if pattern is None and tuple(tensor.shape) != expected:
                    wrong_shape.append(f"{key} {list(tensor.shape)} instead of {list(expected)}")
                if tensor.dtype not in FLOATS:
                    wrong_dtype.append(f"{key} {tensor.dtype}")
                elif not torch.isfinite(tensor).all():
                    not_finite.append(key)
    yield from _problem("do not have the shapes that config.json gives them", wrong_shape)
    yield from _problem("are not stored as floats of 16 bits or more", wrong_dtype)
    yield from _problem("contain numbers that are not finite", not_finite)


def _problem(what: str, tensors: list[str]) -> Iterator[str]:
    if tensors:
        shown = ", ".join(tensors[:SHOWN]) + (" and more" if len(tensors) > SHOWN else "")
        yield f"{len(tensors)} of its tensors {what}: {shown}"


def _tokenizer_problems(directory: Path) -> Iterator[str]:
    """Added tokens may have no row, as that of images in Gemma 3; those of ordinary text, and the stops, need one."""
    try:
        renderer = limited_renderer(directory)
    except ValueError as error:
        yield str(error)
        return
    if renderer.template is not None:
        try:
            renderer.text(CONVERSATION)
        except UnusableTemplate as error:
            yield str(error)
        except TemplateRefused:  # a note, not a problem
            pass
    config = read_config(directory).get_text_config()
    tokens = max(renderer.tokenizer.get_vocab(with_added_tokens=False).values(), default=-1) + 1
    if tokens > config.vocab_size:
        yield f"its tokenizer has {tokens:,} tokens, but its embedding only {config.vocab_size:,} rows"
    yield from (
        f"its tokenizer has no token {as_json(stop)}, which ends a text"
        for stop in renderer.stops
        if renderer.tokenizer.token_to_id(stop) is None
    )
    yield from (
        f"its embedding has no row for the token {as_json(token)}, which ends a text"
        for token in renderer.rowless_tokens
        if token in renderer.stops
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
