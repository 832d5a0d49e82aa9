"""/healthz: the process responds. /readyz: the worker's engine is ready, and responds."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.worker.handle import WorkerPhase

from .context import ApiContext
from .schema import Health


def router(context: ApiContext) -> APIRouter:
    """The two routes."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", operation_id="health")
    async def health() -> Health:
        """The process responds."""
        return Health(status="ok")

    @routes.get("/readyz", operation_id="ready", responses={503: {"model": Health}})
    async def ready(response: Response) -> Health:
        """200 while the worker's engine is ready, even when it is busy; else 503 and what the worker is doing."""
        status = context.table.workers.status
        if status.serving:
            return Health(status="ready")
        response.status_code = 503
        response.headers["Retry-After"] = str(context.table.retry_after_s)
        return Health(status="not responding" if status.phase is WorkerPhase.READY else status.phase.value)

    return routes
