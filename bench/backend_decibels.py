"""Measures what OpenVINO's form of each part of a bundled model costs in its picture, in decibels against PyTorch's.

`python -m bench.backend_decibels mini-image --json` builds the plans that are missing, runs each part on inputs that
calibration has not seen (the same recording with another seed), and compares the pictures that follow from the results:
a denoiser's estimate and an encoder's latents are decoded by PyTorch's decoder, a pass gives x - v / 2, half way to a
clean picture. Clean passes, whose velocity nobody uses, are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench.backend_quality import prepared
from pipelines.backends.calibration.image import image_samples
from pipelines.backends.calibration.video import video_samples
from pipelines.backends.openvino.recipe import OpenVINORecipe
from pipelines.backends.plan_keys import plan_key
from pipelines.core.parts import Part, PartCall, Tensors
from pipelines.files.vocabulary import world_file
from pipelines.load import load_engine
from pipelines.video.codecs.codec import decode_clip
from pipelines.video.codecs.parts import decode_step
from pipelines.video.codecs.tiny import TinyVideoCodec
from pipelines.video.part_denoiser import one_row_part
from trt.store import PlanStore

RECIPES: Mapping[str, OpenVINORecipe] = {
    "openvino": OpenVINORecipe(quantised=True),
    "openvino-bf16": OpenVINORecipe(quantised=False),
}
_ROWS = {"denoise": 2, "encode": 1, "decode": 1}
Pictures = Callable[[Tensors, Tensors], torch.Tensor]
"""(inputs, outputs of a part) -> pictures [N, ...] in [0, 1]."""


def image_parts(count: int) -> list[tuple[Part, Sequence[Tensors], Pictures]]:
    """Return mini-image's parts, unseen inputs of each, and how its results become pictures."""
    core: Any = load_engine("mini-image", backend="openvino", device="cpu", prepare=False, notice=_quiet).core  # type: ignore[attr-defined]
    names = {"denoise": ("latents", "timestep", "embeds"), "encode": ("images",), "decode": ("latents",)}
    samples = image_samples(core.model, _ROWS, count, seed=1)

    def decoded(inputs: Tensors, outputs: Tensors) -> torch.Tensor:
        pictures: torch.Tensor = core.codec.decode(outputs[0]) / 2 + 0.5
        return pictures

    return [
        (
            core.part(name, dict(zip(names[name], samples[name][0], strict=True))),
            samples[name],
            (lambda inputs, outputs: outputs[0] / 2 + 0.5) if name == "decode" else decoded,
        )
        for name in _ROWS
    ]


def video_parts(count: int) -> list[tuple[Part, Sequence[Tensors], Pictures]]:
    """Return mini-video's pass and decoding step, as `image_parts` does."""
    core: Any = load_engine("mini-video", backend="eager", device="cpu", notice=_quiet).core  # type: ignore[attr-defined]
    model, codec, frames = core.model, core.model.codec, core.preset.chunk_frames
    assert isinstance(codec, TinyVideoCodec)
    past = core.preset.window_frames - frames
    denoise = one_row_part(model.transformer, frames=frames, past_frames=past, latent_size=core.latent_shape[1:])
    decode = decode_step(codec, frames=frames, height=core.height, width=core.width)
    samples = video_samples(model, [denoise, decode], count, world=world_file("mini-video"), seed=1)
    clean = model.transformer.condition_embedder.time(torch.zeros(1, frames))[0]
    used = [sample for sample in samples["pass"] if (sample[1] - clean).norm() > 0.4 * clean.norm()]
    return [
        (denoise, used, lambda inputs, outputs: decode_clip(codec, inputs[0] - outputs[0] / 2)),
        (decode, samples["decode"], lambda inputs, outputs: outputs[0].float() / 255),
    ]


def decibels(call: PartCall, part: Part, samples: Sequence[Tensors], pictures: Pictures) -> list[float]:
    """Return the PSNR of each picture (of each chunk of a video) of a call against the part's own."""
    values = []
    for sample in samples:
        got, wanted = (
            pictures(sample, tuple(tensor.clone() for tensor in run(*sample))) for run in (call, part.module)
        )
        errors = (got - wanted).square().flatten(1).mean(1)
        values += [float(value) for value in -10 * torch.log10(errors + 1e-10)]
    return values


@torch.no_grad()
def main() -> None:
    """Print mean and worst of each part."""
    parser = argparse.ArgumentParser(prog="python -m bench.backend_decibels", description=__doc__)
    parser.add_argument("model", choices=["mini-image", "mini-video"])
    parser.add_argument("--backend", choices=RECIPES, default="openvino")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--json", action="store_true", help="one line instead of an indented listing")
    options = parser.parse_args()
    prepared(options.model, options.backend).close()
    recipe, found = RECIPES[options.backend], {}
    for part, samples, pictures in (image_parts if options.model == "mini-image" else video_parts)(options.samples):
        folder = PlanStore().find(plan_key(recipe, part, options.model))
        if folder is None:
            raise SystemExit(f"{part.name} is not stored: zoetrope plans build {options.model} --backend {recipe.name}")
        values = sorted(decibels(recipe.load(part, folder), part, samples, pictures))
        found[part.name] = {
            "mean_db": round(statistics.mean(values), 1),
            "worst_db": [round(value, 1) for value in values[:3]],
            "pictures": len(values),
        }
    result = {"bench": "backend_decibels", "model": options.model, "backend": options.backend, **found}
    print(json.dumps(result, indent=None if options.json else 1))


def _quiet(text: str) -> None:
    """Notices are not part of the result."""


if __name__ == "__main__":
    main()
