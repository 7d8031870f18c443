"""Trial answers over the API, the real broker and a worker's slot: with the real program, and with one that waits."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog

from app.db.base_models import models
from app.db.engine import transaction
from app.db.tables import Job
from app.system.model_files import hash_directory, read_catalog_entry
from app.system.tokenizer_files import load_renderer
from tests.commands.trained import make_trained_job
from tests.deadline import until
from tests.fork_server import forked
from tests.serving import LiveServer
from tests.tiny import make_tiny_base
from tests.worker.answers.conftest import BASE, CHAT, SAY, WITH_TOOLS, Start, ask
from tests.worker.answers.test_trial_rules import TOOLS, schema_format
from tests.worker.evaluations.plain_answers import plain_answers
from tests.worker.exports.test_exporter import write_real_adapter
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import OWNER, WorkerHarness
from worker.answers import KILL_SECONDS
from worker.jobs.supervisor import JobSupervisor

# Prints tools, and begins every answer with a call; the text of the call is the argument.
TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{{ tools | tojson }}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if tools %}<call>{% endif %}{% endif %}"
)
RESPONSE_TEMPLATE = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close": "<|im_end|>",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "look_up", "arguments": {"said": "{content}"}}},
        },
        "content": {"content": "text"},
    },
}


SCHEMA_FORMAT = schema_format(
    {
        "type": "object",
        "properties": {"label": {"enum": ["refund", "card"]}, "is_open": {"type": "boolean"}},
        "required": ["label", "is_open"],
        "additionalProperties": False,
    }
)


def chunks_of(response: httpx2.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.timeout(240)
class TestTheRealProgram:
    def test_base_and_adapter_answer_as_peft_does_on_one_loaded_base(
        self, harness: WorkerHarness, http: httpx2.Client, start: Start, tmp_path: Path
    ) -> None:
        with transaction(harness.sessions) as session:
            write = write_real_adapter(tmp_path / "base")
            directory = tmp_path / "made"
            storage, body = harness.resources.storage, {"quantization": None}
            job = make_trained_job(session, storage, harness.project, directory, write, body=body)
        model = job.fine_tuned_model or ""
        answers = start(*forked("worker.trainer.answers.trial"))
        adapter = ask(http, model)
        assert adapter.headers["x-tunery-answered-by"].startswith("trial")
        process = answers._process
        ((_, of_adapter),) = plain_answers(tmp_path / "base", tmp_path / "made" / "step-4", [SAY], 6)
        assert (adapter.status_code, adapter.json()["model"]) == (200, model)
        assert adapter.json()["choices"][0]["message"]["content"].strip() == of_adapter
        assert adapter.json()["usage"]["completion_tokens"] in range(1, 7)
        again = ask(http, model, stream=True, stream_options={"include_usage": True})
        *chunks, usage = chunks_of(again)
        said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert said == adapter.json()["choices"][0]["message"]["content"]
        assert usage["usage"] == adapter.json()["usage"]
        assert answers._process is process

        long = ask(http, model, messages=[{"role": "user", "content": "say 3 " * 20_000}])
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
        self.is_refused(ask(http, model, tools=TOOLS), "tools")
        stop = said[1:3]
        cut = ask(http, model, stop=stop).json()["choices"][0]
        assert (cut["message"]["content"], cut["finish_reason"]) == (said[: said.index(stop)], "stop")
        assert ask(http, BASE, path="/v1/completions", prompt="say").json()["object"] == "text_completion"
        # The base model by itself is loaded in 4 bits, by another program, and then the adapter's again.
        assert ask(http, model).json()["choices"] == adapter.json()["choices"]
        self.has_log_probabilities(http, model, adapter.json())
        self.has_several_choices(http, model, adapter.json())
        self.has_the_form_of_a_schema(http, model)

    def has_the_form_of_a_schema(self, http: httpx2.Client, model: str) -> None:
        whole = ask(http, model, response_format=SCHEMA_FORMAT, max_tokens=256).json()["choices"][0]
        assert (json.loads(whole["message"]["content"]).keys(), whole["finish_reason"]) == (
            {"label", "is_open"},
            "stop",
        )
        chunks = chunks_of(ask(http, model, response_format=SCHEMA_FORMAT, max_tokens=256, stream=True))
        said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert said == whole["message"]["content"]
        refused = ask(http, model, response_format=schema_format({"type": "object", "dependentSchemas": {}})).json()
        assert (refused["error"]["param"], "dependentSchemas" in refused["error"]["message"]) == (
            "response_format",
            True,
        )
        beginning = ask(http, model, response_format={"type": "json_object"}, max_tokens=1).json()["choices"][0]
        assert (beginning["message"]["content"], beginning["finish_reason"]) == ("{", "length")

    def has_log_probabilities(self, http: httpx2.Client, model: str, plain: dict[str, Any]) -> None:
        asked = ask(http, model, logprobs=True, top_logprobs=2).json()
        (choice,) = asked["choices"]
        assert choice["message"] == plain["choices"][0]["message"]
        found = choice["logprobs"]["content"]
        assert "".join(each["token"] for each in found) == choice["message"]["content"]
        for each in found:
            assert each["top_logprobs"][0] == {key: each[key] for key in ("token", "logprob", "bytes")}  # it is greedy
            assert 0 >= each["logprob"] >= each["top_logprobs"][1]["logprob"]
        chunks = chunks_of(ask(http, model, logprobs=True, top_logprobs=2, stream=True))
        streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        assert [each for logprobs in streamed if logprobs for each in logprobs["content"]] == found
        (text,) = ask(http, model, path="/v1/completions", prompt="say 3", logprobs=1).json()["choices"]
        logprobs = text["logprobs"]
        assert [text["text"][start:][: len(token)] for token, start in zip(
            logprobs["tokens"], logprobs["text_offset"], strict=True
        )] == logprobs["tokens"]  # fmt: skip
        assert [list(top.values()) for top in logprobs["top_logprobs"]] == [
            [each] for each in logprobs["token_logprobs"]
        ]

    def has_several_choices(self, http: httpx2.Client, model: str, plain: dict[str, Any]) -> None:
        greedy = ask(http, model, n=2).json()
        assert [each["index"] for each in greedy["choices"]] == [0, 1]
        assert [each["message"] for each in greedy["choices"]] == [plain["choices"][0]["message"]] * 2
        assert greedy["usage"]["completion_tokens"] == 2 * plain["usage"]["completion_tokens"]
        sampled = ask(http, BASE, n=3, temperature=2, seed=7, max_tokens=8).json()
        texts = [each["message"]["content"] for each in sampled["choices"]]
        assert len(set(texts)) > 1
        said, ends = ["", "", ""], [[], [], []]  # type: ignore[var-annotated]
        for chunk in chunks_of(ask(http, BASE, n=3, temperature=2, seed=7, max_tokens=8, stream=True)):
            (choice,) = chunk["choices"]
            said[choice["index"]] += choice["delta"].get("content", "")
            ends[choice["index"]] += [choice["finish_reason"]] if choice["finish_reason"] else []
        assert said == texts
        assert ends == [[each["finish_reason"]] for each in sampled["choices"]]

    def test_tools_are_in_the_prompt_and_calls_in_the_answer(
        self, harness: WorkerHarness, http: httpx2.Client, start: Start, tmp_path: Path
    ) -> None:
        self.register_base_with_tools(harness, tmp_path / WITH_TOOLS)
        start(*forked("worker.trainer.answers.trial"))
        answered = ask(http, WITH_TOOLS, tools=TOOLS, logprobs=True).json()
        (choice,) = answered["choices"]
        (call,) = choice["message"]["tool_calls"]
        said = "".join(each["token"] for each in choice["logprobs"]["content"]).strip()
        assert call["id"].startswith("call_")
        assert (call["type"], call["function"]["name"]) == ("function", "look_up")
        assert json.loads(call["function"]["arguments"]) == {"said": said}
        assert choice["message"]["content"] is None
        renderer = load_renderer(tmp_path / WITH_TOOLS)
        prompt = renderer.encode(renderer.text(SAY, TOOLS, prompt=True))
        assert answered["usage"]["prompt_tokens"] == len(prompt)

        deltas = [each["choices"][0]["delta"] for each in chunks_of(ask(http, WITH_TOOLS, tools=TOOLS, stream=True))]
        (streamed,) = (call for delta in deltas for call in delta.get("tool_calls", ()))
        assert (streamed["index"], streamed["function"]) == (0, call["function"])

        plain = ask(http, WITH_TOOLS, tools=TOOLS, tool_choice="none").json()
        assert plain["usage"]["prompt_tokens"] < len(prompt)
        assert "tool_calls" not in plain["choices"][0]["message"]
        called = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": call["function"]}]}
        self.is_refused(ask(http, WITH_TOOLS, messages=[*SAY, called, *SAY]), "messages")

    def is_refused(self, response: httpx2.Response, param: str) -> None:
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert "template" in error["message"]

    def register_base_with_tools(self, harness: WorkerHarness, directory: Path) -> None:
        make_tiny_base(directory)
        (directory / "chat_template.jinja").write_text(TOOL_TEMPLATE)
        config = json.loads((directory / "tokenizer_config.json").read_text())
        (directory / "tokenizer_config.json").write_text(json.dumps(config | {"response_template": RESPONSE_TEMPLATE}))
        entry, (described, manifest_sha256) = read_catalog_entry(directory), hash_directory(directory)
        with transaction(harness.sessions) as session:
            models.register(session, WITH_TOOLS, directory, described, manifest_sha256, entry)


@pytest.mark.slow  # 5 s of computing, and the base model is loaded twice
def test_a_schema_that_is_too_expensive_is_a_400_and_the_next_question_is_answered(
    http: httpx2.Client, start: Start
) -> None:
    start(*forked("worker.trainer.answers.trial"))
    patterns = [{"type": "string", "pattern": f".*{letter}.*"} for letter in "abcdefghijklmnopqrst"]
    refused = ask(http, response_format=schema_format({"allOf": patterns}))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
    assert ask(http).status_code == 200


class TestOneAtATime:
    def test_one_of_many_requests_is_answered_and_the_others_are_refused_at_once(
        self, http: httpx2.Client, start: Start, waiting: tuple[tuple[str, str], Path], live_server: LiveServer
    ) -> None:
        command, directory = waiting
        start(*command)
        body = {"model": BASE, "messages": SAY}
        with ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(http.post, CHAT, json=body) for _ in range(200)]
            until(lambda: sum(each.done() for each in asked) == 199, "199 refusals", 60)
            assert http.get("/healthz").status_code == 200
            (directory / "go").touch()
            responses = [each.result() for each in asked]
        assert sorted(response.status_code for response in responses) == [200] + [429] * 199
        refused = next(response for response in responses if response.status_code == 429)
        assert refused.headers["retry-after"] == "5"
        assert "deliver" in refused.json()["error"]["message"]
        answered = next(response for response in responses if response.status_code == 200)
        assert answered.json()["choices"][0]["message"]["content"] == "one two"

    def test_a_claimed_job_ends_it_within_two_seconds(
        self, harness: WorkerHarness, http: httpx2.Client, start: Start, waiting: tuple[tuple[str, str], Path]
    ) -> None:
        answers = start(*waiting[0])
        with http.stream("POST", CHAT, json={"model": BASE, "messages": SAY, "stream": True}) as stream:
            lines = stream.iter_lines()
            until(lambda: "one" in next(lines), "the first text")
            process = answers._process
            assert process is not None
            job: Job = harness.create_queued_job()
            began = time.monotonic()
            with answers.suspended():
                assert not process.is_running
                assert time.monotonic() - began < KILL_SECONDS
                rest = [line for line in lines if line]
                assert http.post(CHAT, json={"model": BASE, "messages": SAY}).status_code == 429
        assert "training job" in json.loads(rest[-1].removeprefix("data: "))["error"]["message"]
        plan, lock = TrainerPlan(steps=1), harness.trainer_lock
        assert JobSupervisor(harness.resources, OWNER, lock, plan.command(), None, answers.suspended).run_next()
        assert harness.job(job).state == "succeeded"
        (waiting[1] / "go").touch()
        assert ask(http).status_code == 200

    def test_a_client_that_disconnects_stops_the_generation(
        self, http: httpx2.Client, start: Start, waiting: tuple[tuple[str, str], Path]
    ) -> None:
        start(*waiting[0])
        with http.stream("POST", CHAT, json={"model": BASE, "messages": SAY, "stream": True}) as stream:
            lines = stream.iter_lines()
            until(lambda: "one" in next(lines), "the first text")
        until((waiting[1] / "stopped").exists, "the program learns that nobody waits", 20)

    def test_a_program_that_dies_is_an_error_and_the_next_question_starts_another(
        self, http: httpx2.Client, start: Start, waiting: tuple[tuple[str, str], Path]
    ) -> None:
        answers = start(*waiting[0])
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(http.post, CHAT, json={"model": BASE, "messages": SAY})
            until(lambda: answers._process is not None, "the program")
            process = answers._process
            assert process is not None
            process.kill()
            response = asked.result()
        assert (response.status_code, response.json()["error"]["code"]) == (502, "engine_failed")
        (waiting[1] / "go").touch()
        assert ask(http).status_code == 200

    def test_the_log_of_the_api_names_request_and_question(
        self, http: httpx2.Client, start: Start, waiting: tuple[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines: list[dict[str, Any]] = []

        class Log:
            def info(self, event: str, **fields: Any) -> None:
                lines.append({"event": event, **fields, **structlog.contextvars.get_contextvars()})

        monkeypatch.setattr("app.services.answers.trial.log", Log())
        (waiting[1] / "go").touch()
        start(*waiting[0])
        answered = ask(http)
        expected = {"question": answered.json()["id"], "request_id": answered.headers["x-request-id"]}
        assert lines == [{"event": "trial question", **expected}]
