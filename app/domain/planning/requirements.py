"""The requirements of a job, from its validated data: memory for the claim, and duration for the forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.planning.estimate import Device, Placement, estimate_placement
from app.domain.planning.execution_plan import Measurement
from app.domain.planning.memory import DeviceKind
from app.domain.planning.workload import Workload


@dataclass(frozen=True)
class DeviceGroup:
    """A device, the number of workers that have it, and the measurements of earlier jobs on it.

    If several workers share a GPU, the device is the whole GPU, and `slots` and `slot_bytes` tell how it is divided.
    """

    device: Device
    workers: int
    measurements: Sequence[Measurement]
    slots: int = 1
    slot_bytes: int = 0


@dataclass(frozen=True)
class RequirementsEstimate:
    """The minimum memory that a job needs on each kind of device, and its duration on the fastest available device."""

    cpu_bytes: int
    cuda_bytes: int
    seconds: float | None  # None: no worker is running


def estimate_on(entry: CatalogEntry, spec: JobSpec, work: Workload, group: DeviceGroup) -> Placement:
    """The plan within the budget of a slot, as the claim reserves it; on the whole device if the job fits no slot."""
    if group.slots > 1:
        slot = replace(group.device, memory_bytes=group.slot_bytes, slots=group.slots)
        placement = estimate_placement(entry, spec, work, slot, group.measurements)
        if placement.fits:
            return placement
    return estimate_placement(entry, spec, work, group.device, group.measurements)


def estimate_requirements(
    entry: CatalogEntry, spec: JobSpec, work: Workload, device_groups: Sequence[DeviceGroup]
) -> RequirementsEstimate:
    placements = [estimate_on(entry, spec, work, each) for each in device_groups]
    seconds = [each.seconds for each in placements if each.fits] or [each.seconds for each in placements]
    return RequirementsEstimate(
        cpu_bytes=_min_bytes(entry, spec, work, "cpu", device_groups),
        cuda_bytes=_min_bytes(entry, spec, work, "cuda", device_groups),
        seconds=min(seconds, default=None),
    )


def _min_bytes(
    entry: CatalogEntry, spec: JobSpec, work: Workload, kind: DeviceKind, device_groups: Sequence[DeviceGroup]
) -> int:
    """The memory of the smallest plan, which is selected if none fits; the minimum over the devices of a kind."""
    measurements_by_device = [each.measurements for each in device_groups if each.device.kind == kind] or [()]
    too_small = Device(kind, "", memory_bytes=1)
    return min(
        estimate_placement(entry, spec, work, too_small, measurements).memory.total
        for measurements in measurements_by_device
    )
