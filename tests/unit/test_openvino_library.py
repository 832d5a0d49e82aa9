"""OpenVINO missing or of another version: the remedy, without an import. Imported, it reports to nobody.

Parts that are freed leave the process able to handle signals."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from pipelines.backends.openvino import library
from pipelines.backends.openvino.library import NNCF, OPENVINO, check, refusal_of
from pipelines.backends.openvino.recipe import OpenVINORecipe
from pipelines.core.errors import ModelError

INT8 = OpenVINORecipe(quantised=True)
FREED_PARTS = """
import signal, tempfile
from pathlib import Path
import torch
from pipelines.backends.openvino.recipe import OpenVINORecipe
from pipelines.core.parts import Part

class Linear(torch.nn.Linear):
    def forward(self, latents):
        return (super().forward(latents),)

part = Part(name="decode", module=Linear(8, 8).eval(), inputs={"latents": torch.ones(1, 8)})
recipe = OpenVINORecipe(quantised=True, calibration_samples=2)
with tempfile.TemporaryDirectory() as name:
    recipe.build(part, [(torch.randn(1, 8),) for _ in range(recipe.samples)], Path(name), len)
    calls = [recipe.load(part, Path(name)) for _ in range(3)]
while calls:
    calls.pop(0)(torch.ones(1, 8))
signal.signal(signal.SIGINT, lambda number, frame: print("handled"))
signal.raise_signal(signal.SIGINT)
"""
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(library, "installed_version", lambda package: versions.get(package, ""))


@pytest.mark.parametrize("version", ["2026.4.1", "2026.4.0", "2026.11.0rc1"])
def test_tested_versions(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, openvino=version, nncf="3.4.0")
    assert refusal_of(OPENVINO, NNCF) is None
    check(OPENVINO, NNCF)


@pytest.mark.parametrize("version", ["2026.3.9", "2027.0.0", "2025.4", "2027"])
def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, openvino=version, nncf="3.4.0")
    refusal = INT8.refusal(torch.device("cpu"))
    assert refusal is not None
    assert refusal.because == f"OpenVINO {version} is not a version that Zoetrope was tested with"
    with pytest.raises(ModelError, match=r'pip install "openvino>=2026.4,<2027.0"'):
        check(OPENVINO)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, openvino="2026.4.1")
    assert INT8.refusal(torch.device("cpu"), building=False) is None  # NNCF only builds
    refusal = INT8.refusal(torch.device("cpu"))
    assert refusal is not None
    assert refusal.message == "NNCF is not installed."
    install(monkeypatch)
    with pytest.raises(ModelError, match="OpenVINO is not installed"):
        check(OPENVINO)


def test_a_gpu_is_refused() -> None:
    refusal = INT8.refusal(torch.device("cuda"))
    assert refusal is not None
    assert refusal.because == "the model is not on a CPU"


def test_the_recipe_imports_neither() -> None:
    script = (
        "import sys; from pipelines.backends.openvino.recipe import OpenVINORecipe; "
        "from pipelines.backends.openvino.library import refusal_of, OPENVINO, NNCF; refusal_of(OPENVINO, NNCF); "
        "print(sorted({'openvino', 'nncf', 'torch'} & sys.modules.keys()))"
    )
    assert _run(script) == "[]"


@needs_openvino
def test_nothing_is_reported_over_the_network() -> None:
    """Any attempt to open a connection, in this process or one that it starts, would be seen by the audit hook."""
    script = (
        "import sys; seen = []; watched = ('socket.connect', 'socket.getaddrinfo', 'subprocess.Popen', 'os.fork')\n"
        "sys.addaudithook(lambda event, args: seen.append(event) if event in watched else None)\n"
        "from pipelines.backends.openvino.library import core, import_openvino\n"
        "openvino = import_openvino(); core(); assert openvino.convert_model\n"
        "print(seen, sys.modules['openvino_telemetry'])"
    )
    assert _run(script) == "[] None"


@needs_openvino
@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="NNCF is not installed")
def test_signals_are_handled_after_parts_were_built_and_freed() -> None:
    """In the order in which they were loaded, as an engine frees them. In a process of its own: a signal without a
    stack to be handled on ends it."""
    assert _run(FREED_PARTS) == "handled"


def _run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
