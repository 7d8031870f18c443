"""vLLM with the plugin `tunery-vllm`, which fetches an adapter from Tunery when a request names its `ft:` name.

No directory is shared: the first request, which is the delivery's, makes each server download, verify and load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from worker.deliveries.destination import AdapterDelivery, Delivered, DeliveryError
from worker.deliveries.engine_server import EngineRefusal, Server
from worker.deliveries.engines import EngineTarget, Served, adapters, delivered

WITHOUT_PLUGIN = (
    "install the plugin tunery-vllm there, with TUNERY_BASE_URL of this server and a TUNERY_API_KEY of the adapter's "
    "project, or give the target a shared_path; the log of vLLM says why it was not found"
)


@dataclass(frozen=True)
class PluginTarget(EngineTarget):
    def deliver(self, delivery: AdapterDelivery, adapter: Path) -> Delivered:  # noqa: ARG002  (each server has its own copy)
        self.refuse_incompatible(delivery)
        paths: dict[str, str] = dict(delivery.location.get("paths", {}))

        def serve(server: Server) -> Served:
            paths[server.url] = self._fetched(server, delivery)
            return self.serve(server, delivery, paths[server.url])

        try:
            served = self.on_every_server(serve)
        except DeliveryError as error:
            error.location = {"paths": paths}  # those of the servers before, or beside, the one that failed
            raise
        return delivered({"paths": paths}, served)

    def withdraw(self, delivery: AdapterDelivery) -> None:
        self.on_every_server(lambda server: self._forget(server, delivery))

    def delivered_path(self, server: Server, delivery: AdapterDelivery) -> str:
        return str(delivery.location.get("paths", {}).get(server.url, ""))

    def is_ours(self, loaded: str, path: str, delivery: AdapterDelivery) -> bool:
        """The plugin's cache has a directory of each adapter, of all targets; an attempt may not be recorded."""
        is_cached = PurePosixPath(loaded).parent == PurePosixPath(path).parent
        return loaded == path or (is_cached and loaded not in delivery.paths_of_others)

    def _forget(self, server: Server, delivery: AdapterDelivery) -> None:
        for name, path in adapters(server).items():
            is_served = name == delivery.served_model and path == self.delivered_path(server, delivery)
            if name == delivery.model or is_served:
                self.engine.unload(server, name)

    def _fetched(self, server: Server, delivery: AdapterDelivery) -> str:
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
