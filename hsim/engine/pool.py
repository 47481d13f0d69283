"""A pool: like devices behind one router."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from simpy.events import Event

from hsim.engine.visits import Visit
from hsim.policies.routing import Router
from hsim.policies.views import DeviceView, PoolView

V_contra = TypeVar("V_contra", bound=Visit, contravariant=True)


class Server(Protocol[V_contra]):
    """A device that serves visits."""

    def view(self) -> DeviceView:
        """What a router may see of it."""
        ...

    def submit(self, visit: V_contra) -> None:
        """Queue a visit; its `done` happens when it has been served."""
        ...


class Pool(Generic[V_contra]):
    """Sends each visit to the device that its router chooses."""

    def __init__(self, name: str, devices: Sequence[Server[V_contra]], router: Router) -> None:
        self.name, self.devices, self._router = name, devices, router
        self._routed = 0

    def submit(self, visit: V_contra) -> Event:
        """Serve a visit; the returned event happens when it has been served."""
        chosen = 0
        if len(self.devices) > 1:
            view = PoolView([device.view() for device in self.devices], self._routed)
            chosen = self._router(visit.view(), view)
        self._routed += 1
        self.devices[chosen].submit(visit)
        return visit.done
