"""A pool: like devices behind one router."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from simpy.events import Event

from hsim.engine.visits import Visit
from hsim.log import Stage
from hsim.policies.balance import Priority
from hsim.policies.routing import Router
from hsim.policies.views import DeviceView, PoolView, VisitView

V = TypeVar("V", bound=Visit)
V_contra = TypeVar("V_contra", bound=Visit, contravariant=True)


class Server(Protocol[V_contra]):
    """A device that serves visits."""

    index: int

    def view(self, visit: VisitView) -> DeviceView:
        """What a router may see of it, for a visit."""
        ...

    def submit(self, visit: V_contra) -> None:
        """Queue a visit; its `done` happens when it has been served, or has left otherwise."""
        ...

    def give_up(self, visit: V_contra) -> None:
        """The visit's client is gone."""
        ...

    def withdraw(self, stage: Stage) -> Visit | None:
        """Take back the first visit of a stage that waits and has not been served; None where there is none."""
        ...

    def waited_s(self) -> float:
        """How long the head of the queue has waited; 0 where nobody does."""
        ...


class Pool(Generic[V]):
    """Sends each visit to the device that its router chooses."""

    def __init__(self, name: str, devices: Sequence[Server[V]], router: Router, number: int = 0) -> None:
        self.name, self.devices, self._router, self.number = name, devices, router, number
        self.open: Sequence[Server[V]] = devices  # to new work
        self.priority: Priority | None = None
        self._by_index = {device.index: device for device in devices}
        self._routed = 0

    def submit(self, visit: V) -> Event:
        """Serve a visit; the returned event happens when it has been served, or has left otherwise.

        A round whose context a device keeps goes there, whatever the router would choose.
        """
        device = self._by_index[visit.home] if visit.home >= 0 else self.chosen(visit)
        self._routed += 1
        visit.pool = self.number
        if self.priority:
            visit.rank = self.priority(visit.view())
        device.submit(visit)
        return visit.done

    def chosen(self, visit: V) -> Server[V]:
        """The device that the router chooses for a visit, of those that are open; the first where none is."""
        if len(self.open) > 1:
            seen = visit.view()
            return self.open[self._router(seen, PoolView([d.view(seen) for d in self.open], self._routed))]
        return self.open[0] if self.open else self.devices[0]

    def give_up(self, visit: V) -> None:
        """The visit's client is gone."""
        self.device_of(visit).give_up(visit)

    def waited_s(self) -> float:
        """How long the head of the shortest-waiting device's queue has waited."""
        return min(device.waited_s() for device in self.devices)

    def device_of(self, visit: V) -> Server[V]:
        """The device that has a visit."""
        return self._by_index[visit.device]

    def device(self, index: int) -> Server[V]:
        """The device of an index."""
        return self._by_index[index]
