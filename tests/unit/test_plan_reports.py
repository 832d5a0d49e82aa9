"""What a preparation says of itself to people, and what the page, the API and the worker make of it."""

from __future__ import annotations

from pathlib import Path

from app.worker.handle import WorkerHandle
from app.worker.messages import WorkerPreparation
from app.worker.process import WorkerOptions
from pipelines.backends.reports import Reports
from pipelines.core.preparation import NOTHING_PREPARED, NoPreparation, PartForm, PreparationStatus
from tests.fakes.api_server import api_server
from tests.fakes.copying_recipe import CopyingRecipe
from tests.fakes.engine import FakeEngine
from tests.fakes.worker_bench import Bench

RECIPE = CopyingRecipe()  # titled "copied", with one step
RECIPES = {"encode": RECIPE, "denoise": RECIPE, "decode": RECIPE}
BUILDING = PreparationStatus(runs="PyTorch", builds="int8 (OpenVINO)", percent=40, step="decode: converting")
READY = PreparationStatus(runs="int8 (OpenVINO)")
PLAIN = [PartForm(part=part) for part in RECIPES]
PLANS = [PartForm(part=part, recipe="copying", plan=f"copying-{part}") for part in RECIPES]


def test_nothing_prepared_says_nothing() -> None:
    assert str(NOTHING_PREPARED) == ""


def test_the_percentage_covers_all_parts_and_never_falls() -> None:
    reports, said = Reports(RECIPES, PLAIN), []
    for done in range(3):
        reports.begins(RECIPE, 2 - done)
        said.append(reports.status.percent)
        for text in ("loading the model", "copying"):
            reports.step(text)
            said.append(reports.status.percent)
        reports.runs([*PLAIN[done + 1 :], *PLANS[: done + 1]])
        reports.ends("encode", failed="", waiting=2 - done)
    assert said == [0, 0, 16, 33, 33, 50, 66, 66, 83]
    assert str(reports.status) == "copied"


def test_parts_that_run_differently_are_named() -> None:
    reports = Reports(RECIPES, [PLAIN[0], *PLANS[1:]])
    assert reports.status.runs == "PyTorch for encode, copied for denoise and decode"
    reports.begins(RECIPE, 0)
    reports.step("encode: copying")
    assert str(reports.status) == (
        "PyTorch for encode, copied for denoise and decode · copied: building, 0 % (encode: copying)"
    )


def test_a_failure_stays_until_the_part_is_made() -> None:
    reports = Reports(RECIPES, PLAIN)
    reports.begins(RECIPE, 1)
    reports.ends("decode", failed="copied: The copier is out of toner.", waiting=1)
    reports.begins(RECIPE, 0)
    reports.ends("encode", failed="", waiting=0)
    assert str(reports.status) == "PyTorch · copied: The copier is out of toner."
    reports.begins(RECIPE, 0)
    reports.ends("decode", failed="", waiting=0)
    assert str(reports.status) == "PyTorch"


def test_the_worker_tells_the_front_each_change_once() -> None:
    preparation, told = NoPreparation(), []
    bench = Bench(FakeEngine(preparation=preparation))
    for status in (NOTHING_PREPARED, BUILDING, BUILDING, READY):
        preparation.status = status
        bench.worker._next_stats_ns = 0
        bench.worker.run_once()
        told += [message.status for message in bench.receive() if isinstance(message, WorkerPreparation)]
    bench.close()
    assert told == [BUILDING, READY]


def test_page_and_api_say_what_runs_and_what_is_built(tmp_path: Path) -> None:
    with WorkerHandle(WorkerOptions(model="identity")) as worker:
        worker.wait_ready(60)
        with api_server(worker, tmp_path) as server:
            made = server.http.post("/v1/sessions", json={}).json()
            worker._handle(WorkerPreparation(status=BUILDING))
            token = {"Authorization": f"Bearer {made['token']}"}
            found = server.http.get(f"/v1/sessions/{made['id']}", headers=token).json()["execution"]
            assert found == {
                "runs": "PyTorch", "builds": "int8 (OpenVINO)", "percent": 40, "step": "decode: converting",
                "failed": "", "why": "",
            }  # fmt: skip
