"""`zoetrope doctor`: what is installed, what is missing, and the exit status."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from pathlib import Path

import pytest

from app.cli import doctor
from app.cli.doctor import Finding, Package, State
from pipelines.backends.table import BACKENDS
from trt.key import PlanKey
from trt.store import PlanStore


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    return parser.parse_args(["doctor", *arguments])


def test_this_installation_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(options("--json")) == 0
    report = json.loads(capsys.readouterr().out)
    found = {item["name"]: item for item in report["findings"]}
    assert report["ok"] is True
    for name in ("python", "torch", "gradio", "libx264", "aac", "device", "dtype", "threads", "memory", "bundled"):
        assert found[name]["state"] == "ok", found[name]
    assert "mini-image" in found["bundled"]["value"]
    assert "bfloat16" in found["dtype"]["value"] or "float" in found["dtype"]["value"]


def test_a_required_package_that_is_missing_fails() -> None:
    needed = doctor.package_finding(Package(name="no-such-distribution", module="no_such_module"))
    assert (needed.state, needed.remedy) == (State.MISSING, "make install")
    extra = doctor.package_finding(
        Package(name="no-such-distribution", module="x", needed_for="plans", remedy="get it")
    )
    assert (extra.state, extra.value) == (State.OPTIONAL, "not installed; needed for plans")


@pytest.mark.parametrize("compiled", [True, False])
def test_a_broken_package_counts_as_missing(compiled: bool) -> None:
    broken = doctor.package_finding(Package(name="numpy", module="no_such_module", compiled=compiled))
    assert broken.state is State.MISSING
    assert "cannot be imported" in broken.value


def test_only_what_the_program_itself_needs_is_asked_for() -> None:
    needs = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[<>=]", line)[0] for line in needs["dependencies"]}
    optional = {name for name in needs["optional-dependencies"] if name not in ("test", "lint")}
    for package in doctor.PACKAGES:
        assert package.name in (optional if package.needed_for else required)


def test_missing_things_change_the_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gone = Finding(section="installed", name="av", state=State.MISSING, value="not installed", remedy="make install")
    monkeypatch.setattr(doctor, "examine", lambda _: [gone])
    assert doctor.run(options()) == 1
    text = capsys.readouterr().out
    assert "MISS  av" in text
    assert "-> make install" in text
    assert "Something required is missing" in text


def test_every_backend_and_what_auto_takes_is_said() -> None:
    found = {item.name: item for item in doctor.engine_findings("cpu") if item.section == "backends"}
    assert list(found) == [*BACKENDS, "auto, image models", "auto, video models"]
    assert found["eager"].value.startswith("image and video models: ")
    assert found["fp8"].value.startswith("The backend fp8 needs a CUDA device")
    for name in ("cuda-graph", "fp8"):
        assert (found[name].state, found[name].value) == (
            State.OPTIONAL,
            f"The backend {name} needs a CUDA device.",
        )
    for kind in ("image", "video"):
        reason = "eager: plans are switched off (ZOETROPE_PLANS=off); the model is not on a CUDA device"
        assert found[f"auto, {kind} models"].value == reason


def test_an_absent_device_is_said_with_the_remedy() -> None:
    (finding,) = doctor.engine_findings("cuda:99")
    assert finding.state is State.MISSING
    assert "99" in finding.value


def test_stored_and_broken_plans_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path))
    [none] = doctor.plan_findings()
    assert none.value == f"none yet: made beside the first stream, in {tmp_path}"
    store = PlanStore()
    for part in ("denoise", "decode", "encode"):
        key = PlanKey(recipe="openvino-int8", part=part, model="mini-image", inputs="latents")
        folder = store.build(key, lambda folder: (folder / "part.bin").write_bytes(bytes(2_000_000)))
    (folder / "part.bin").write_bytes(b"short")
    assert store.verify()
    stored, model, broken = doctor.plan_findings()
    assert stored.value == f"2, 4 MB, in {tmp_path}"
    assert (model.name, model.value) == ("mini-image, openvino-int8", "decode, denoise")
    assert broken.value.startswith("openvino-int8-encode-")
    assert broken.value.endswith("part.bin has 5 bytes instead of 2000000")
    assert (broken.state, broken.remedy) == (State.OPTIONAL, "zoetrope plans prune removes it")
    monkeypatch.setenv("ZOETROPE_PLANS", "off")
    [off] = doctor.plan_findings()
    assert (off.state, off.value) == (State.OPTIONAL, "Plans are switched off: ZOETROPE_PLANS is off.")
