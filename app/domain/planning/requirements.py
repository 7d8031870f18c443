"""What a job will need of any worker, from its data as it was validated: for the claim and for the forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.planning.estimate import Device, place
from app.domain.planning.execution_plan import Measurement
from app.domain.planning.memory import DeviceKind
from app.domain.planning.workload import Work


@dataclass(frozen=True)
class Place:
    """A kind of device, and how many workers have it."""

    device: Device
    workers: int
    measurements: Sequence[Measurement]


@dataclass(frozen=True)
class Reckoned:
    """The least memory with which it can be trained at all, and the time it takes on the fastest device there is."""

    cpu_bytes: int
    cuda_bytes: int
    seconds: float | None  # None: no worker is alive to reckon for


def reckon(entry: CatalogEntry, spec: JobSpec, work: Work, places: Sequence[Place]) -> Reckoned:
    placed = [place(entry, spec, work, each.device, each.measurements) for each in places]
    seconds = [each.seconds for each in placed if each.fits] or [each.seconds for each in placed]
    return Reckoned(
        cpu_bytes=_least_bytes(entry, spec, work, "cpu", places),
        cuda_bytes=_least_bytes(entry, spec, work, "cuda", places),
        seconds=min(seconds, default=None),
    )


def _least_bytes(entry: CatalogEntry, spec: JobSpec, work: Work, kind: DeviceKind, places: Sequence[Place]) -> int:
    """Where nothing fits, the plan is the smallest layout. Of several devices of a kind the kindest word counts."""
    known = [each.measurements for each in places if each.device.kind == kind] or [()]
    nothing = Device(kind, "", memory_bytes=1)
    return min(place(entry, spec, work, nothing, measurements).memory.total for measurements in known)
