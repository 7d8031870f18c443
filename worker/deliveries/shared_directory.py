"""Engines that load adapters from a directory which they share with the sender."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.deliveries import directory
from worker.deliveries.destination import Delivered, Parcel
from worker.deliveries.engine_server import Server
from worker.deliveries.engines import EngineTarget, adapters, worst


@dataclass(frozen=True)
class SharedDirectoryTarget(EngineTarget):
    shared_path: str
    allowed: Sequence[str]

    def deliver(self, parcel: Parcel, adapter: Path) -> Delivered:
        self.refuse_incompatible(parcel)
        base = self.first_base()
        root = directory.allowed_path(self.shared_path, self.allowed)
        placed = directory.place(root, parcel, adapter, self.destination.base_name or base.root)
        path = self._engine_path(placed.relative_path)
        checks = self.on_every_server(lambda server: self.serve(server, parcel, path))
        directory.link(root, parcel.served_model, placed)
        return Delivered({"path": path, "version": placed.version}, worst(checks))

    def withdraw(self, parcel: Parcel) -> None:
        versions = directory.versions_of(Path(self.shared_path), parcel)
        paths = {self._engine_path(f"{directory.VERSIONS}/{parcel.served_model}/{version}") for version in versions}
        paths.add(parcel.location.get("path", ""))
        self.on_every_server(lambda server: self._forget(server, parcel, paths))
        directory.remove(directory.allowed_path(self.shared_path, self.allowed), parcel)

    def delivered_path(self, _server: Server, parcel: Parcel) -> str:
        return str(parcel.location.get("path", ""))

    def is_ours(self, loaded: str, _path: str = "") -> bool:
        return loaded.startswith(self._engine_path(f"{directory.VERSIONS}/"))

    def _forget(self, server: Server, parcel: Parcel, paths: Collection[str]) -> None:
        """Unload the adapter. Its served name may have another one by now, or still the one before."""
        ours = self._engine_path(f"{directory.VERSIONS}/{parcel.served_model}/")
        for name, path in adapters(server).items():
            # An attempt that ended in its check has loaded another version, which is under the `ft:` name.
            is_loaded = name == parcel.model and path.startswith(ours)
            if is_loaded or (name in (parcel.model, parcel.served_model) and path in paths):
                self.engine.unload(server, name)

    def _engine_path(self, relative_path: str) -> str:
        return f"{self.destination.engine_path or self.shared_path}/{relative_path}"
