"""vLLM with the plugin `tunery-vllm`, which fetches an adapter from Tunery when it is asked for its `ft:` name.

No directory is shared: the first request, which is the delivery's, makes each server download, verify and load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from app.domain.deliveries.served_check import ServedCheck
from worker.deliveries.destination import Delivered, DeliveryError, Parcel
from worker.deliveries.engine_server import EngineRefusal, Server
from worker.deliveries.engines import EngineTarget, adapters, worst

WITHOUT_PLUGIN = (
    "install the plugin tunery-vllm there, with TUNERY_BASE_URL of this server and a TUNERY_API_KEY of the adapter's "
    "project, or give the target a shared_path; the log of vLLM says why it was not found"
)


@dataclass(frozen=True)
class PluginTarget(EngineTarget):
    def deliver(self, parcel: Parcel, adapter: Path) -> Delivered:  # noqa: ARG002  (each server has its own copy)
        self.refuse_incompatible(parcel)
        paths: dict[str, str] = {}

        def serve(server: Server) -> ServedCheck:
            paths[server.url] = self._fetched(server, parcel)
            return self.serve(server, parcel, paths[server.url])

        return Delivered({"paths": paths}, worst(self.on_every_server(serve)))

    def withdraw(self, parcel: Parcel) -> None:
        self.on_every_server(lambda server: self._forget(server, parcel))

    def delivered_path(self, server: Server, parcel: Parcel) -> str:
        return str(parcel.location.get("paths", {}).get(server.url, ""))

    def is_ours(self, loaded: str, path: str) -> bool:
        """The plugin's cache has a directory of each adapter."""
        return PurePosixPath(loaded).parent == PurePosixPath(path).parent

    def _forget(self, server: Server, parcel: Parcel) -> None:
        for name, path in adapters(server).items():
            is_served = name == parcel.served_model and path == self.delivered_path(server, parcel)
            if name == parcel.model or is_served:
                self.engine.unload(server, name)

    def _fetched(self, server: Server, parcel: Parcel) -> str:
        """The path in the server's cache from which it has loaded the adapter. Raises DeliveryError."""
        if parcel.model not in adapters(server):
            body = {"model": parcel.model, "prompt": "a", "max_tokens": 1}
            try:
                server.request("POST", "/v1/completions", body)
            except EngineRefusal as error:
                if error.status == 404:
                    raise DeliveryError(f"{error}; {WITHOUT_PLUGIN}") from error
                flags = " ".join(self.needed_flags(parcel))
                raise DeliveryError(f"{error}; its log says why. It needs: {flags or '--enable-lora'}") from error
        path = adapters(server).get(parcel.model)
        if path is None:
            raise DeliveryError(f"{server.url} answers for {parcel.model}, but does not list it; {WITHOUT_PLUGIN}")
        return path
