"""Where the work of a build is done: in this process, in a pool of processes, or on a Ray cluster.

An engine yields one result for each task, in the order in which they are done. Whoever asks is the only one who writes
results down, so that a task whose worker died is simply done again.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from hub_merge.errors import HubMergeError
from hub_merge.zoo.gate import LocalGate, SharedGate, Turns

__all__ = ["Engine", "Work", "here", "in_processes", "on_ray"]

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Any, Any], Any]
"""A function of a task and the gate, importable by name."""
Engine = Callable[[Work, Iterable[Any]], Iterator[Any]]

AHEAD = 2
"""Tasks a worker that are handed out at once, so that none has to wait for the next."""
MOST_DEATHS = 3
"""How often a worker may die without any task done meanwhile, or over one task on a cluster."""


def here(spacing: float = 0.0) -> Engine:
    """Return the engine that does one task after the other."""
    gate = LocalGate(spacing)
    return lambda work, tasks: (work(task, gate) for task in tasks)


_gate: Any = None
"""The gate of a process of the pool."""


def _begin(gate: Any) -> None:
    global _gate  # noqa: PLW0603
    _gate = gate
    threading.Thread(target=_end_with_the_build, daemon=True).start()


def _end_with_the_build() -> None:
    """End this process of the pool when the build is gone: one that was killed does not end it."""
    build = multiprocessing.parent_process()
    if build is not None:
        build.join()
        os._exit(1)


def _do(work: Work, task: Any) -> Any:
    return work(task, _gate)


def in_processes(workers: int, spacing: float = 0.0) -> Engine:
    """Return the engine of a pool of processes; with one worker the work is done here.

    Args:
        workers: Number of processes.
        spacing: Least seconds between two requests of all of them together.
    """
    return here(spacing) if workers == 1 else lambda work, tasks: _pooled(work, iter(tasks), workers, spacing)


def _pooled(work: Work, tasks: Iterator[Any], workers: int, spacing: float) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    gate = SharedGate(context, spacing)
    again: deque[Any] = deque()
    deaths = 0
    while True:
        waiting: dict[Any, Any] = {}
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(gate,)) as pool:
            try:
                while True:
                    while len(waiting) < AHEAD * workers and (some := again or deque(islice(tasks, 1))):
                        task = some.popleft()
                        waiting[pool.submit(_do, work, task)] = task
                    if not waiting:
                        return
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        del waiting[future]
                        deaths = 0
                        yield result
            except BrokenProcessPool as error:
                deaths += 1
                if deaths == MOST_DEATHS:
                    raise HubMergeError(
                        f"The processes of the build died {deaths} times before any adapter was done.",
                        remedy="Use fewer with --workers; what is done stays in the index.",
                    ) from error
                again.extend(waiting.values())
            finally:
                for future in waiting:
                    future.cancel()


def on_ray(address: str, spacing: float = 0.0) -> Engine:
    """Return the engine of a Ray cluster, on all of whose nodes this package has to be installed.

    Args:
        address: Of a running cluster, or ``auto`` for one on this machine.
        spacing: Least seconds between two requests of all workers together.

    Raises:
        HubMergeError: Ray is not installed, or the cluster cannot be reached.
    """
    return lambda work, tasks: _on_cluster(work, iter(tasks), address, spacing)


def _on_cluster(work: Work, tasks: Iterator[Any], address: str, spacing: float) -> Iterator[Any]:
    ray, started = _connected(address)
    try:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        near = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        gate = ray.remote(Turns).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=near)
        gate = RayGate(gate.remote(spacing))
        remote = ray.remote(work).options(num_cpus=1, max_retries=MOST_DEATHS)
        yield from _collected(ray, remote, tasks, gate)
    finally:
        if started:
            ray.shutdown()


def _collected(ray: Any, remote: Any, tasks: Iterator[Any], gate: Any) -> Iterator[Any]:
    """Yield results as they come; twice as many tasks as there are processors now are handed out at once."""
    waiting: list[Any] = []
    while True:
        most = max(AHEAD, AHEAD * int(ray.cluster_resources().get("CPU", 1)))
        waiting += [remote.remote(task, gate) for task in islice(tasks, max(0, most - len(waiting)))]
        if not waiting:
            return
        done, waiting = ray.wait(waiting, num_returns=1)
        try:
            yield ray.get(done[0])
        except ray.exceptions.RayError as error:
            raise HubMergeError(
                f"The cluster failed at an adapter {MOST_DEATHS + 1} times: {str(error).strip().splitlines()[-1]}",
                remedy="Build again: what is done stays in the index.",
            ) from error


class RayGate:
    """The gate of all workers of a cluster: an actor."""

    def __init__(self, turns: Any) -> None:
        self._turns = turns

    def take(self) -> float:
        """Return the seconds to wait before the next request."""
        import ray

        return float(ray.get(self._turns.take.remote()))

    def close(self, seconds: float) -> None:
        """Let no request begin for so long."""
        self._turns.close.remote(seconds)


def _connected(address: str) -> tuple[Any, bool]:
    """Return Ray, connected, and whether the connection has to be ended afterwards."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that is started here: 15 would starve it
    try:
        import ray
    except ImportError as error:
        raise HubMergeError("--ray needs Ray.", remedy="pip install 'hub-merge[zoo]'") from error
    if ray.is_initialized():
        return ray, False
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    if address != "auto":
        settings = {"log_to_driver": False, "logging_level": "error", "address": address}
    try:
        ray.init(**settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise HubMergeError(
            f"No Ray cluster answers at {address}: {str(error).splitlines()[0]}",
            remedy="Start one with `ray start --head`, or take --ray auto for one on this machine.",
        ) from error
    return ray, True
