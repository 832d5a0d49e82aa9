"""/metrics for Prometheus: frame counts, stage times, ages, sessions, the worker. Only reads existing counters.

Names begin with zoetrope_, times are in seconds. Session tokens are never exposed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, suppress

import fastapi
import psutil
from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.session.session import Session, SessionReading
from app.session.table import SessionTable
from app.worker.handle import WorkerHandle, WorkerPhase
from app.worker.proxy import SessionAccounting

from .access import off_loop
from .context import ApiContext
from .loop_watch import BLOCKED_MS, LoopReading, LoopWatch, log_blocked

_POLL_S = 0.5  # shorter sessions may be missing from the totals
_KINDS = ("taken", "out", "dropped", "skipped")
_LOG_BLOCKED = "ZOETROPE_LOG_BLOCKED"  # environment variable: log each callback that blocks the event loop


def router(context: ApiContext) -> APIRouter:
    """The one route. While the application runs, ended sessions are added to the totals."""
    collector = TableCollector(context.table)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)

    async def poll() -> None:
        while True:
            collector.update()
            await asyncio.sleep(_POLL_S)

    @asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        on_blocked = log_blocked if os.environ.get(_LOG_BLOCKED) == "1" else None
        task = asyncio.create_task(poll(), name="metrics")
        with LoopWatch(asyncio.get_running_loop(), on_blocked) as watch:
            collector.watch = watch
            yield
            collector.watch = None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    routes = APIRouter(tags=["health"], lifespan=lifespan)

    @routes.get(
        "/metrics",
        operation_id="metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Metrics in the Prometheus text format."""
        text = await off_loop(context, generate_latest, registry)
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes


class TableCollector(Collector):
    """Metrics of the session table. Frame totals are monotonic: ended sessions stay in them.

    watch: the event loop's, while the application runs.
    """

    def __init__(self, table: SessionTable) -> None:
        self.watch: LoopWatch | None = None
        self._table = table
        self._seen: dict[str, Session] = {}
        self._closing: dict[str, Session] = {}  # closed, with frames still in flight in the worker
        self._sessions_total = 0
        self._ended = SessionAccounting()
        self._began_s = time.time()

    def update(self) -> None:
        """Update the set of open sessions, and add ended ones to the totals."""
        open_now = {session.id: session for session in self._table.sessions}
        new = open_now.keys() - self._seen.keys()
        self._sessions_total += len(new)
        self._closing |= {name: self._seen[name] for name in self._seen.keys() - open_now.keys()}
        self._seen = open_now
        for name, session in tuple(self._closing.items()):
            counts = session.read().accounting
            if counts.in_flight == 0:  # those in flight were counted as dropped
                self._ended = _sum(self._ended, counts)
                del self._closing[name]

    def collect(self) -> Iterator[Metric]:
        """All current metrics."""
        self.update()
        readings = {session: session.read() for session in self._seen.values()}
        yield from self._frames([*readings.values(), *(session.read() for session in self._closing.values())])
        yield from self._times(readings)
        yield from self._process()
        yield from self._gpu()
        if self.watch is not None:
            yield from _event_loop(self.watch.read())

    def _frames(self, readings: Collection[SessionReading]) -> Iterator[Metric]:
        total = self._ended
        for reading in readings:
            total = _sum(total, reading.accounting)
        frames = CounterMetricFamily(
            "zoetrope_frames", "Frames: taken = out + dropped + skipped + in flight.", labels=["kind"]
        )
        for kind in _KINDS:
            frames.add_metric([kind], float(getattr(total, kind)))
        yield frames
        yield GaugeMetricFamily(
            "zoetrope_frames_in_flight", "Frames in flight between input and output.", value=float(total.in_flight)
        )
        yield CounterMetricFamily(
            "zoetrope_sessions_opened", "Sessions opened since the start.", value=float(self._sessions_total)
        )
        yield GaugeMetricFamily("zoetrope_sessions", "Open sessions.", value=float(len(self._seen)))
        maximum = self._table.workers.max_sessions
        yield GaugeMetricFamily("zoetrope_sessions_most", "Maximum number of open sessions.", value=float(maximum))

    def _times(self, readings: Mapping[Session, SessionReading]) -> Iterator[Metric]:
        stages = GaugeMetricFamily(
            "zoetrope_stage_seconds", "Time of a stage over the last frames.", labels=["session", "stage", "quantile"]
        )
        latency = GaugeMetricFamily(
            "zoetrope_latency_seconds", "From capture to finished frame, mean of the last seconds.", labels=["session"]
        )
        rate = GaugeMetricFamily("zoetrope_frame_rate", "Finished frames per second.", labels=["session"])
        tick = GaugeMetricFamily("zoetrope_tick_seconds", "Running mean of the engine's tick.", labels=["session"])
        age = GaugeMetricFamily(
            "zoetrope_session_age_seconds", "Time since the session was opened.", labels=["session"]
        )
        frame_age = GaugeMetricFamily(
            "zoetrope_frame_age_seconds", "Time since the newest frame's input was captured.", labels=["session"]
        )
        for session, reading in readings.items():
            name = [session.id]
            for stage, times in reading.stages.items():
                stages.add_metric([session.id, stage.value, "0.5"], times.p50_ms / 1e3)
                stages.add_metric([session.id, stage.value, "0.95"], times.p95_ms / 1e3)
            if reading.meter.latency_ms is not None:
                latency.add_metric(name, reading.meter.latency_ms / 1e3)
            rate.add_metric(name, reading.meter.frame_rate)
            tick.add_metric(name, session.proxy.tick_ms / 1e3)
            age.add_metric(name, reading.age_s)
            newest = session.proxy.newest()
            if newest is not None and newest[1].captured_ns is not None:
                frame_age.add_metric(name, (time.monotonic_ns() - newest[1].captured_ns) / 1e9)
        yield from (stages, latency, rate, tick, age, frame_age)

    def _process(self) -> Iterator[Metric]:
        status = self._table.workers.status
        yield GaugeMetricFamily("zoetrope_ready", "1 while a worker is ready.", value=status.phase is WorkerPhase.READY)
        yield CounterMetricFamily("zoetrope_worker_restarts", "Worker restarts.", value=float(status.restarts))
        yield GaugeMetricFamily("zoetrope_start_time_seconds", "Start time, Unix time.", value=self._began_s)
        memory = GaugeMetricFamily("zoetrope_resident_bytes", "Resident memory of a process.", labels=["process"])
        memory.add_metric(["front"], float(_resident_bytes(os.getpid())))
        for name, worker in self._workers():
            pid = worker.status.pid
            if pid is not None:
                with suppress(psutil.NoSuchProcess):  # it has just died; the next scrape sees the new one
                    memory.add_metric([name], float(_resident_bytes(pid)))
        yield memory

    def _gpu(self) -> Iterator[Metric]:
        """The workers' GPU memory; absent on the CPU."""
        memory = GaugeMetricFamily(
            "zoetrope_gpu_bytes", "GPU memory of a worker's PyTorch allocator.", labels=["process", "kind"]
        )
        for name, worker in self._workers():
            if (gpu := worker.gpu_memory) is not None:
                memory.add_metric([name, "allocated"], float(gpu.allocated_bytes))
                memory.add_metric([name, "reserved"], float(gpu.reserved_bytes))
        if memory.samples:
            yield memory

    def _workers(self) -> list[tuple[str, WorkerHandle]]:
        """Each worker with its label: "worker", or "worker-1", ... if there are several."""
        workers = self._table.workers.workers
        return [(f"worker-{i}" if len(workers) > 1 else "worker", worker) for i, worker in enumerate(workers, 1)]


def _event_loop(reading: LoopReading) -> Iterator[Metric]:
    name = "zoetrope_event_loop"
    yield GaugeMetricFamily(f"{name}_longest_seconds", "Longest callback of the last minute.", value=reading.max_s)
    yield GaugeMetricFamily(
        f"{name}_longest_cpu_seconds", "Longest callback of the last minute, in CPU time.", value=reading.max_cpu_s
    )
    blocked = CounterMetricFamily(f"{name}_blocked", f"Callbacks longer than {BLOCKED_MS:g} ms.", labels=["clock"])
    blocked.add_metric(["wall"], float(reading.blocked))
    blocked.add_metric(["cpu"], float(reading.blocked_cpu))
    yield blocked
    yield CounterMetricFamily(f"{name}_callbacks", "Callbacks since the start.", value=float(reading.callbacks))


def _resident_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def _sum(a: SessionAccounting, b: SessionAccounting) -> SessionAccounting:
    return SessionAccounting(
        taken=a.taken + b.taken,
        out=a.out + b.out,
        dropped=a.dropped + b.dropped,
        skipped=a.skipped + b.skipped,
        in_flight=a.in_flight + b.in_flight,
    )
