"""Where models can live on this node: devices and their memory, as plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One place that holds weights. ``id`` is ``node:cpu`` or ``node:gpuN``; sizes in bytes."""

    id: str
    kind: Literal["cpu", "gpu"]
    name: str
    total_bytes: int
    free_bytes: int
    index: int = 0
    """llama.cpp's number of the GPU, which ``main_gpu`` and ``tensor_split`` use."""
    usable: bool = True
    """False for a GPU that the installed llama.cpp build cannot drive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Everything this node can load onto, at one moment."""

    host: Device
    gpus: tuple[Device, ...] = ()
    physical_cores: int = 1

    @property
    def usable_gpus(self) -> tuple[Device, ...]:
        """GPUs that the llama.cpp build can drive, in its order."""
        return tuple(gpu for gpu in self.gpus if gpu.usable)

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices, the host last."""
        return (*self.gpus, self.host)


@dataclass(frozen=True, slots=True)
class Claim:
    """Bytes held on one device."""

    device_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What one runner holds. ``visible`` once a device's free figure already shows it."""

    runner_id: str
    claims: tuple[Claim, ...]
    visible: bool = False

    def on(self, device_id: str) -> int:
        """Bytes held on ``device_id``."""
        return sum(claim.size_bytes for claim in self.claims if claim.device_id == device_id)


def available_bytes(device: Device, reservations: Sequence[Reservation]) -> int:
    """Bytes a new runner may count on: what is free now less what was promised and is not
    there yet, and never more than capacity less all promises."""
    promised = sum(reservation.on(device.id) for reservation in reservations)
    unseen = sum(r.on(device.id) for r in reservations if not r.visible)
    return max(0, min(device.free_bytes - unseen, device.total_bytes - promised))


@dataclass(frozen=True, slots=True)
class WithoutRunners:
    """A guess at the inventory and reservations after some runners have ended."""

    inventory: Inventory
    reservations: tuple[Reservation, ...]
    freed_bytes: Mapping[str, int] = field(default_factory=dict[str, int])


def without_runners(
    inventory: Inventory, reservations: Sequence[Reservation], ended: frozenset[str]
) -> WithoutRunners:
    """What is left once the runners in ``ended`` are gone and their memory is back."""
    gone = [r for r in reservations if r.runner_id in ended and r.visible]
    freed = {
        device.id: sum(reservation.on(device.id) for reservation in gone)
        for device in inventory.devices
    }

    def grown(device: Device) -> Device:
        free = min(device.total_bytes, device.free_bytes + freed[device.id])
        return replace(device, free_bytes=free)

    return WithoutRunners(
        replace(
            inventory,
            host=grown(inventory.host),
            gpus=tuple(grown(gpu) for gpu in inventory.gpus),
        ),
        tuple(r for r in reservations if r.runner_id not in ended),
        freed,
    )


def measured_reservations(
    runner_id: str,
    estimate: Sequence[Claim],
    measured_bytes: Mapping[str, int],
    room_bytes: Mapping[str, int],
    growth: Claim,
) -> tuple[Reservation, Reservation]:
    """What a loaded runner holds, in place of its estimate, and what it may still grow by.

    ``estimate`` includes ``growth``; a device without a measurement keeps its estimate.
    ``room_bytes`` is capacity less what others hold: no sum may exceed it.
    """
    room = dict(room_bytes)
    held: list[Claim] = []
    for claim in estimate:
        still_to_come = growth.size_bytes if claim.device_id == growth.device_id else 0
        size = measured_bytes.get(claim.device_id, claim.size_bytes - still_to_come)
        size = max(0, min(size, room.get(claim.device_id, 0)))
        room[claim.device_id] = room.get(claim.device_id, 0) - size
        held.append(Claim(claim.device_id, size))
    left = max(0, min(growth.size_bytes, room.get(growth.device_id, 0)))
    return (
        Reservation(runner_id=runner_id, claims=tuple(held), visible=True),
        Reservation(runner_id=runner_id, claims=(Claim(growth.device_id, left),)),
    )
