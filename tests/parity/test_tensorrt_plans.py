"""TensorRT-RTX builds real plans on a machine without a card; store, faults and explanations work with those plans.

Of mini-image, of a pass of mini-video with its past, and of an autoencoder of TAESD's shape."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import nn

from app.__main__ import main
from pipelines.backends.plan_keys import plan_key
from pipelines.backends.recipes import RECIPES
from pipelines.backends.tensorrt import TensorRTRecipe
from pipelines.core.errors import ModelError
from pipelines.core.parts import Part
from pipelines.files.loader_options import LoaderOptions
from pipelines.image.loading.networks import CODECS
from pipelines.image.parts import decode_part, encode_part
from pipelines.plans import check
from pipelines.plans.commands import BuiltPlan, PlanRequest, Plans
from pipelines.plans.parts import model_parts
from trt.build import PLAN_FILE, BuildOptions, PlanDescription, build_plan
from trt.errors import PlanError
from trt.export import export_onnx
from trt.key import PlanKey
from trt.library import load_library
from trt.store import PlanStore

pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is not installed")
pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]
RTX = TensorRTRecipe(name="tensorrt-rtx")
SIZES = [pytest.param(64, id="64 pixels"), pytest.param(0, id="native", marks=pytest.mark.soak)]
"""Of the bundled models' pictures. Their networks in float16, with which exports are compared, are slow on a CPU."""


def quiet(text: str) -> None:
    """Show no progress."""


@pytest.fixture(scope="module")
def taesd() -> tuple[Part, Part]:
    """Decoder and encoder of TAESD's shape, random weights in float16, for a picture of 128×128."""
    torch.manual_seed(0)
    autoencoder = AutoencoderTiny().eval().requires_grad_(False).half()
    codec = CODECS["AutoencoderTiny"](autoencoder, dtype=torch.float16, device=torch.device("cpu"))
    assert isinstance(codec, nn.Module)
    return decode_part(codec, torch.randn(1, 4, 16, 16)), encode_part(codec, torch.rand(1, 3, 128, 128) * 2 - 1)


@dataclass(frozen=True)
class Built:
    """Plans that were built once for this module."""

    plans: Plans
    request: PlanRequest
    built: list[BuiltPlan]
    said: list[str]

    @property
    def arguments(self) -> list[str]:
        """What `zoetrope plans` is told to mean them, without the slots."""
        size = self.request.options.width
        sized = ["--size", f"{size}x{size}"] if size else []
        folder = str(self.plans.store.root)
        return ["mini-image", "--backend", "tensorrt-rtx", "--device", "cpu", *sized, "--folder", folder]


@pytest.fixture(scope="module", params=SIZES)
def mini_image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    said: list[str] = []
    plans = Plans(tmp_path_factory.mktemp("plans"), notice=said.append)
    options = LoaderOptions(device="cpu", width=request.param, height=request.param)
    wanted = PlanRequest(model="mini-image", backend="tensorrt-rtx", options=options, slots=(2,))
    return Built(plans, wanted, list(plans.build(wanted, said.append)), said)


def test_plans_of_mini_image(mini_image: Built) -> None:
    assert [plan.part for plan in mini_image.built] == ["encode", "denoise", "decode"]
    for wanted, plan in zip(mini_image.plans.wanted(mini_image.request), mini_image.built, strict=True):
        part = wanted.part
        assert plan.seconds > 0
        folder = mini_image.plans.store.find(wanted.key)
        assert folder is not None
        description = PlanDescription.read(folder)
        assert description.inputs == tuple(f"in_{name}" for name in part.inputs)
        assert description.check.endswith("dB (float16)")  # what a card uses by default, on this machine too
        read = {name for name, _ in part.module.named_parameters() if plan.part in ("denoise", name.split(".")[2][:6])}
        weights = sum(p.numel() for name, p in part.module.named_parameters() if name in read) * 2
        assert (folder / PLAN_FILE).stat().st_size > 0.9 * weights
    assert "denoise: Building engine: 50%" in mini_image.said
    again = list(mini_image.plans.build(mini_image.request, quiet))
    assert [plan.seconds for plan in again] == [0.0] * 3  # a second load of the model has the same keys


@pytest.mark.soak
@pytest.mark.parametrize("size", SIZES)
def test_a_pass_of_mini_video_with_its_past(tmp_path: Path, size: int) -> None:
    options = LoaderOptions(device="cpu", width=size, height=size)
    (part,) = model_parts("mini-video", options, dtype=torch.float16, slots=(), notice=quiet).parts
    assert part.inputs["past_keys"].shape[2] > 0
    store = PlanStore(tmp_path)
    folder = store.build(plan_key(RTX, part, "mini-video"), lambda folder: RTX.build(part, [], folder, quiet))
    assert PlanDescription.read(folder).outputs == ("out_velocity", "out_keys", "out_values")
    assert store.verify() == []


def test_plans_of_an_autoencoder_of_taesd_s_shape(
    taesd: tuple[Part, Part], decoder_store: Path, tmp_path: Path
) -> None:
    store, encoder = PlanStore(tmp_path), taesd[1]
    store.build(plan_key(RTX, encoder, "taesd"), lambda folder: RTX.build(encoder, [], folder, quiet))
    for root, part in ((tmp_path, "encode"), (decoder_store, "decode")):
        assert [entry.key.part for entry in PlanStore(root).entries()] == [part]
        assert PlanStore(root).verify() == []


# -- keys and explanations ---------------------------------------------------------------------------------------------


def changed(part: Part, **inputs: torch.Tensor) -> Part:
    return replace(part, inputs={**part.inputs, **inputs})


@pytest.fixture(scope="module")
def decoder_store(taesd: tuple[Part, Part], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, part = tmp_path_factory.mktemp("decoder"), taesd[0]
    PlanStore(folder).build(plan_key(RTX, part, "taesd"), lambda folder: RTX.build(part, [], folder, quiet))
    return folder


@pytest.fixture
def stored(taesd: tuple[Part, Part], decoder_store: Path, tmp_path: Path) -> tuple[PlanStore, Part, PlanKey]:
    """A copy of a store with the decoder's plan."""
    shutil.copytree(decoder_store, tmp_path / "plans")
    return PlanStore(tmp_path / "plans"), taesd[0], plan_key(RTX, taesd[0], "taesd")


def test_what_changes_the_key_and_how_the_store_explains_it(stored: tuple[PlanStore, Part, PlanKey]) -> None:
    store, part, key = stored
    assert plan_key(RTX, part, "taesd") == key
    larger = plan_key(RTX, changed(part, latents=torch.randn(1, 4, 24, 16)), "taesd")
    assert str(store.why(larger)).endswith(
        "inputs: stored latents float32 [1, 4, 16, 16], wanted latents float32 [1, 4, 24, 16]"
    )
    turing = replace(RTX, options=BuildOptions(turing=True))
    assert {d.field for d in store.why(plan_key(turing, part, "taesd")).differences} == {"options", "device"}
    parameter = next(part.module.parameters())
    with torch.no_grad():
        saved = parameter.clone()
        parameter.flatten()[3] += 1
        assert [d.field for d in store.why(plan_key(RTX, part, "taesd")).differences] == ["weights"]
        parameter.copy_(saved)
    codec = part.module.codec
    codec._scaling *= 2  # type: ignore[operator]
    assert [d.field for d in store.why(plan_key(RTX, part, "taesd")).differences] == ["program"]
    codec._scaling /= 2  # type: ignore[operator]
    assert store.why(plan_key(RTX, part, "taesd", lora="style@0.8 merged")).differences[0].field == "lora"
    assert store.why(key).stored


def test_a_key_of_another_card_or_driver_does_not_find_the_plan(stored: tuple[PlanStore, Part, PlanKey]) -> None:
    store, _, key = stored
    for other in (
        replace(key, recipe="tensorrt", device="RTX 4090, compute capability 8.9", driver="580.1"),
        replace(key, device="compute capability 7.5"),
        replace(key, libraries="tensorrt-rtx 1.8.0"),
    ):
        assert store.find(other) is None
    # and the folder of one under the name of another is refused, not loaded
    theirs = replace(key, device="compute capability 7.5")
    ours = store.find(key)
    assert ours is not None
    folder = store.build(theirs, lambda folder: (folder / PLAN_FILE).write_bytes(b"theirs") and None)
    (folder.parent / "plan.json").write_text((ours.parent / "plan.json").read_text())
    assert store.find(theirs) is None
    assert "its key is another plan's" in str(store.why(theirs))


@pytest.mark.parametrize("spoil", ["truncated", "a flipped bit", "removed"])
def test_a_spoilt_plan_is_never_returned(stored: tuple[PlanStore, Part, PlanKey], spoil: str) -> None:
    store, _, key = stored
    folder = store.find(key)
    assert folder is not None
    file = folder / PLAN_FILE
    if spoil == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif spoil == "removed":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert store.find(key) is None
    assert store.entries() == []
    assert store.prune()[0].reason == "broken, and moved aside"


# -- builds that fail, are killed or interrupted -----------------------------------------------------------------------


def start_build(folder: Path, phase: str) -> subprocess.Popen[str]:
    """Start building mini-image's plans in a process, and wait until it is in that phase."""
    command = [sys.executable, "-m", "app", "plans", "build", "mini-image", "--backend", "tensorrt-rtx"]
    command += ["--device", "cpu", "--slots", "1", "--size", "64x64", "--folder", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(phase):
            return process
    raise AssertionError(f"{phase} never came")


@pytest.mark.soak
def test_a_build_that_is_killed_leaves_no_plan(tmp_path: Path) -> None:
    process = start_build(tmp_path, "encode: checking")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    store = PlanStore(tmp_path)
    assert store.entries() == []
    assert list((tmp_path / "building").rglob("model.onnx"))
    (left,) = store.prune()
    assert left.reason == "left by a killed build"
    assert list((tmp_path / "building").iterdir()) == []


@pytest.mark.soak
def test_a_build_can_be_interrupted(tmp_path: Path) -> None:
    """Within TensorRT, which Ctrl+C does not reach by itself; the plan before is complete."""
    process = start_build(tmp_path, "denoise: Building engine")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "zoetrope: interrupted" in said
    assert list((tmp_path / "building").iterdir()) == []
    assert {entry.key.part for entry in PlanStore(tmp_path).entries()} == {"encode"}


def test_failures_of_tensorrt_have_a_cause_and_a_remedy(taesd: tuple[Part, Part], tmp_path: Path) -> None:
    refit = replace(RTX, options=BuildOptions(refit=True))
    store, part = PlanStore(tmp_path), taesd[0]
    with pytest.raises(ModelError, match=r"cannot build the plan: .+") as caught:  # which takes a card
        store.build(plan_key(refit, part, "taesd"), lambda folder: refit.build(part, [], folder, quiet))
    assert "on a machine with the card" in caught.value.remedy
    assert store.entries() == []
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    exported = export_onnx(part.module, part.inputs, ("images",), damaged)
    os.truncate(exported.file, exported.file.stat().st_size // 2)
    with pytest.raises(PlanError, match="cannot read the exported graph"):
        build_plan(load_library("tensorrt-rtx"), exported, tmp_path, options=BuildOptions(), check="", report=quiet)


def test_an_export_that_computes_something_else_is_not_built(
    taesd: tuple[Part, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = taesd[0]
    training = part.module.codec.__class__.decode

    def wrong(self: nn.Module, latents: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = training(self, latents)
        return result if torch.compiler.is_exporting() else result * 1.02

    monkeypatch.setattr(part.module.codec.__class__, "decode", wrong)
    with pytest.raises(ModelError, match=r"computes something else than the network: .* 34 dB"):
        RTX.build(part, [], tmp_path, quiet)
    assert not (tmp_path / PLAN_FILE).exists()


def test_plans_do_not_run_without_a_card_and_the_full_library_does_not_build(
    stored: tuple[PlanStore, Part, PlanKey], tmp_path: Path
) -> None:
    store, part, key = stored
    folder = store.find(key)
    assert folder is not None
    with pytest.raises(ModelError, match="runs on an NVIDIA card only"):
        RTX.load(part, folder)
    with pytest.raises(ModelError, match="The package tensorrt is not installed") as caught:
        RECIPES["tensorrt"](torch.device("cpu"), False)
    assert "zoetrope[tensorrt]" in caught.value.remedy


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_lists_explains_verifies_and_prunes(mini_image: Built, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(mini_image.plans.store.root)]
    model = mini_image.arguments
    assert main(["plans", "list", *folder]) == 0
    assert "tensorrt-rtx  mini-image  denoise" in capsys.readouterr().out
    assert main(["plans", "why", *model, "--slots", "2,3"]) == 0
    said = capsys.readouterr().out
    assert said.count("It is stored") == 3
    assert "wanted" in said
    assert main(["plans", "build", *model, "--slots", "2"]) == 0
    assert capsys.readouterr().out.count("was stored") == 3
    assert main(["plans", "verify", *folder]) == 0
    assert main(["plans", "check", *model, "--slots", "2"]) == 1
    assert "runs on an NVIDIA card only" in capsys.readouterr().err
    assert main(["plans", "prune", "--keep-days", "1000", *folder]) == 0
    assert len(mini_image.plans.entries()) == 3
    for wrong, message in (("openvino-x", "No plans are built"), ("auto", "No plans are built")):
        assert main(["plans", "build", "mini-image", "--backend", wrong, *folder]) == 1
        assert message in capsys.readouterr().err
    assert main(["plans", "build", *model, "--slots", "0"]) == 1
    assert "Give numbers from 1" in capsys.readouterr().err


@pytest.mark.soak
def test_the_check_command_says_what_a_wrong_plan_computes(
    mini_image: Built, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With calls that run on the CPU in the place of loaded plans: right ones, then ones that are off by a percent."""
    command = ["plans", "check", *mini_image.arguments, "--slots", "2"]
    monkeypatch.setattr(check, "is_for_another_machine", lambda request: False)
    monkeypatch.setattr(check, "_RUNS", 1)
    monkeypatch.setattr(check, "_WARM_UP", 0)
    for factor, status in ((1.001, 0), (1.02, 1)):

        def load(self: TensorRTRecipe, part: Part, folder: Path, factor: float = factor) -> object:
            assert (folder / PLAN_FILE).is_file()
            return lambda *inputs: tuple(factor * output for output in part.module(*inputs))

        monkeypatch.setattr(TensorRTRecipe, "load", load)
        assert main(command) == status
        said = capsys.readouterr().out
        assert said.count("60.0 dB" if status == 0 else "34.0 dB of PyTorch's result, FAILED") == 3
        assert said.count("times as fast") == 3


@pytest.mark.soak
def test_a_full_disk_is_said_and_leaves_nothing(taesd: tuple[Part, Part], tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
from app.__main__ import main
command = ["plans", "build", "mini-image", "--backend", "tensorrt-rtx", "--device", "cpu", "--folder"]
sys.exit(main([*command, sys.argv[1]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "There is no space left for the plan" in done.stderr
    assert list((tmp_path / "building").iterdir()) == []
    assert PlanStore(tmp_path).entries() == []
