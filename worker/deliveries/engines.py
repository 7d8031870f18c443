"""Targets of kind `vllm` and `sglang`: running servers that load an adapter.

Each server loads the adapter under its `ft:` name and is checked. Only then a fixed `served_model`, if there is one, is
replaced in place, so a wrong adapter never takes the place of a right one.

Sources: vLLM 0.32.0 `entrypoints/serve/lora`, `entrypoints/openai/models`; SGLang 0.5.23
`srt/entrypoints/http_server.py`, `srt/managers/io_struct.py`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from app.domain.deliveries.served_check import FAILING, ServedCheck, Verdict, explain, judge, unchecked
from app.domain.deliveries.targets import EngineDestination
from worker.deliveries.destination import AdapterDelivery, Delivered, DeliveryError, DeliveryRefused
from worker.deliveries.engine_server import EngineModel, EngineRefusal, Server
from worker.deliveries.served_prompts import served_prompts

NO_ADAPTER = "No adapter found"  # of vLLM's LoRAAdapterNotFoundError, which is a 404 as an unknown path of the API is
NOT_SEEN = (
    "the server does not see the files: mount `shared_path` there, or set `engine_path` of the target to the path that "
    "it has there"
)
NOT_WHILE_IT_RUNS = (
    "it cannot load adapters while it runs: start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
)


class Vllm:
    name = "vLLM"

    def load(self, server: Server, name: str, path: str, *, replace: bool) -> None:
        body = {"lora_name": name, "lora_path": path} | ({"load_inplace": True} if replace else {})
        try:
            server.request("POST", "/v1/load_lora_adapter", body)
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

    def load(self, server: Server, name: str, path: str, *, replace: bool) -> None:
        if replace:  # it has no replacement in place
            self.unload(server, name)
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
Result = TypeVar("Result")

NO_RECORD_OF_CHECKPOINT = (
    "the trainer records log-probabilities of a job's result only, and this is an earlier checkpoint; compare some of "
    "its answers yourself"
)
NO_RECORD_OF_RESULT = (
    "the trainer recorded no log-probabilities in this job, as those of earlier releases and of quantized experts; "
    "compare some of its answers yourself"
)


@dataclass(frozen=True)
class EngineTarget(ABC):
    """Servers of one engine. How they get the files is the subclass's."""

    destination: EngineDestination
    engine: Engine
    api_key: str | None
    timeout_seconds: float
    can_forget = True

    @abstractmethod
    def deliver(self, delivery: AdapterDelivery, adapter: Path) -> Delivered: ...

    @abstractmethod
    def withdraw(self, delivery: AdapterDelivery) -> None: ...

    @abstractmethod
    def delivered_path(self, server: Server, delivery: AdapterDelivery) -> str:
        """The path from which the server has loaded the adapter; empty if it was not delivered there."""

    @abstractmethod
    def is_ours(self, loaded: str, path: str, delivery: AdapterDelivery) -> bool:
        """Whether this target has delivered what a server loaded from `loaded`, as it now delivers `path`."""

    def has(self, delivery: AdapterDelivery) -> bool:
        """False if a server lacks it, also while another one is unreachable."""
        found: list[bool] = []

        def look(server: Server) -> None:
            found.append(adapters(server).get(delivery.served_model) == self.delivered_path(server, delivery))

        try:
            self.on_every_server(look)
        except DeliveryError:
            if all(found):
                raise
        return all(found)

    def serve(self, server: Server, delivery: AdapterDelivery, path: str) -> ServedCheck:
        """Load the adapter, check it, and give it its served name. Raises DeliveryError, DeliveryRefused."""
        base, loaded = base_model(self.destination, server), adapters(server)
        if (current := loaded.get(delivery.served_model)) and not self.is_ours(current, path, delivery):
            raise DeliveryError(
                f"{server.url} serves {delivery.served_model} from {current}, which this target did not deliver, "
                "perhaps another Tunery server did; unload it there, or choose another served_model"
            )
        before = loaded.get(delivery.model)
        was_served = before == path == self.delivered_path(server, delivery)
        if before != path:
            self._load(server, delivery, delivery.model, path, replace=before is not None)
        try:
            check = self._check(server, base.id, delivery)
            if delivery.served_model != delivery.model:
                self._load(server, delivery, delivery.served_model, path, replace=current is not None)
                self._give_back(server, delivery, before, path)
        except DeliveryRefused:
            self._give_back(server, delivery, before, path)
            raise
        except DeliveryError:
            if not was_served:  # what was checked before stays: the server may be slow for a moment
                with suppress(DeliveryError):  # it has become unreachable, or has unloaded it
                    self._give_back(server, delivery, before, path)
            raise
        return check

    def _give_back(self, server: Server, delivery: AdapterDelivery, before: str | None, path: str) -> None:
        """Unload the `ft:` name, or load what another target serves under it."""
        if delivery.served_model != delivery.model and before not in (None, path):
            self.engine.load(server, delivery.model, str(before), replace=True)
        else:
            self.engine.unload(server, delivery.model)

    def _load(self, server: Server, delivery: AdapterDelivery, name: str, path: str, *, replace: bool) -> None:
        try:
            self.engine.load(server, name, path, replace=replace)
        except EngineRefusal as error:
            flags = self.needed_flags(delivery)
            if "rank" not in str(error) or not flags:
                raise
            raise DeliveryError(f"{error}; start {self.engine.name} with {' '.join(flags)}") from error

    def needed_flags(self, delivery: AdapterDelivery) -> list[str]:
        return list(self._compatibility(delivery).get("flags", []))

    def _check(self, server: Server, base: str, delivery: AdapterDelivery) -> ServedCheck:
        """Compare what the server computes with what the trainer recorded. Raises DeliveryRefused for a bad verdict."""
        if delivery.reference is None:
            return unchecked(NO_RECORD_OF_RESULT if delivery.is_result else NO_RECORD_OF_CHECKPOINT)
        check = judge(delivery.reference, served_prompts(self.engine, server, base, delivery.model, delivery.reference))
        if check.verdict in FAILING:
            text = explain(check, f"{self.engine.name} at {server.url}", delivery.model, delivery.job_id)
            raise DeliveryRefused(f"{text}. It was unloaded again", check)
        return check

    def refuse_incompatible(self, delivery: AdapterDelivery) -> None:
        """Raises DeliveryRefused for an adapter that the engine refuses or scales wrongly."""
        entry = self._compatibility(delivery)
        if not entry.get("ok", True):
            reasons = "; ".join(entry["reasons"])
            remedy = "Merge it with PEFT: merge_and_unload()"
            if instead := entry["instead"]:
                remedy = f"Make a merged model: POST {instead['path']} {json.dumps(instead['body'])}"
            raise DeliveryRefused(f"{self.engine.name} does not serve this adapter: {reasons}. {remedy}")

    def _compatibility(self, delivery: AdapterDelivery) -> Mapping[str, Any]:
        """The engine's entry of the manifest; empty if it has none."""
        return dict(delivery.manifest.get("compatibility", {}).get(self.engine.name.lower(), {}))

    def _servers(self) -> list[Server]:
        return [Server(url, self.api_key, self.timeout_seconds) for url in self.destination.urls]

    def first_base(self) -> EngineModel:
        """The base model of the first server that names one. Raises DeliveryError with the problems of all."""
        problems: list[DeliveryError] = []
        for server in self._servers():
            try:
                return base_model(self.destination, server)
            except DeliveryError as error:
                problems.append(error)
        raise self._combined(problems)

    def on_every_server(self, work: Callable[[Server], Result]) -> list[Result]:
        """The results of the work on each server, which goes on after one has failed.

        Raises one error with all problems.
        """
        problems: list[DeliveryError] = []
        results: list[Result] = []
        for server in self._servers():
            try:
                results.append(work(server))
            except DeliveryError as error:
                problems.append(error)
        if problems:
            raise self._combined(problems)
        return results

    def _combined(self, problems: Sequence[DeliveryError]) -> DeliveryError:
        text = "; ".join(map(str, problems))
        if len(self.destination.urls) > 1:
            text = f"{len(problems)} of {len(self.destination.urls)} servers: {text}"
        refusals = [problem for problem in problems if isinstance(problem, DeliveryRefused)]
        return DeliveryRefused(text, refusals[0].check) if refusals else DeliveryError(text)


def worst(checks: Sequence[ServedCheck]) -> ServedCheck:
    """The check of the server that differs most, among those that are not `same` if there are such."""
    return max(checks, key=lambda check: (check.verdict != Verdict.SAME, check.difference))


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
