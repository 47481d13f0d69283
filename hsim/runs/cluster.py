"""Workers on a cluster of dask.distributed: a job goes to whoever is free, and to another if its worker is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import numpy as np

from hsim.errors import WorkersError
from hsim.metrics.study import Replication
from hsim.runs.paths import Job, replicate
from hsim.runs.store import source_digest

CONNECTING_S = 10.0  # for the scheduler to answer, and for a first worker to be there


class _Cluster:
    """Workers: those of a scheduler. Loss of one costs what it was at: dask gives its jobs to others."""

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        self.at_a_time = sum(client.nthreads().values())
        self._under_way: set[Any] = set()
        self._stopped = False

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Replication]]:
        from distributed import KilledWorker, as_completed

        # Not pure: a job is asked for once and its answer kept here, so that the scheduler need not look for an old one.
        asked = [
            self._client.submit(replicate_there, job, _versions(), pure=False) for job in jobs if not self._stopped
        ]
        self._under_way.update(asked)
        places = {future.key: place for place, future in enumerate(asked)}
        try:
            for future in as_completed(asked, loop=self._client.loop):
                yield places[future.key], future.result()
        except KilledWorker as error:
            what = f"--cluster {self._address}: a replication was lost with its worker again and again ({error})"
            raise WorkersError(f"{what}; is memory short there?") from None
        except CancelledError:
            what = f"--cluster {self._address}: the work was cancelled, or the scheduler lost"
            raise WorkersError(f"{what}; with --out the same command goes on with what is kept") from None
        finally:
            self._under_way.difference_update(asked)

    def stop(self) -> None:
        """End at once: what has not begun is cancelled, and nobody waits for what workers are at."""
        self._stopped = True
        self._client.cancel(list(self._under_way))


@contextmanager
def cluster(address: str) -> Iterator[_Cluster]:
    """The workers of the scheduler at an address. Raises WorkersError where nobody answers, or there are none."""
    try:
        from distributed import Client
    except ModuleNotFoundError:
        what = f"--cluster {address}: dask is not installed"
        raise WorkersError(f"{what}; pip install 'hsim[cluster]', here and where workers run") from None
    try:
        client = Client(address, timeout=CONNECTING_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        what = f"--cluster {address}: no scheduler answers ({error})"
        raise WorkersError(f"{what}; start one with `dask scheduler`, and workers with `dask worker`") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECTING_S)
        except TimeoutError:
            what = f"--cluster {address}: the scheduler has no workers"
            raise WorkersError(f"{what}; start some with `dask worker {address} --nthreads 1`") from None
        yield _Cluster(client, address)


def replicate_there(job: Job, versions: str) -> Replication:
    """Run a replication on a worker, which must have the same hsim and NumPy as whoever asks: else figures may differ."""
    if (here := _versions()) != versions:
        raise WorkersError(f"a worker has {here} and the client {versions}; install the same on both")
    return replicate(job)


def _versions() -> str:
    return f"hsim {source_digest()[:12]} with NumPy {np.__version__}"
