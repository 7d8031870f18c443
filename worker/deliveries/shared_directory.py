"""Engines that load adapters from a directory which they share with the sender."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.deliveries import directory
from worker.deliveries.destination import AdapterDelivery, Delivered
from worker.deliveries.engine_server import Server
from worker.deliveries.engines import EngineTarget, adapters, delivered


@dataclass(frozen=True)
class SharedDirectoryTarget(EngineTarget):
    shared_path: str
    allowed: Sequence[str]

    def deliver(self, delivery: AdapterDelivery, adapter: Path) -> Delivered:
        self.refuse_incompatible(delivery)
        base = self.first_base()
        root = directory.allowed_path(self.shared_path, self.allowed)
        placed = directory.place(root, delivery, adapter, self.destination.base_name or base.root)
        path = self._engine_path(placed.relative_path)
        served = self.on_every_server(lambda server: self.serve(server, delivery, path))
        directory.link(root, delivery.served_model, placed)
        return delivered({"path": path, "root": self.shared_path, "version": placed.version}, served)

    def withdraw(self, delivery: AdapterDelivery) -> None:
        """Unload and remove it where it was delivered; the target may have another path by now."""
        root = str(delivery.location.get("root", self.shared_path))
        versions = directory.versions_of(Path(root), delivery)
        paths = {self._engine_path(f"{directory.VERSIONS}/{delivery.served_model}/{version}") for version in versions}
        paths.add(delivery.location.get("path", ""))
        self.on_every_server(lambda server: self._forget(server, delivery, paths))
        directory.remove(directory.allowed_path(root, self.allowed), delivery)

    def delivered_path(self, _server: Server, delivery: AdapterDelivery) -> str:
        return str(delivery.location.get("path", ""))

    def is_ours(self, loaded: str, _path: str, delivery: AdapterDelivery) -> bool:
        return loaded.startswith(self._engine_path(f"{directory.VERSIONS}/")) or loaded in delivery.own_paths

    def _forget(self, server: Server, delivery: AdapterDelivery, paths: Collection[str]) -> None:
        """Unload the adapter. Its served name may have another one by now, or still the one before."""
        ours = self._engine_path(f"{directory.VERSIONS}/{delivery.served_model}/")
        for name, path in adapters(server).items():
            # An attempt that ended in its check has loaded another version, which is under the `ft:` name.
            is_loaded = name == delivery.model and path.startswith(ours)
            if is_loaded or (name in (delivery.model, delivery.served_model) and path in paths):
                self.engine.unload(server, name)

    def _engine_path(self, relative_path: str) -> str:
        return f"{self.destination.engine_path or self.shared_path}/{relative_path}"
