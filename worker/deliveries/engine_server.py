"""One server of an inference engine over HTTP, and what it computes for the expected answers.

Teacher forcing gives the log-probability of every expected token. An engine, or a gateway in front of one, that has
no log-probabilities of prompts answers the same prompts greedily instead, as token ids through /v1/completions, else
as messages through /v1/chat/completions: what it generates equals the expected answer up to the first divergence, and
its log-probabilities are comparable up to there.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple

import httpx2

from app.domain.answers.engine_answers import engine_message
from app.domain.deliveries.served_check import ReferencePrompt, ServedPrompt, ServedReference
from app.domain.deliveries.targets import EngineDestination
from worker.deliveries.outbound import limited_connections, refused_address
from worker.deliveries.targets import DeliveryError

CONNECT_SECONDS = 5.0
MAX_RESPONSE_BYTES = 64 << 20  # prompt_logprobs of a prompt take some 100 kB
MAX_MESSAGE_CHARACTERS = 600
AWAY = "check that the server runs and that `urls` of the target has its address"
NOT_THE_ENGINE = "check that `urls` of the target has the address of the engine"
SLOW = "lower its load, or raise TUNERY_DELIVERY_TIMEOUT_SECONDS of the delivery sender"
TOP_LOGPROBS = 5  # the most that OpenAI's contract has
NO_ADAPTER = "No adapter found"  # of vLLM's LoRAAdapterNotFoundError, which is a 404 as an unknown path of the API is
NOT_SEEN = (
    "the server does not see the files: mount `shared_path` there, or set `engine_path` of the target to the path that "
    "it has there"
)
NOT_WHILE_IT_RUNS = (
    "it cannot load adapters while it runs: start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
)
OTHER = -1  # a token that no prompt expects
# A server without the call, or one that refuses the field.
NOT_SUPPORTED = frozenset({400, 404, 405, 422, 501})


@dataclass(frozen=True)
class EngineModel:
    """An entry of GET /v1/models. `root` is the path of an adapter, or what a base model was loaded from."""

    id: str
    root: str
    is_adapter: bool


class Server:
    """One server of an engine over HTTP. Every method raises DeliveryError."""

    def __init__(self, url: str, api_key: str | None, timeout_seconds: float) -> None:
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_seconds = timeout_seconds

    def models(self) -> list[EngineModel]:
        response = self.request("GET", "/v1/models")
        try:
            return [
                EngineModel(str(each["id"]), str(each.get("root") or each["id"]), each.get("parent") is not None)
                for each in response["data"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            text = f"{self.url}/v1/models responded with something else than a list of models; {NOT_THE_ENGINE}"
            raise DeliveryError(text) from error

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON of a 2xx response. Redirects are not followed, and the whole response is limited in time."""
        status, content = self._send(method, path, body)
        if 300 <= status < 400:
            raise DeliveryError(f"{self.url}{path} is a redirect, which is not followed: set `urls` to the final URL")
        if status in (401, 403):
            raise DeliveryError(f"{self.url} refuses the API key ({status}); set credentials.api_key of the target")
        if status >= 300:
            raise EngineRefusal(
                f"{self.url}{path} responded with {status}: {engine_message(content)[:MAX_MESSAGE_CHARACTERS]}", status
            )
        try:
            parsed = json.loads(content or b"{}")
        except ValueError:
            parsed = None
        return parsed if isinstance(parsed, dict) else {"text": content.decode(errors="replace")}

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
        timeout = httpx2.Timeout(self._timeout_seconds, connect=CONNECT_SECONDS)
        with limited_connections(self._timeout_seconds) as limit:
            try:
                with (
                    httpx2.Client(timeout=timeout, trust_env=False, headers=self._headers, verify=_tls()) as client,
                    client.stream(method, self.url + path, json=body) as response,
                ):
                    content = b""
                    for chunk in response.iter_bytes():
                        content += chunk
                        if len(content) > MAX_RESPONSE_BYTES:
                            text = f"{self.url}{path} sent more than {MAX_RESPONSE_BYTES >> 20} MiB; {NOT_THE_ENGINE}"
                            raise DeliveryError(text)
                    return response.status_code, content
            except (httpx2.HTTPError, OSError) as error:
                raise DeliveryError(self._reason(path, error, is_late=limit.is_over)) from error

    def _reason(self, path: str, error: Exception, *, is_late: bool) -> str:
        if is_late or isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout):
            return f"{self.url}{path} sent no complete response in {self._timeout_seconds:g} s; {SLOW}"
        if refusal := refused_address(error):
            return f"{self.url} is not reachable: {refusal}"
        return f"{self.url} is not reachable: {error or type(error).__name__}; {AWAY}"


class EngineRefusal(DeliveryError):
    """The engine responded with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@cache
def _tls() -> ssl.SSLContext:
    """One for all requests: it reads the certificates of all authorities, which takes 10 ms."""
    return httpx2.create_ssl_context(trust_env=False)


def base_model(destination: EngineDestination, server: Server) -> EngineModel:
    """The base model of a server: the named one, else its first."""
    bases = [each for each in server.models() if not each.is_adapter]
    for each in bases:
        if destination.base_model in (None, each.id):
            return each
    names = ", ".join(each.id for each in bases) or "none"
    wanted = "" if destination.base_model is None else f" {destination.base_model!r}"
    raise DeliveryError(f"{server.url} serves no base model{wanted}; it serves: {names}")


def adapters(server: Server) -> dict[str, str]:
    """{name: path} of the adapters that a server has loaded."""
    return {each.id: each.root for each in server.models() if each.is_adapter}


class Vllm:
    name = "vLLM"

    def load(self, server: Server, name: str, path: str) -> None:
        try:
            server.request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except EngineRefusal as error:
            if NO_ADAPTER in str(error):
                raise DeliveryError(f"{error}; {NOT_SEEN}") from error
            if error.status == 404:
                raise DeliveryError(f"{error}; {NOT_WHILE_IT_RUNS}") from error
            raise

    def unload(self, server: Server, name: str) -> None:
        server.request("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def prompt_logprobs(self, server: Server, base: str, adapter: str | None, prompt: Sequence[int]) -> list[Any]:
        """For each token (log-probability, most likely token); None for the first token.

        Raises AttributeError, LookupError, TypeError or ValueError for a response without them. One prompt at a time:
        vLLM 0.32.0 for CPUs, with LoRA enabled, ends with an error in `bgmv_shrink` if the log-probabilities of a
        prompt are computed in a batch with another request.
        """
        body = {"model": adapter or base, "prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        (choice,) = server.request("POST", "/v1/completions", body)["choices"]
        return [_of_vllm(entry, token) for entry, token in zip(choice["prompt_logprobs"], prompt, strict=True)]

    def completion_model(self, _base: str, adapter: str) -> dict[str, str]:
        """The fields of /v1/completions that name an adapter."""
        return {"model": adapter}


class Sglang:
    name = "SGLang"

    def load(self, server: Server, name: str, path: str) -> None:
        server.request("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": path})

    def unload(self, server: Server, name: str) -> None:
        server.request("POST", "/unload_lora_adapter", {"lora_name": name})

    def prompt_logprobs(self, server: Server, _base: str, adapter: str | None, prompt: Sequence[int]) -> list[Any]:
        """As `Vllm.prompt_logprobs`, by the native call: /v1/completions returns no log-probabilities of the prompt."""
        body = {
            "input_ids": prompt,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": 1,
            "lora_path": adapter,
        }
        return _of_sglang(server.request("POST", "/generate", body)["meta_info"])

    def completion_model(self, base: str, adapter: str) -> dict[str, str]:
        return {"model": base, "lora_path": adapter}


Engine = Vllm | Sglang


class _EngineAnswer(NamedTuple):
    """A greedy answer; `tokens` are the engine's texts of its tokens, `tops` {text: log-probability} by position."""

    words: Sequence[object]  # what is compared: the ids of the tokens, or their texts in a chat
    tokens: list[str]
    logprobs: list[float]
    tops: list[dict[str, float]]


def served_prompts(
    engine: Engine, server: Server, base: str, adapter: str, reference: ServedReference
) -> list[ServedPrompt]:
    """The log-probabilities of the expected tokens under base model and adapter. Raises DeliveryError."""
    problems = []
    for method in (by_teacher_forcing, by_answers, by_chat):
        if method is by_chat and not any(prompt.messages for prompt in reference.prompts):
            break
        try:
            return [method(engine, server, base, adapter, prompt) for prompt in reference.prompts]
        except EngineRefusal as error:
            if error.status not in NOT_SUPPORTED:
                raise
            problems.append(str(error))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # the response lacks what the method needs
            problems.append(repr(error))
    raise DeliveryError(
        f"{server.url} returns no log-probabilities, neither of the prompt, nor of its own tokens with their ids "
        f"(return_token_ids), nor of a chat, so it cannot be checked: let `urls` lead to the engine itself "
        f"({'; '.join(problems)})"
    )


def by_teacher_forcing(
    engine: Engine, server: Server, base: str, adapter: str, prompt: ReferencePrompt
) -> ServedPrompt:
    of_base = engine.prompt_logprobs(server, base, None, prompt.tokens)
    of_adapter = engine.prompt_logprobs(server, base, adapter, prompt.tokens)
    return ServedPrompt(
        [of_base[position][0] for position in prompt.positions],
        [of_adapter[position][0] for position in prompt.positions],
        [of_adapter[position][1] for position in prompt.positions],
    )


def by_answers(engine: Engine, server: Server, base: str, adapter: str, prompt: ReferencePrompt) -> ServedPrompt:
    """The first answer of the conversation, up to where the engine's differs from the expected one."""
    start = prompt.positions[0]
    expected = [
        prompt.tokens[position]
        for number, position in takewhile(lambda each: each[1] == start + each[0], enumerate(prompt.positions))
    ]
    fields = {"prompt": prompt.tokens[:start], "max_tokens": len(expected)}
    of_base = _answer(server, {"model": base} | fields)
    of_adapter = _answer(server, engine.completion_model(base, adapter) | fields)
    agreeing = _common_length(of_adapter.words, expected)
    return _generated(of_base, of_adapter, agreeing, of_adapter.words[: agreeing + 1])


def by_chat(engine: Engine, server: Server, base: str, adapter: str, prompt: ReferencePrompt) -> ServedPrompt:
    """As `by_answers`, for messages; tokens are compared by their texts. Nothing where the messages are not known."""
    if not prompt.messages:
        return ServedPrompt([], [], [], is_generated=True, is_answer_of_base=True, is_chat=True)
    fields = {"messages": prompt.messages, "max_tokens": len(prompt.answer)}
    fields |= prompt.model_dump(include={"chat_template_kwargs"})
    of_base = _chat_answer(server, {"model": base} | fields)
    of_adapter = _chat_answer(server, engine.completion_model(base, adapter) | fields)
    agreeing = _common_length(of_adapter.tokens, prompt.answer)
    expected = [prompt.tokens[position] for position in prompt.positions]
    top = expected[:agreeing]
    # The id of the token that differs is not known. It is one that the trainer did not find most likely either, if that
    # was the expected one.
    if agreeing < min(len(of_adapter.tokens), len(prompt.answer)) and prompt.top[agreeing] == expected[agreeing]:
        top.append(OTHER)
    return _generated(of_base, of_adapter, agreeing, top)._replace(is_chat=True)


def _generated(of_base: _EngineAnswer, of_adapter: _EngineAnswer, agreeing: int, top: Sequence[Any]) -> ServedPrompt:
    """Of generated answers, of which the adapter's agrees with the expected one in `agreeing` tokens.

    At the first position at which base model and adapter differ, the base's value is among its most likely ones, or
    below the last of them.
    """
    common = _common_length(of_base.words, of_adapter.words)
    pairs = zip(of_base.tops[: min(common + 1, agreeing)], of_adapter.tokens, strict=False)
    effects = zip(of_base.logprobs[:common], of_adapter.logprobs, strict=False)
    return ServedPrompt(
        [tops.get(token, min(tops.values())) for tops, token in pairs],
        of_adapter.logprobs[:agreeing],
        top,
        is_generated=True,
        is_answer_of_base=of_base.words == of_adapter.words,
        generated_effects=[abs(base - adapter) for base, adapter in effects],
    )


def _chat_answer(server: Server, fields: dict[str, Any]) -> _EngineAnswer:
    options = {"temperature": 0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    (choice,) = server.request("POST", "/v1/chat/completions", fields | options)["choices"]
    found = choice["logprobs"]["content"]
    tops = [{top["token"]: top["logprob"] for top in each["top_logprobs"]} for each in found]
    tokens = [each["token"] for each in found]
    return _EngineAnswer(tokens, tokens, [each["logprob"] for each in found], tops)


def _answer(server: Server, fields: dict[str, Any]) -> _EngineAnswer:
    options = {"temperature": 0, "logprobs": TOP_LOGPROBS, "return_token_ids": True, "ignore_eos": True}
    (choice,) = server.request("POST", "/v1/completions", fields | options)["choices"]
    found = choice["logprobs"]
    answer = _EngineAnswer(choice["token_ids"], found["tokens"], found["token_logprobs"], found["top_logprobs"])
    if not len(answer.words) == len(answer.tokens) == len(answer.logprobs) == len(answer.tops):
        raise ValueError("token_ids and logprobs have different lengths")
    return answer


def _common_length(left: Sequence[object], right: Sequence[object]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _of_vllm(entry: Mapping[str, Any] | None, token: int) -> tuple[float, int] | None:
    """An entry has the token of the prompt, and the most likely one with rank 1; a tie has two of them."""
    if entry is None:
        return None
    top = [int(id) for id, found in entry.items() if found["rank"] == 1]
    return float(entry[str(token)]["logprob"]), top[0]


def _of_sglang(meta_info: Mapping[str, Any]) -> list[tuple[float, int] | None]:
    """`input_token_logprobs` has (log-probability, token, text); the most likely tokens are beside it."""
    pairs = zip(meta_info["input_token_logprobs"], meta_info["input_top_logprobs"], strict=True)
    return [None if not tops else (float(each[0]), int(tops[0][1])) for each, tops in pairs]
