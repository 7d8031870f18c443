"""Targets of kind `vllm` and `sglang`: running servers that load an adapter from a shared directory.

Each server loads the adapter under its `ft:` name and is checked. Only then a fixed `served_model`, if there is one, is
replaced in place, so a wrong adapter never takes the place of a right one.

Sources: vLLM 0.32.0 `entrypoints/serve/lora`, `entrypoints/openai/models`; SGLang 0.5.23
`srt/entrypoints/http_server.py`, `srt/managers/io_struct.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain.deliveries.served_check import FAILING, ServedCheck, explain, judge, unchecked
from app.domain.deliveries.targets import EngineDestination
from worker.deliveries import directory
from worker.deliveries.destination import Delivered, DeliveryError, DeliveryRefused, Parcel
from worker.deliveries.directory import Placed
from worker.deliveries.engine_server import EngineModel, EngineRefusal, Server
from worker.deliveries.served_prompts import served_prompts


class Vllm:
    name = "vLLM"

    def load(self, server: Server, name: str, path: str, *, replace: bool) -> None:
        body = {"lora_name": name, "lora_path": path} | ({"load_inplace": True} if replace else {})
        try:
            server.request("POST", "/v1/load_lora_adapter", body)
        except EngineRefusal as error:
            if error.status != 404:
                raise
            text = "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            raise DeliveryError(f"{server.url} cannot load adapters while it runs (404); {text}") from error

    def unload(self, server: Server, name: str) -> None:
        server.request("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def ask(self, server: Server, base: str, adapter: str | None, prompt: Sequence[int]) -> list[Any]:
        """For each token (log-probability, most likely token); None for the first token.

        Raises KeyError, TypeError or ValueError for a response without them. One prompt at a time: vLLM 0.32.0 for
        CPUs, with LoRA enabled, ends with an error in `bgmv_shrink` if the log-probabilities of a prompt are computed
        in a batch with another request.
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

    def ask(self, server: Server, _base: str, adapter: str | None, prompt: Sequence[int]) -> list[Any]:
        """As `Vllm.ask`, by the native call: /v1/completions returns no log-probabilities of the prompt."""
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

NO_RECORD_OF_CHECKPOINT = (
    "the trainer records log-probabilities of a job's result only, and this is an earlier checkpoint; compare some of "
    "its answers yourself"
)
NO_RECORD_OF_RESULT = (
    "the trainer recorded no log-probabilities in this job, as those of earlier releases and of quantized experts; "
    "compare some of its answers yourself"
)


@dataclass(frozen=True)
class EngineTarget:
    destination: EngineDestination
    engine: Engine
    api_key: str | None
    allowed: Sequence[str]
    timeout_seconds: float
    can_forget = True

    def deliver(self, parcel: Parcel, adapter: Path) -> Delivered:
        self._refuse_incompatible(parcel)
        base = _base_model(self.destination, self._servers()[0])
        root = directory.allowed_path(self.destination.shared_path, self.allowed)
        placed = directory.place(root, parcel, adapter, self.destination.base_name or base.root)
        checks: list[ServedCheck] = []
        self._on_every_server(lambda server: checks.append(self._serve(server, parcel, self._path(placed))))
        directory.link(root, parcel.served_model, placed)
        worst = max(checks, key=lambda check: check.difference)
        return Delivered({"path": self._path(placed), "version": placed.version}, worst)

    def has(self, parcel: Parcel) -> bool:
        path, found = parcel.location.get("path"), []
        self._on_every_server(
            lambda server: found.append(
                any((each.id, each.root) == (parcel.served_model, path) for each in server.models())
            )
        )
        return all(found)

    def withdraw(self, parcel: Parcel) -> None:
        self._on_every_server(lambda server: self._forget(server, parcel))
        directory.remove(directory.allowed_path(self.destination.shared_path, self.allowed), parcel)

    def _serve(self, server: Server, parcel: Parcel, path: str) -> ServedCheck:
        """Load the adapter, check it, and give it its served name. Raises DeliveryError, DeliveryRefused."""
        base, loaded = _base_model(self.destination, server), _adapters(server)
        if (current := loaded.get(parcel.served_model)) and not self._is_ours(current):
            raise DeliveryError(
                f"{server.url} serves {parcel.served_model} from {current}, which this target did not deliver; unload "
                "it there, or choose another served_model"
            )
        if loaded.get(parcel.model) != path:
            self.engine.load(server, parcel.model, path, replace=parcel.model in loaded)
        check = self._check(server, base.id, parcel)
        if parcel.served_model != parcel.model:
            self.engine.load(server, parcel.served_model, path, replace=current is not None)
            self.engine.unload(server, parcel.model)
        return check

    def _check(self, server: Server, base: str, parcel: Parcel) -> ServedCheck:
        """Compare what the server computes with what the trainer recorded. Raises DeliveryRefused for a bad verdict."""
        if parcel.reference is None:
            return unchecked(NO_RECORD_OF_RESULT if parcel.is_result else NO_RECORD_OF_CHECKPOINT)
        check = judge(parcel.reference, served_prompts(self.engine, server, base, parcel.model, parcel.reference))
        if check.verdict in FAILING:
            self.engine.unload(server, parcel.model)
            text = explain(check, f"{self.engine.name} at {server.url}", parcel.model)
            raise DeliveryRefused(f"{text}. It was unloaded again", check)
        return check

    def _forget(self, server: Server, parcel: Parcel) -> None:
        for name, path in _adapters(server).items():
            is_delivered = path == parcel.location.get("path", path)
            # An attempt that ended in its check has loaded another version, which is under the `ft:` name.
            is_loaded = name == parcel.model and self._is_ours(path)
            if name in (parcel.model, parcel.served_model) and (is_delivered or is_loaded):
                self.engine.unload(server, name)

    def _refuse_incompatible(self, parcel: Parcel) -> None:
        """Raises DeliveryRefused for an adapter that the engine refuses or scales wrongly."""
        entry = parcel.manifest.get("compatibility", {}).get(self.destination.kind)  # type: ignore[attr-defined]
        if entry is not None and not entry["ok"]:
            reasons = "; ".join(entry["reasons"])
            instead = f"{entry['instead']['path']} {json.dumps(entry['instead']['body'])}"
            raise DeliveryRefused(
                f"{self.engine.name} does not serve this adapter: {reasons}. Make a merged model: POST {instead}"
            )

    def _path(self, placed: Placed) -> str:
        return f"{self.destination.engine_path or self.destination.shared_path}/{placed.relative_path}"

    def _is_ours(self, path: str) -> bool:
        return path.startswith(f"{self.destination.engine_path or self.destination.shared_path}/{directory.VERSIONS}/")

    def _servers(self) -> list[Server]:
        return [Server(url, self.api_key, self.timeout_seconds) for url in self.destination.urls]

    def _on_every_server(self, work: Callable[[Server], None]) -> None:
        """Do the work on each server, also after one has failed. Raises one error with all problems."""
        problems: list[DeliveryError] = []
        for server in self._servers():
            try:
                work(server)
            except DeliveryError as error:
                problems.append(error)
        refusals = [problem for problem in problems if isinstance(problem, DeliveryRefused)]
        text = "; ".join(map(str, problems))
        if len(self.destination.urls) > 1:
            text = f"{len(problems)} of {len(self.destination.urls)} servers: {text}"
        if refusals:
            raise DeliveryRefused(text, refusals[0].check)
        if problems:
            raise DeliveryError(text)


def _of_vllm(entry: Mapping[str, Any] | None, token: int) -> tuple[float, int] | None:
    """An entry has the token of the prompt, and the most likely one with rank 1."""
    if entry is None:
        return None
    top = next(int(id) for id, found in entry.items() if found["rank"] == 1)
    return float(entry[str(token)]["logprob"]), top


def _of_sglang(meta_info: Mapping[str, Any]) -> list[tuple[float, int] | None]:
    """`input_token_logprobs` has (log-probability, token, text); the most likely tokens are beside it."""
    pairs = zip(meta_info["input_token_logprobs"], meta_info["input_top_logprobs"], strict=True)
    return [None if not tops else (float(each[0]), int(tops[0][1])) for each, tops in pairs]


def _base_model(destination: EngineDestination, server: Server) -> EngineModel:
    """The base model of a server: the named one, else its first."""
    bases = [each for each in server.models() if not each.is_adapter]
    for each in bases:
        if destination.base_model in (None, each.id):
            return each
    names = ", ".join(each.id for each in bases) or "none"
    raise DeliveryError(f"{server.url} serves no base model {destination.base_model!r}; it serves: {names}")


def _adapters(server: Server) -> dict[str, str]:
    """{name: path} of the adapters that a server has loaded."""
    return {each.id: each.root for each in server.models() if each.is_adapter}
