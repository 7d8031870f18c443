"""The prompt before a trained answer is the prompt of evaluations, samples, trial answers and engines."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.db.fast_reads.answers import ServedModel
from app.domain.answers.trial import TrialRequest, question_of
from app.domain.datasets.examples import Example, read_examples
from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.domain.deliveries.served_check import ReferencePrompt
from app.domain.evaluations.graders import EvaluationRequest
from app.domain.jobs.events import ServedReferenceMeasured
from app.domain.jobs.spec import DataParameters
from app.services.answers.answers import Question, with_arguments
from app.system.artifact_directory import MANIFEST
from app.system.limited_rendering import limited_renderer
from tests.datasets.families import GPT_OSS, QWEN_3, WITH_DOCUMENTS
from tests.tiny import make_tiny_base
from tests.trainer.helpers import Trainings
from worker.evaluations.prepare import read_inputs
from worker.trainer.answers.trial import TrialProgram
from worker.trainer.validation import evaluate
from worker.trainer.validation.evaluate import prompt_tokens
from worker.trainer.validation.served_reference import with_messages

QUESTION = [{"role": "user", "content": "where is my parcel"}]
ANSWER = {"role": "assistant", "content": "on its way"}
LIMIT = 1 << 20
GRADER = {"type": "json_valid", "name": "g"}
NO_THINKING, THINKING = {"enable_thinking": False}, {"enable_thinking": True}
NO_THOUGHTS = "<think>\n\n</think>\n\n"


def base_with(template: str, directory: Path) -> Path:
    base = make_tiny_base(directory / "base")
    (base / "chat_template.jinja").write_text(template)
    return base


@pytest.mark.parametrize(
    ("template", "of_job", "of_row", "printed"),
    [
        (QWEN_3, NO_THINKING, None, NO_THOUGHTS),
        (QWEN_3, None, NO_THINKING, NO_THOUGHTS),
        (QWEN_3, THINKING, NO_THINKING | {"reasoning_effort": None}, NO_THOUGHTS),
        (QWEN_3, None, None, "assistant\n"),
        (GPT_OSS, {"reasoning_effort": "low"}, None, "Reasoning: low"),
        (GPT_OSS, {"reasoning_effort": "low"}, {"reasoning_effort": "high"}, "Reasoning: high"),
        (GPT_OSS, None, None, "Reasoning: medium"),
        (WITH_DOCUMENTS, {"documents": [{"title": "a", "text": "b"}]}, NO_THINKING, "a: b"),
    ],
)
def test_every_prompt_of_a_job_has_the_tokens_of_the_training(
    tmp_path: Path, template: str, of_job: dict[str, Any] | None, of_row: dict[str, Any] | None, printed: str
) -> None:
    base = base_with(template, tmp_path)
    job = ChatTemplateArguments.model_validate(of_job) if of_job else None
    own = {"chat_template_kwargs": of_row} if of_row else {}
    line = json.dumps({"messages": [*QUESTION, ANSWER], **own}).encode()
    parameters = DataParameters(chat_template_kwargs=job)
    renderer = limited_renderer(base)
    # the trainer and, by the same call, validation, plan and report
    ((_, (document,)),) = renderer.lines(LIMIT, parameters, io.BytesIO(line))  # type: ignore[misc]
    positions = [position for position, label in enumerate(document.labelled) if label]
    trained = document.tokens[: positions[0]]
    assert printed in renderer.tokenizer.decode(trained, skip_special_tokens=False)
    # an engine that gets what is recorded, rendered by transformers as in vLLM
    (example,) = read_examples(io.BytesIO(line), LIMIT, parameters)
    assert isinstance(example, Example)
    expected = ReferencePrompt(tokens=document.tokens, positions=positions, base=[], adapter=[], top=[])
    recorded = with_messages(renderer, example, expected)
    sent = recorded.chat_template_kwargs.model_dump() if recorded.chat_template_kwargs else {}
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.apply_chat_template(recorded.messages, add_generation_prompt=True, **sent)["input_ids"] == trained
    # an evaluation
    settings = EvaluationRequest.model_validate({"file": "file-x", "graders": [GRADER]}).settings()
    evaluated = read_inputs(renderer, settings, job, 512, LIMIT, io.BytesIO(line), io.BytesIO(line)).prompts
    assert [list(prompt) for prompt in evaluated] == [trained]
    # a request for a trial answer, with the row's arguments as its own
    served = ServedModel("ft:m", False, "p", [], of_job)
    body = with_arguments(Question("p", "/v1/chat/completions", {"model": "m", "messages": QUESTION, **own}), served)
    question = question_of(TrialRequest.model_validate(body.body), "q", "p", "m", is_chat=True)
    program = TrialProgram.__new__(TrialProgram)
    program._renderer, program._context_length = renderer, 512
    assert program._prompt(question)[1] == trained
    if not own:  # a sample prompt has only those of the job
        assert prompt_tokens(renderer.with_arguments(job), "where is my parcel") == trained


class TestRun:
    @pytest.fixture
    def shortened(self) -> None:
        """Nothing is left out."""

    def test_a_run_samples_and_records_with_its_arguments(
        self, train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, prompts, generate = base_with(QWEN_3, tmp_path), [], evaluate.generate

        def note_prompts(base: Any, tokens: Any, *arguments: Any) -> Any:
            prompts.extend(tokens)
            return generate(base, tokens, *arguments)

        monkeypatch.setattr(evaluate, "generate", note_prompts)
        arguments = ChatTemplateArguments(enable_thinking=False)
        log = train(base=base, chat_template_kwargs=arguments, sample_prompts=("say 3",), max_steps=1)
        (measured,) = log.of(ServedReferenceMeasured)
        assert prompts[0] == prompt_tokens(limited_renderer(base).with_arguments(arguments), "say 3")
        assert {prompt.chat_template_kwargs for prompt in measured.reference.prompts} == {arguments}
        assert json.loads((log.result / MANIFEST).read_text())["chat_template_kwargs"] == NO_THINKING
        card = (log.result / "README.md").read_text()
        assert '"chat_template_kwargs": {"enable_thinking": false},' in card
        assert "**{'enable_thinking': False}," in card
