"""bench.video_report: which commands it runs, what it keeps of those that fail or time out, how it reports
thresholds."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest

from bench import actions, drift, mini_video, prompt_switch, video_report
from bench.video_report import OUT_OF_TIME, Job, jobs_of, main, run_all, verdict

MODULES = {"bench.drift": drift, "bench.mini_video": mini_video, "bench.actions": actions,
           "bench.prompt_switch": prompt_switch}  # fmt: skip


def settings(out: Path) -> argparse.Namespace:
    return argparse.Namespace(
        out=out, model="folder", captions=4, drift_captions=2, seconds=6, bench=["--threads", "1"]
    )


def test_every_case_is_measured_once_and_every_command_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(settings(tmp_path), 2)
    cases = [job.command[job.command.index("--cases") + 1 :] for job in jobs if "--cases" in job.command]
    assert len(cases) == 2
    assert sorted(case for part in cases for case in part) == sorted(drift.CASES)
    understood = []

    def stop(options: argparse.Namespace, **_: object) -> None:
        understood.append(options.model)
        raise InterruptedError

    for module in MODULES.values():
        monkeypatch.setattr(module, "load_model" if module is drift else "measure", stop)
    for job in jobs:
        with pytest.raises(InterruptedError):
            MODULES[job.command[0]].main(job.command[1:])
    assert understood == ["folder"] * len(jobs)


def test_jobs_share_the_devices_and_what_fails_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    good, bad, slow = (tmp_path / f"{name}.py" for name in ("good", "bad", "slow"))
    good.write_text("import os; print('{\"device\": \"' + os.environ['CUDA_VISIBLE_DEVICES'] + '\"}')")
    bad.write_text("print('{'); raise SystemExit('no')")
    slow.write_text("import time; time.sleep(60)")
    jobs = [Job(name=path.stem, command=[path.stem]) for path in (slow, good, bad)]
    codes = run_all(jobs, tmp_path, [0, 1], time.monotonic() + 3)
    assert codes == {"good": 0, "bad": 1, "slow": OUT_OF_TIME}
    assert json.loads((tmp_path / "good.json").read_text())["device"] == "1"
    assert not (tmp_path / "bad.json").exists()
    assert "no" in (tmp_path / "bad.log").read_text()


def test_missed_bars_are_named_and_a_missing_result_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = {"a": {"value": 0.5, "least": 0.7, "met": False}, "b": {"value": 1.0, "most": 2.0, "met": True}}
    assert verdict({"bars": bars}) == "a 0.5 (least 0.7)"
    assert verdict({"modes": {}}) == "measured; it has no bars"
    cases = {"full": {"bars_missed": ["degree_kept", "motion"]}, "window": {"bars_missed": []}}
    assert verdict({"cases": cases}) == "full: degree_kept, motion; window: every bar is met"

    def run(jobs: list[Job], out: Path, devices: list[int | None], stop_at: float) -> dict[str, int]:
        (out / "mini_video.json").write_text(json.dumps({"bars": bars}))
        (out / "actions.json").write_text(json.dumps({"bars": {"b": bars["b"]}}))
        return {job.name: 0 if job.name in ("mini_video", "actions") else OUT_OF_TIME for job in jobs}

    monkeypatch.setattr(video_report, "run_all", run)
    assert main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "mini_video: a 0.5 (least 0.7)" in said
    assert "actions: every bar is met" in said
    assert "prompt_switch: no result (exit code 124)" in said
