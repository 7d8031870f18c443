"""Stand-ins of inference engines: the HTTP calls of vLLM 0.32.0 and of SGLang 0.5.23, without a model.

They answer as the handlers of the installed sources do (vLLM `entrypoints/serve/lora`, SGLang
`srt/entrypoints/http_server.py`): statuses, names of fields, what a load of a known name gives. The log-probabilities
are those of a reference, moved by what a test asks for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.domain.deliveries.served_check import ServedReference
from tests.loopback import Answer, Received, serving_loopback

BASE = "base"
BASE_ROOT = "/models/base"
OTHER = 999  # a token that no answer expects


SENT = {"messages", "chat_template_kwargs"}


@dataclass
class EngineStandIn:
    kind: Literal["vllm", "sglang"]
    reference: ServedReference | None = None
    api_key: str | None = None
    max_lora_rank: int = 16
    has_no_effect: bool = False  # it answers as the base model does, as if no name matched
    difference: float = 0.0  # of its log-probabilities under an adapter from the trainer's
    has_prompt_logprobs: bool = True  # else it has those of its own tokens only
    is_chat_only: bool = False
    gate: threading.Event | None = None  # a check waits for it
    fault: tuple[int, dict[str, str], str] | None = None  # (status, headers, body) of every response
    known: dict[str, Path] | None = None  # the adapters that its plugin finds, by their names
    loaded: dict[str, str] = field(default_factory=dict)  # name -> path
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> adapter_config.json at the load
    calls: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def restart(self) -> None:
        self.loaded.clear()

    def respond(self, method: str, path: str, body: dict[str, Any], key: str | None) -> tuple[int, Any]:
        self.calls.append(path)
        if self.gate is not None and path in ("/v1/completions", "/generate"):
            self.gate.wait()
        if self.api_key is not None and key != f"Bearer {self.api_key}":
            return 401, {"error": "Unauthorized"}
        match path:
            case "/v1/models":
                base = {"id": BASE, "root": BASE_ROOT if self.kind == "vllm" else BASE, "parent": None}
                adapters = [{"id": name, "root": root, "parent": BASE} for name, root in self.loaded.items()]
                return 200, {"object": "list", "data": [base, *adapters]}
            case "/v1/load_lora_adapter" | "/load_lora_adapter":
                return self._load(body)
            case "/v1/unload_lora_adapter" | "/unload_lora_adapter":
                return self._unload(body)
            case "/v1/chat/completions" if self.is_chat_only:
                return self._chat(body)
            case "/v1/completions" if not self.is_chat_only:
                return self._completions(body)
            case "/generate" if self.has_prompt_logprobs:
                return self._generate(body)
        return 404, {"detail": "Not Found"}

    def _load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.loaded:
            return 400, self._error(f"The lora adapter '{name}' has already been loaded.")
        if not (path / "adapter_config.json").exists():
            text = f"Loading lora {name} failed: No adapter found for {path}"
            return (404 if self.kind == "vllm" else 400), self._error(text)
        config = json.loads((path / "adapter_config.json").read_text())
        if config["r"] > self.max_lora_rank:
            text = f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_lora_rank}."
            return (500 if self.kind == "vllm" else 400), self._error(text)
        self.loaded[name], self.configs[name] = str(path), config
        if self.kind == "vllm":
            return 200, f"Success: LoRA adapter '{name}' added successfully."
        return 200, {"success": True, "error_message": None, "loaded_adapters": dict(self.loaded)}

    def _unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.loaded.pop(body["lora_name"], None) is None:
            return (404 if self.kind == "vllm" else 400), self._error(
                f"The lora adapter {body['lora_name']} is not loaded"
            )
        if self.kind == "vllm":
            return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        return 200, {"success": True, "error_message": None, "loaded_adapters": dict(self.loaded)}

    def _completions(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] not in (BASE, *self.loaded) and (refusal := self._resolve(body["model"])):
            return refusal
        tokens = body["prompt"]
        if isinstance(tokens, str):
            return 200, {"choices": [{"index": 0, "text": "x"}]}
        if "logprobs" in body:
            return 200, {"choices": [self._greedy(tokens, body)]}
        if not self.has_prompt_logprobs:
            return 200, {"choices": [{"index": 0, "text": "x", "prompt_logprobs": None}]}
        entries: list[Any] = [None]
        for token, (logprob, top) in zip(tokens[1:], self._scores(tokens, body["model"] != BASE)[1:], strict=True):
            expected = {str(token): {"logprob": logprob, "rank": 2 - (top == token)}}
            entries.append({str(top): {"logprob": -0.01, "rank": 1}} | expected)
        return 200, {"choices": [{"index": 0, "text": "x", "prompt_logprobs": entries}]}

    def _chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        """An answer in OpenAI's shape, without token ids."""
        assert self.reference is not None
        given = {name: body[name] for name in SENT if name in body}
        prompt = next(each for each in self.reference.prompts if each.model_dump(include=SENT) == given)
        found = self._greedy(prompt.tokens[: prompt.positions[0]], body)["logprobs"]
        content = [
            {
                "token": token,
                "logprob": logprob,
                "top_logprobs": [{"token": other, "logprob": value} for other, value in top.items()],
            }
            for token, logprob, top in zip(*found.values(), strict=True)
        ]
        return 200, {"choices": [{"index": 0, "message": {"content": "x"}, "logprobs": {"content": content}}]}

    def _resolve(self, name: str) -> tuple[int, Any] | None:
        """Load an adapter that the plugin finds, else return vLLM's refusal."""
        path = (self.known or {}).get(name)
        if path is None:
            text = (
                f"The model `{name}` does not exist." if self.known is None else f"LoRA adapter {name} does not exist"
            )
            return 404, self._error(text)
        status, _ = self._load({"lora_name": name, "lora_path": str(path)})
        text = f"LoRA adapter '{name}' was found but could not be loaded."
        return None if status == 200 else (400, self._error(text))

    def _greedy(self, start: list[int], body: dict[str, Any]) -> dict[str, Any]:
        """An answer in OpenAI's shape, with token ids as both engines add them for `return_token_ids`.

        The base generates an expected token if its log-probability is above -1; after another one, only others.
        """
        assert self.reference is not None
        assert body["temperature"] == 0
        prompt = next(each for each in self.reference.prompts if each.tokens[: each.positions[0]] == start)
        is_adapter = (body["model"] != BASE or body.get("lora_path") is not None) and not self.has_no_effect
        ids, logprobs, tops = [], [], []
        for number, position in enumerate(prompt.positions[: body["max_tokens"]]):
            expected, score = prompt.tokens[position], prompt.base[number]
            likely = expected if score > -1 else OTHER
            if is_adapter:
                likely, score = prompt.top[number], prompt.adapter[number] - self.difference
            if ids != prompt.tokens[prompt.positions[0] : position]:
                expected = likely = OTHER
            ids.append(likely)
            logprobs.append(score if likely == expected else -0.01)
            tops.append({f"<{likely}>": logprobs[-1]} | ({f"<{expected}>": score} if likely != expected else {}))
        found = {"tokens": [f"<{id}>" for id in ids], "token_logprobs": logprobs, "top_logprobs": tops}
        return {"index": 0, "text": "x", "token_ids": ids, "logprobs": found}

    def _generate(self, body: dict[str, Any]) -> tuple[int, Any]:
        tokens, adapter = body["input_ids"], body["lora_path"]
        if adapter is not None and adapter not in self.loaded:
            return 400, self._error(f"The following requested LoRA adapters are not loaded: {adapter}")
        scores = self._scores(tokens, adapter is not None)
        logprobs = [[score, token, None] for token, (score, _) in zip(tokens, scores, strict=True)]
        tops: list[Any] = [[[-0.01, top, None]] for _, top in scores]
        logprobs[0][0], tops[0] = None, None
        return 200, {"text": "x", "meta_info": {"input_token_logprobs": logprobs, "input_top_logprobs": tops}}

    def _scores(self, tokens: list[int], is_adapter: bool) -> list[tuple[float, int]]:
        assert self.reference is not None
        prompt = next(each for each in self.reference.prompts if each.tokens == tokens)
        scores = [(-1.0, token) for token in tokens]
        for position, base, adapter, top in zip(prompt.positions, prompt.base, prompt.adapter, prompt.top, strict=True):
            value = adapter - self.difference if is_adapter and not self.has_no_effect else base
            scores[position] = (value, top)
        return scores

    def _error(self, message: str) -> Any:
        if self.kind == "vllm":
            return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}
        return {"success": False, "error_message": message, "loaded_adapters": None}


@contextmanager
def serving_engine(engine: EngineStandIn) -> Iterator[EngineStandIn]:
    def respond(request: Received) -> Answer:
        if engine.fault is not None:
            status, headers, text = engine.fault
            return status, headers, text.encode()
        body, key = json.loads(request.body or b"{}"), request.headers.get("authorization")
        status, value = engine.respond(request.method, request.path, body, key)
        return status, {}, (value if isinstance(value, str) else json.dumps(value)).encode()

    with serving_loopback(respond, engine.port) as engine.port:
        yield engine
