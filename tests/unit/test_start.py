"""What starting imports: each process only what it uses; and deferring changes no weight and no frame.

Times are in `python -m bench.start`. Here modules are counted, in new processes that run what the program runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = (
    "import json, sys\ndef report(): sys.stdout.write(json.dumps(sorted(n for n, m in sys.modules.items() if m)))\n"
)
UNUSED = {
    "diffusers.models.autoencoders.autoencoder_kl_wan",
    "diffusers.models.transformers.transformer_flux",
    "diffusers.models.unets.unet_3d_condition",
    "diffusers.pipelines",
    "gradio",
    "matplotlib",
    "onnx",
    "openvino",
    "pandas.core",
    "peft",
    "scipy",
    "sklearn",
    "torch._dynamo.convert_frame",
    "torch._inductor",
    "torch.onnx",
    "torchvision",
}
"""What the first frame of a bundled model needs in no process."""
ENGINES = {"diffusers", "safetensors", "tokenizers", "torch", "transformers"}
"""What belongs to engines only."""


def ran(code: str, *arguments: str) -> Any:
    """Run code in a new process; return the JSON that is the last line of its output."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REPORT + code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_help_and_models_import_no_library_of_the_rest() -> None:
    code = """
from app.__main__ import build_parser
options = build_parser().parse_args(["models"])
build_parser().format_help()
report()
"""
    heavy = {"aiortc", "av", "cv2", "fastapi", "gradio", "uvicorn"} | ENGINES | UNUSED
    assert set(ran(code)) & heavy == set()


def test_a_render_reaches_its_last_frame_without_what_it_does_not_use(tmp_path: Path) -> None:
    code = """
from app.__main__ import main
assert main() == 0
report()
"""
    arguments = ["render", "--prompt-only", "--fps", "24", "--seconds", "0.05", f"{tmp_path / 'pictures'}/"]
    imported = set(ran(code, *arguments, "--model", "mini-image", "--prompt", "a robot", "--device", "cpu"))
    assert {"diffusers.models.unets.unet_2d_condition", "transformers.models.clip.modeling_clip"} <= imported
    assert imported & (UNUSED | {"aiortc", "fastapi", "transformers.models.umt5"}) == set()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1


def test_a_worker_is_ready_without_what_it_does_not_use() -> None:
    code = """
import multiprocessing
from app.worker.messages import StopWorker, WorkerReady
from app.worker.process import WorkerOptions, run_worker
from pipelines.files.loader_options import LoaderOptions
ours, theirs = multiprocessing.Pipe()
ours.send(StopWorker())
run_worker(theirs, WorkerOptions(model="mini-video", engine=LoaderOptions(device="cpu")))
messages = []
while ours.poll():
    messages.append(ours.recv())
assert any(isinstance(message, WorkerReady) for message in messages), messages
report()
"""
    imported = set(ran(code))
    assert "transformers.models.umt5.modeling_umt5" in imported
    assert imported & (UNUSED | {"aiortc", "diffusers", "fastapi", "transformers.models.clip"}) == set()


def test_the_front_serves_its_page_without_engines_and_tables() -> None:
    code = """
import uvicorn
from app.__main__ import main
uvicorn.Server.run = lambda server, sockets: report()
sys.argv[1:] = ["live", "--port", "0", "--no-open", "--model", "identity", "--data", sys.argv[1]]
assert main() == 0
"""
    imported = set(ran(code, "/nonexistent/data"))
    assert "gradio.components.slider" in imported
    assert imported & (ENGINES | (UNUSED - {"gradio"})) == set()


FRAMES = """
import hashlib
import numpy as np
import torch
from pipelines.core.controls import Control
from pipelines.load import load_engine
torch.set_num_threads(1)

def digest(arrays):
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()

def networks(value, seen):
    '''Every module that an object holds.'''
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, torch.nn.Module):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from networks(part, seen)
    elif type(value).__module__.split(".")[0] in ("pipelines", "cache"):
        names = [*getattr(value, "__dict__", ()), *getattr(value, "__slots__", ())]
        for name in names:
            yield from networks(getattr(value, name, None), seen)

def state(engine):
    for network in networks(engine, {}):
        for name, tensor in sorted(network.state_dict().items()):
            yield np.frombuffer(name.encode(), np.uint8)
            yield tensor.detach().to(torch.float64).numpy()

found = {}
for model in ("mini-image", "mini-video"):
    engine = load_engine(model, device="cpu", dtype="float32", width=64, height=64)
    with engine.open(Control.of({"prompt": "a robot on the beach", "seed": 3})) as stream:
        frames = []
        while not frames:
            stream.generate()
            engine.tick()
            frames = stream.pull()
        tensors = sum(1 for _ in state(engine)) // 2
        found[model] = [tensors, digest(state(engine)), digest(frame.image for frame in frames)]
    engine.close()
sys.stdout.write("\\n" + json.dumps(found))
"""


@pytest.mark.soak
def test_deferring_changes_no_weight_and_no_frame() -> None:
    whole = """
import torch._dynamo, diffusers.hooks, diffusers.models.autoencoders, diffusers.models.transformers
import diffusers.models.unets, transformers.models
assert "torch._dynamo.convert_frame" in sys.modules
"""
    deferred, plain = ran(FRAMES + "assert 'torch._dynamo.convert_frame' not in sys.modules"), ran(whole + FRAMES)
    assert deferred == plain
    assert all(tensors > 100 for tensors, _, _ in plain.values())


@pytest.mark.parametrize("also", ["", "import diffusers.models.unets.unet_2d_condition\n"])
def test_the_compiler_follows_marks_that_were_made_before_it_ran(also: str) -> None:
    code = """
from pipelines.core.light_imports import defer_unused_parts
defer_unused_parts()
import torch
@torch.compiler.allow_in_graph
def kept(x):
    return x.sin()
@torch.compiler.disable
def off(x):
    return x + (1 if torch.compiler.is_compiling() else 2)
@torch.compiler.disable()
def also_off(x):
    return x + (1 if torch.compiler.is_compiling() else 2)
assert 'torch._dynamo.convert_frame' not in sys.modules
assert off(torch.zeros(1)) == 2
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
assert torch.compile(lambda x: kept(x) + 1, backend=backend)(torch.zeros(1)) == 1
marked = [node.target for graph in graphs for node in graph.graph.nodes]
assert kept in marked, marked
assert torch.compile(lambda x: also_off(off(x)) + 1, backend=backend)(torch.zeros(1)) == 5
sys.stdout.write("true")
"""
    assert ran(code.replace("import torch\n", f"import torch\n{also}", 1))


def test_deferred_libraries_still_have_everything() -> None:
    code = """
from pipelines.core.light_imports import defer_unused_parts
defer_unused_parts()
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip import modeling_clip
import diffusers, transformers
assert diffusers.UNet2DConditionModel is UNet2DConditionModel
assert transformers.CLIPTextModel is modeling_clip.CLIPTextModel
assert transformers.models.clip.modeling_clip is modeling_clip
from diffusers import AutoencoderKLWan, StableDiffusionPipeline, WanTransformer3DModel
from diffusers.hooks import FirstBlockCacheConfig, apply_group_offloading
from diffusers.models import UNet3DConditionModel
from transformers import AutoModel, AutoTokenizer, CLIPTokenizer
sys.stdout.write("true")
"""
    assert ran(code)
