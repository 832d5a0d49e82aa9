"""`zoetrope doctor`: what is installed, what will be used and why, what is missing and how to get it.

Reports only; changes nothing and loads no model. Exit status 1 if something required is missing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class State(Enum):
    """The status of a line of the report."""

    OK = "ok"
    OPTIONAL = "optional"  # missing, but needed only by some features
    MISSING = "missing"  # required


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report. remedy: how to fix it."""

    section: str
    name: str
    state: State
    value: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A distribution to look for. needed_for: empty if everything needs it. compiled: contains native code that may not
    run on this machine although it is installed, so it has to be imported."""

    name: str
    module: str
    compiled: bool = False
    needed_for: str = ""
    remedy: str = "make install"


PACKAGES = (
    Package(name="torch", module="torch", compiled=True),
    Package(name="diffusers", module="diffusers"),
    Package(name="transformers", module="transformers"),
    Package(name="safetensors", module="safetensors", compiled=True),
    Package(name="gradio", module="gradio"),
    Package(name="av", module="av", compiled=True),
    Package(name="opencv-python-headless", module="cv2", compiled=True),
    Package(name="numpy", module="numpy", compiled=True),
    Package(name="huggingface_hub", module="huggingface_hub"),
    Package(
        name="xformers",
        module="xformers",
        compiled=True,
        needed_for="its attention kernels",
        remedy="pip install '.[xformers]'",
    ),
    Package(
        name="tensorrt",
        module="tensorrt",
        compiled=True,
        needed_for="TensorRT plans",
        remedy="pip install '.[tensorrt]'",
    ),
    Package(
        name="tensorrt-rtx",
        module="tensorrt_rtx",
        compiled=True,
        needed_for="TensorRT-RTX plans",
        remedy="pip install '.[tensorrt-rtx]'",
    ),
    Package(
        name="nvidia-ml-py",
        module="pynvml",
        needed_for="joules a frame and the driver's version on NVIDIA cards (zoetrope bench)",
        remedy="pip install '.[nvidia-ml-py]'",
    ),
)
_CODECS = (("libx264", "writing MP4 video"), ("aac", "writing sound"))
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd", "bf16")
_MIN_MEMORY_GIB = 2.0
_GIB = 1024**3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand and its options."""
    parser = subparsers.add_parser("doctor", help="what is installed, what will be used, what is missing")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--device", default="auto", help="report for this device (default auto)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the report; 1 if something required is missing."""
    findings = examine(options.device)
    fine = all(finding.state is not State.MISSING for finding in findings)
    sys.stdout.write(report_json(findings, fine=fine) if options.json else report_text(findings, fine=fine))
    return 0 if fine else 1


def examine(device: str = "auto") -> list[Finding]:
    """All findings, section by section."""
    findings = [python_finding(), *(package_finding(package) for package in PACKAGES)]
    installed = {finding.name for finding in findings if finding.state is State.OK}
    if "av" in installed:
        findings += codec_findings()
    findings += machine_findings()
    if "torch" in installed:
        findings += engine_findings(device)
    return findings + plan_findings() + model_findings()


def python_finding() -> Finding:
    """Python 3.11 or newer is required."""
    state = State.OK if sys.version_info >= (3, 11) else State.MISSING
    return Finding(
        section="installed", name="python", state=state, value=platform.python_version(), remedy="Install Python 3.11."
    )


def package_finding(package: Package) -> Finding:
    """The version; a package that is installed but broken counts as missing.

    Compiled ones are imported. The others are only looked up: importing diffusers and gradio takes ten seconds.
    """
    missing = State.OPTIONAL if package.needed_for else State.MISSING
    why = f"not installed; needed for {package.needed_for}" if package.needed_for else "not installed"
    try:
        version = importlib.metadata.version(package.name)
        if package.compiled:
            importlib.import_module(package.module)
        elif importlib.util.find_spec(package.module) is None:
            raise ModuleNotFoundError(f"no module named {package.module}")
    except importlib.metadata.PackageNotFoundError:
        return _installed(package.name, missing, why, package.remedy)
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        return _installed(package.name, missing, f"{version}, cannot be imported: {error}", package.remedy)
    return _installed(package.name, State.OK, version)


def codec_findings() -> list[Finding]:
    """The encoders that rendering needs."""
    import av

    remedy = "Install av from its wheel: pip install --force-reinstall av"
    return [
        _installed(name, State.OK, "encoder")
        if name in av.codecs_available
        else _installed(name, State.MISSING, f"no encoder; needed for {purpose}", remedy)
        for name, purpose in _CODECS
    ]


def machine_findings() -> list[Finding]:
    """CPU and its flags, memory, programs that tests use."""
    import psutil

    flags = sorted(cpu_flags() & set(_CPU_FLAGS))
    memory = psutil.virtual_memory()
    enough = memory.available >= _MIN_MEMORY_GIB * _GIB
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    return [
        _machine("system", State.OK, f"{platform.system()} {platform.machine()}"),
        _machine("cores", State.OK, f"{psutil.cpu_count(logical=False) or '?'} ({os.cpu_count()} threads)"),
        _machine("cpu flags", State.OK, ", ".join(flags) or "none of " + ", ".join(_CPU_FLAGS)),
        _machine(
            "memory",
            State.OK if enough else State.OPTIONAL,
            f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free",
            "" if enough else f"The bundled model needs {_MIN_MEMORY_GIB:g} GiB; close other programs.",
        ),
        _machine("chromium", State.OK, browser)
        if browser
        else _machine("chromium", State.OPTIONAL, "not found; only browser tests use it", "apt-get install chromium"),
    ]


def cpu_flags() -> set[str]:
    """CPU feature flags, by Linux's names; empty on other systems."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return set()
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return set(value.split())
    return set()


def engine_findings(device_name: str) -> list[Finding]:
    """What "auto" chooses here, and why."""
    import torch

    from pipelines.core.errors import ZoetropeError
    from pipelines.files.precision import choose_device, choose_precision

    try:
        precision = choose_precision(choose_device(device_name), "auto")
    except ZoetropeError as error:
        return [_used("device", State.MISSING, error.message, error.remedy)]
    findings = [
        _used("device", State.OK, str(precision.device)),
        _used("dtype", State.OK, precision.reason),
        _used("threads", State.OK, f"{torch.get_num_threads()} for the model, 1 for the page's codecs"),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory_gib = properties.total_memory / _GIB
            findings.append(_used(f"gpu {index}", State.OK, f"{properties.name}, {memory_gib:.0f} GiB"))
    else:
        findings.append(_used("gpu", State.OPTIONAL, "none that torch can use", "Not needed for the bundled model."))
    return findings + backend_findings(precision.device)


def backend_findings(device: torch.device) -> list[Finding]:
    """Whether each backend runs models of each kind on the device, and what "auto" takes for them."""
    from pipelines.backends.base import KINDS
    from pipelines.backends.table import BACKENDS, choose_backend

    findings = []
    for name, backend in BACKENDS.items():
        refusals = {kind: backend.refusal(kind, device) for kind in backend.kinds}
        runs = [kind for kind, refusal in refusals.items() if refusal is None]
        if runs:
            findings.append(_backends(name, State.OK, f"{' and '.join(runs)} models: {backend.purpose}"))
        else:
            refusal = refusals[backend.kinds[0]]
            assert refusal is not None
            findings.append(_backends(name, State.OPTIONAL, refusal.message, refusal.remedy))
    for kind in KINDS:
        findings.append(_backends(f"auto, {kind} models", State.OK, choose_backend("auto", kind, device).reason))
    return findings


def plan_findings() -> list[Finding]:
    """Which plans are stored, for which models, and which were broken. Reads no plan in full."""
    from pipelines.core.errors import ZoetropeError

    try:
        from pipelines.plans.commands import Plans, plan_errors

        with plan_errors():
            plans = Plans(notice=lambda text: None)
    except ImportError:
        return []  # what is missing is said in the first section
    except ZoetropeError as error:
        return [_plans("stored", State.OPTIONAL, error.message, error.remedy)]
    parts: dict[str, set[str]] = {}
    for entry in plans.entries():
        parts.setdefault(f"{entry.key.model}, {entry.key.recipe}", set()).add(entry.key.part)
    size_mb = sum(entry.size_bytes for entry in plans.entries()) / 1e6
    stored = f"{len(plans.entries())}, {size_mb:.0f} MB" if parts else "none yet: made beside the first stream"
    found = [_plans("stored", State.OK, f"{stored}, in {plans.store.root}")]
    found += [_plans(name, State.OK, ", ".join(sorted(of_model))) for name, of_model in sorted(parts.items())]
    for broken in plans.store.set_aside():
        found.append(
            _plans("broken", State.OPTIONAL, f"{broken.name}: {broken.reason}", "zoetrope plans prune removes it")
        )
    return found


def model_findings() -> list[Finding]:
    """Bundled models, and the cache of downloaded ones."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE

        from pipelines.files.hub import bundled_names
    except ImportError:
        return []
    names = bundled_names()
    cache = Path(HF_HUB_CACHE)
    folder = cache if cache.exists() else Path.home()
    free_gib = shutil.disk_usage(folder).free / _GIB
    downloaded = len(list(cache.glob("models--*"))) if cache.exists() else 0
    return [
        _models("bundled", State.OK, ", ".join(names))
        if names
        else _models("bundled", State.MISSING, "none", "Clone the repository again: assets/models/ is empty."),
        _models("cache", State.OK, f"{cache}: {downloaded} downloaded, {free_gib:.0f} GiB free"),
    ]


def report_text(findings: list[Finding], *, fine: bool) -> str:
    """The report as text."""
    marks = {State.OK: "ok  ", State.OPTIONAL: "-   ", State.MISSING: "MISS"}
    lines, section = [], ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines.append(f"\n{section}")
        remedy = f"  -> {finding.remedy}" if finding.remedy and finding.state is not State.OK else ""
        lines.append(f"  {marks[finding.state]}  {finding.name:<24}{finding.value}{remedy}")
    verdict = "Everything required is installed." if fine else "Something required is missing: see MISS above."
    return "\n".join(lines).lstrip("\n") + f"\n\n{verdict}\n"


def report_json(findings: list[Finding], *, fine: bool) -> str:
    """The report as JSON."""
    items = [{**asdict(finding), "state": finding.state.value} for finding in findings]
    return json.dumps({"ok": fine, "findings": items}, indent=2, ensure_ascii=False) + "\n"


def _in(section: str) -> Callable[..., Finding]:
    def make(name: str, state: State, value: str, remedy: str = "") -> Finding:
        return Finding(section=section, name=name, state=state, value=value, remedy=remedy)

    return make


_installed = _in("installed")
_machine = _in("this machine")
_used = _in("will be used")
_backends = _in("backends")
_plans = _in("plans")
_models = _in("models")
