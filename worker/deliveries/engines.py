"""Targets of kind `vllm` and `sglang`: running servers that load an adapter, or whose plugin `tunery-vllm` fetches
it.

Each server loads the adapter under its `ft:` name and is checked. Only then a fixed `served_model`, if there is one,
is unloaded and loaded at once, and checked again, so a wrong adapter never takes the place of a right one.

Sources: vLLM 0.32.0 `entrypoints/serve/lora`, `entrypoints/openai/models`; SGLang 0.5.23
`srt/entrypoints/http_server.py`, `srt/managers/io_struct.py`.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from app.db.tables import Delivery
from app.domain.deliveries.served_check import FAILING, ServedCheck, ServedReference, Verdict, explain, judge, unchecked
from app.domain.deliveries.targets import DeliveryState, EngineDestination
from worker.deliveries.engine_server import (
    Engine,
    EngineModel,
    EngineRefusal,
    Server,
    adapters,
    base_model,
    served_prompts,
)
from worker.deliveries.targets import (
    VERSIONS,
    Delivered,
    DeliveryError,
    DeliveryRefused,
    allowed_path,
    link,
    place,
    remove,
    versions_of,
)

WITHOUT_PLUGIN = (
    "install the plugin tunery-vllm there, with TUNERY_BASE_URL of this server and a TUNERY_API_KEY of the adapter's "
    "project, or give the target a shared_path; the log of vLLM says why it was not found"
)
Result = TypeVar("Result")
NO_RECORD_OF_CHECKPOINT = (
    "the trainer records log-probabilities of a job's result only, and this is an earlier checkpoint; compare some of "
    "its answers yourself"
)
NO_RECORD_OF_RESULT = (
    "the trainer recorded no log-probabilities in this job, as those of earlier releases and of quantized experts; "
    "compare some of its answers yourself"
)


class Served(NamedTuple):
    """What a server was found to serve, and for how long its served name had no adapter while it was replaced."""

    check: ServedCheck
    gap_seconds: float


@dataclass(frozen=True)
class EngineTarget(ABC):
    """Servers of one engine. How they get the files is the subclass's."""

    destination: EngineDestination
    engine: Engine
    api_key: str | None
    timeout_seconds: float

    @abstractmethod
    def delivered_path(self, url: str, delivery: Delivery) -> str:
        """The path from which the server has loaded the adapter; empty if it was not delivered there."""

    @abstractmethod
    def is_ours(self, loaded: str, path: str, delivery: Delivery) -> bool:
        """Whether this target has delivered what a server loaded from `loaded`, as it now delivers `path`."""

    def has(self, delivery: Delivery) -> bool:
        """False if a server lacks it, also while another one is unreachable."""
        found: list[bool] = []

        def look(server: Server) -> None:
            found.append(adapters(server).get(delivery.served_model) == self.delivered_path(server.url, delivery))

        try:
            self.on_every_server(look)
        except DeliveryError:
            if all(found):
                raise
        return all(found)

    def serve(self, server: Server, delivery: Delivery, path: str) -> Served:
        """Load and check the adapter under its `ft:` name, then under its served name. Raises DeliveryError.

        After an error each name has the adapter that it had before, also one that a killed attempt has unloaded.
        """
        base, loaded = base_model(self.destination, server), adapters(server)
        if (current := loaded.get(delivery.served_model)) and not self.is_ours(current, path, delivery):
            raise DeliveryError(
                f"{server.url} serves {delivery.served_model} from {current}, which this target did not deliver, "
                "perhaps another Tunery server did; unload it there, or choose another served_model"
            )
        was_served = current == path == self.delivered_path(server.url, delivery)
        originals: dict[str, str | None] = {delivery.model: None}
        if is_fixed := delivery.served_model != delivery.model:
            known = [self.delivered_path(server.url, each) for each in delivery.same_name if _has_had(delivery, each)]
            previous = (known or [""])[-1] or None if current in (None, path) else current
            if current is None and previous is not None:
                with suppress(DeliveryError):  # it must not keep the new one from being delivered
                    self._set(server, delivery, delivery.served_model, previous)
            before = loaded.get(delivery.model)  # perhaps of another target
            originals = {delivery.served_model: previous, delivery.model: None if before == path else before}
        try:
            for name in reversed(originals):
                gap_seconds = self._set(server, delivery, name, path)
                check = self._check(server, base.id, name, delivery)
        except DeliveryError as error:
            is_refused = isinstance(error, DeliveryRefused)
            if was_served and not is_refused:  # what was checked before stays: the server may be slow for a moment
                del originals[delivery.served_model]
            with nullcontext() if is_refused else suppress(DeliveryError):  # it has become unreachable
                for name, original in originals.items():
                    self._set(server, delivery, name, original)
            raise
        if is_fixed:
            self._set(server, delivery, delivery.model, originals[delivery.model])
        return Served(check, gap_seconds)

    def _set(self, server: Server, delivery: Delivery, name: str, path: str | None) -> float:
        """Have the server load `path` under a name, or unload the name; return for how long a used name was unloaded.

        vLLM's `load_inplace` leaves no gap, but then reads the adapter from disk again at each step that uses it.
        """
        current = adapters(server).get(name)
        if current == path:
            return 0.0
        started_at = time.monotonic()
        if current is not None:
            self.engine.unload(server, name)
        if path is None:
            return 0.0
        try:
            self.engine.load(server, name, path)
        except EngineRefusal as error:
            flags = self.needed_flags(delivery)
            if "rank" not in str(error) or not flags:
                raise
            raise DeliveryError(f"{error}; start {self.engine.name} with {' '.join(flags)}") from error
        return time.monotonic() - started_at if current is not None else 0.0

    def needed_flags(self, delivery: Delivery) -> list[str]:
        return list(self._compatibility(delivery).get("flags", []))

    def _check(self, server: Server, base: str, name: str, delivery: Delivery) -> ServedCheck:
        """Compare what the server computes with what the trainer recorded. Raises DeliveryRefused for a bad verdict."""
        if delivery.served_reference is None:
            is_result = delivery.model == delivery.job.fine_tuned_model
            return unchecked(NO_RECORD_OF_RESULT if is_result else NO_RECORD_OF_CHECKPOINT)
        reference = ServedReference.model_validate(delivery.served_reference.reference)
        check = judge(reference, served_prompts(self.engine, server, base, name, reference))
        if check.verdict in FAILING:
            text = explain(check, f"{self.engine.name} at {server.url}", name, delivery.job_id)
            raise DeliveryRefused(f"{text}. It was unloaded again", check)
        return check

    def refuse_incompatible(self, delivery: Delivery) -> None:
        """Raises DeliveryRefused for an adapter that the engine refuses or scales wrongly."""
        entry = self._compatibility(delivery)
        if not entry.get("ok", True):
            reasons = "; ".join(entry["reasons"])
            remedy = "Merge it with PEFT: merge_and_unload()"
            if instead := entry["instead"]:
                remedy = f"Make a merged model: POST {instead['path']} {json.dumps(instead['body'])}"
            raise DeliveryRefused(f"{self.engine.name} does not serve this adapter: {reasons}. {remedy}")

    def _compatibility(self, delivery: Delivery) -> Mapping[str, Any]:
        """The engine's entry of the manifest; empty if it has none."""
        return dict(delivery.checkpoint.manifest.get("compatibility", {}).get(self.engine.name.lower(), {}))

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


def delivered(location: dict[str, Any], served: Sequence[Served]) -> Delivered:
    """With the check of the server that differs most, among those that are not `same` if there are such."""
    worst = max((each.check for each in served), key=lambda check: (check.verdict != Verdict.SAME, check.difference))
    return Delivered(location, worst, max(each.gap_seconds for each in served))


def _has_had(delivery: Delivery, other: Delivery) -> bool:
    """Whether the target of a delivery has had `other` under its name until now."""
    is_delivered = other.state == DeliveryState.DELIVERED and other.id != delivery.id
    return is_delivered and other.target_id == delivery.target_id


def _paths(delivery: Delivery) -> set[str]:
    location = delivery.location or {}
    return {*location.get("paths", {}).values(), location.get("path", "")}


@dataclass(frozen=True)
class PluginTarget(EngineTarget):
    def deliver(self, delivery: Delivery, adapter: Path) -> Delivered:  # noqa: ARG002  (each server has its own copy)
        self.refuse_incompatible(delivery)
        paths: dict[str, str] = dict((delivery.location or {}).get("paths", {}))

        def serve(server: Server) -> Served:
            paths[server.url] = self._fetched(server, delivery)
            return self.serve(server, delivery, paths[server.url])

        try:
            served = self.on_every_server(serve)
        except DeliveryError as error:
            error.location = {"paths": paths}  # those of the servers before, or beside, the one that failed
            raise
        return delivered({"paths": paths}, served)

    def withdraw(self, delivery: Delivery) -> None:
        self.on_every_server(lambda server: self._forget(server, delivery))

    def delivered_path(self, url: str, delivery: Delivery) -> str:
        return str((delivery.location or {}).get("paths", {}).get(url, ""))

    def is_ours(self, loaded: str, path: str, delivery: Delivery) -> bool:
        """The plugin's cache has a directory of each adapter, of all targets; an attempt may not be recorded."""
        is_cached = PurePosixPath(loaded).parent == PurePosixPath(path).parent
        paths = [(each.target_id, _paths(each)) for each in delivery.same_name]
        own, others = (
            {path for target_id, found in paths if (target_id == delivery.target_id) is is_own for path in found}
            for is_own in (True, False)
        )
        return loaded == path or (is_cached and loaded not in others - own)

    def _forget(self, server: Server, delivery: Delivery) -> None:
        for name, path in adapters(server).items():
            is_served = name == delivery.served_model and path == self.delivered_path(server.url, delivery)
            if name == delivery.model or is_served:
                self.engine.unload(server, name)

    def _fetched(self, server: Server, delivery: Delivery) -> str:
        """The path in the server's cache from which it has loaded the adapter. Raises DeliveryError."""
        if delivery.model not in adapters(server):
            body = {"model": delivery.model, "prompt": "a", "max_tokens": 1}
            try:
                server.request("POST", "/v1/completions", body)
            except EngineRefusal as error:
                if error.status == 404:
                    raise DeliveryError(f"{error}; {WITHOUT_PLUGIN}") from error
                flags = " ".join(self.needed_flags(delivery))
                raise DeliveryError(f"{error}; its log says why. It needs: {flags or '--enable-lora'}") from error
        path = adapters(server).get(delivery.model)
        if path is None:
            raise DeliveryError(f"{server.url} answers for {delivery.model}, but does not list it; {WITHOUT_PLUGIN}")
        return path


@dataclass(frozen=True)
class SharedDirectoryTarget(EngineTarget):
    shared_path: str
    allowed: Sequence[str]

    def deliver(self, delivery: Delivery, adapter: Path) -> Delivered:
        self.refuse_incompatible(delivery)
        base = self.first_base()
        root = allowed_path(self.shared_path, self.allowed)
        version = place(root, delivery, adapter, self.destination.base_name or base.root)
        path = self._engine_path(f"{VERSIONS}/{delivery.served_model}/{version}")
        served = self.on_every_server(lambda server: self.serve(server, delivery, path))
        link(root, delivery.served_model, version)
        return delivered({"path": path, "root": self.shared_path, "version": version}, served)

    def withdraw(self, delivery: Delivery) -> None:
        root = allowed_path(self.shared_path, self.allowed)
        versions = versions_of(root, delivery)
        paths = {self._engine_path(f"{VERSIONS}/{delivery.served_model}/{version}") for version in versions}
        paths.add(self.delivered_path("", delivery))
        self.on_every_server(lambda server: self._forget(server, delivery, paths))
        remove(root, delivery)

    def delivered_path(self, _url: str, delivery: Delivery) -> str:
        return str((delivery.location or {}).get("path", ""))

    def is_ours(self, loaded: str, _path: str, _delivery: Delivery) -> bool:
        return loaded.startswith(self._engine_path(f"{VERSIONS}/"))

    def _forget(self, server: Server, delivery: Delivery, paths: Collection[str]) -> None:
        """Unload the adapter. Its served name may have another one by now, or still the one before."""
        ours = self._engine_path(f"{VERSIONS}/{delivery.served_model}/")
        for name, path in adapters(server).items():
            # An attempt that ended in its check has loaded another version, which is under the `ft:` name.
            is_loaded = name == delivery.model and path.startswith(ours)
            if is_loaded or (name in (delivery.model, delivery.served_model) and path in paths):
                self.engine.unload(server, name)

    def _engine_path(self, relative_path: str) -> str:
        return f"{self.destination.engine_path or self.shared_path}/{relative_path}"
