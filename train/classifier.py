"""Owns the independent judge: a small residual network that classifies subject, place and style of a picture.

Trained on rendered scenes only, with its own architecture and seed, independently of the generator.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .bank import SourceMaterial, random_scenes, uniform
from .budget import TimeBudget
from .networks import IMAGE_SIZE_PX
from .session import Average, TrainingSession, adamw, set_rate, warm_cosine
from .world import SceneSpec

STAGE = "classifier"
SEED = 20_011
PEAK_RATE = 3e-3
WIDTHS = (24, 48, 96, 160, 256)
HEADS = ("subject", "place", "style")


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm; halves the resolution when stride is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y = self.second_norm(self.second(functional.relu(self.first_norm(self.first(x)))))
        shortcut = functional.avg_pool2d(x, 2) if y.shape[-1] < x.shape[-1] else x
        return functional.relu(y + self.skip(shortcut))


class Classifier(nn.Module):
    """Pictures [B, 3, 192, 192] in 0..1 to logits (subject [B, S + 1], place [B, P + 1], style [B, Y]).

    Index 0 of subject and place means none; index 0 of style is plain.
    """

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.stem = nn.Conv2d(3, WIDTHS[0], 5, stride=2, padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(WIDTHS[0])
        self.stages = nn.Sequential(*(Residual(a, b, 2) for a, b in itertools.pairwise(WIDTHS)))
        self.heads = nn.ModuleList(nn.Linear(2 * WIDTHS[-1], n) for n in sizes)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the three heads over mean- and max-pooled features."""
        x = functional.relu(self.stem_norm(self.stem(pictures * 4 - 2)))
        x = self.stages(x)
        features = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        subject, place, style = (head(features) for head in self.heads)
        return subject, place, style


def labels(spec: SceneSpec) -> Tensor:
    """Class indices int64 [B, 3] of a spec: subject + 1, place + 1, style."""
    return torch.stack([spec.subject + 1, spec.place + 1, spec.style], 1)


def save_classifier(model: Classifier, folder: Path) -> None:
    """Write model.safetensors (float16) and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    config = {"heads": dict(zip(HEADS, model.sizes, strict=True)), "widths": WIDTHS, "size_px": IMAGE_SIZE_PX}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_classifier(path: Path) -> Classifier:
    """The classifier of a folder written by save_classifier: float32, on the CPU, in evaluation mode."""
    sizes = json.loads((path / "config.json").read_text(encoding="utf-8"))["heads"]
    model = Classifier((sizes["subject"], sizes["place"], sizes["style"]))
    model.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in load_file(path / "model.safetensors").items()}
    )
    return model.eval()


@torch.no_grad()
def predict(model: Classifier, pictures: Tensor, chunk: int = 64) -> Tensor:
    """Class indices int64 [B, 3] of pictures [B, 3, 192, 192] in 0..1."""
    rows = [torch.stack([logits.argmax(1) for logits in model(part)], 1) for part in torch.split(pictures, chunk)]
    return torch.cat(rows)


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Random flips, small shifts and scales, colour jitter, rescaling blur on a third, and noise; pictures in 0..1."""
    n, size = pictures.shape[0], IMAGE_SIZE_PX
    scale, shift = uniform(n, 0.85, 1.12, generator).flatten(), 0.12 * (uniform(2 * n, -1, 1, generator).view(n, 2))
    flip = torch.where(uniform(n, 0, 1, generator).flatten() < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(scale)
    matrix = torch.stack(
        [torch.stack([scale * flip, zero, shift[:, 0]], 1), torch.stack([zero, scale, shift[:, 1]], 1)], 1
    )
    grid = functional.affine_grid(matrix, [n, 3, size, size], align_corners=False)
    pictures = functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    middle = pictures.mean((1, 2, 3), keepdim=True)
    pictures = middle + (pictures - middle) * uniform(n, 0.85, 1.15, generator) + uniform(n, -0.05, 0.05, generator)
    third = n // 3
    if third:
        soft = functional.avg_pool2d(pictures[:third], 2)
        soft = functional.interpolate(soft, size=size, mode="bilinear", align_corners=False)
        mix = uniform(third, 0, 1, generator)
        pictures = torch.cat([pictures[:third] * (1 - mix) + soft * mix, pictures[third:]])
    noise = torch.randn(pictures.shape, generator=generator, device=pictures.device)
    return (pictures + uniform(n, 0, 0.04, generator) * noise).clamp(0, 1)


def render_bank(source: SourceMaterial, count: int, chunk: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(uint8 [count, 3, 192, 192], labels int64 [count, 3]) of training combinations."""
    pictures, truth = [], []
    for start in range(0, count, chunk):
        spec, _, styled, _ = random_scenes(source, min(chunk, count - start), generator)
        pictures.append((styled.clamp(0, 1) * 255).round().byte())
        truth.append(labels(spec))
    return torch.cat(pictures), torch.cat(truth)


def train_classifier(
    session: TrainingSession, source: SourceMaterial, sizes: tuple[int, int, int], seconds: float
) -> Classifier:
    """Train for seconds (including rendering) on rendered scenes; save it and return it in evaluation mode."""

    def render(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return render_bank(source, session.scale.classifier_bank, session.scale.chunk, generator)

    return fit_classifier(session, STAGE, render, sizes, seconds)


Render = Callable[[torch.Generator], tuple[Tensor, Tensor]]
"""Pictures uint8 [n, 3, 192, 192] and their labels int64 [n, 3]."""


def fit_classifier(
    session: TrainingSession,
    stage: str,
    render: Render,
    sizes: tuple[int, int, int],
    seconds: float,
    *,
    start: Mapping[str, Tensor] | None = None,
) -> Classifier:
    """Train for seconds (including rendering) on batches of `render`; save it as stage and return it in evaluation
    mode. start: initial weights if the stage has no checkpoint.
    """
    device, budget = session.device, TimeBudget(seconds)
    generator = torch.Generator(device).manual_seed(SEED)
    pictures, truth = render(generator)
    session.log(stage, event="rendered", pictures=float(truth.shape[0]), took=budget.elapsed())
    torch.manual_seed(SEED)
    model = Classifier(sizes)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    continued = session.restore(stage, model=model)
    if start is not None and not continued:
        model.load_state_dict(start)
        continued = True
    peak = PEAK_RATE * (0.4 if continued else 1.0)
    optimiser = adamw(list(model.parameters()), peak, device)
    average = Average(model.parameters(), decay=0.998)
    running = True
    while running:
        set_rate(optimiser, peak * warm_cosine(budget.steps, budget.fraction()))
        rows = torch.randint(truth.shape[0], (session.scale.batch,), generator=generator, device=device)
        batch = augment(pictures[rows].float() / 255, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(batch)
        losses = [
            functional.cross_entropy(o.float(), truth[rows, i], label_smoothing=0.05) for i, o in enumerate(logits)
        ]
        loss = losses[0] + 0.5 * losses[1] + 0.5 * losses[2]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        average.update()
        running = budget.tick()
        if budget.steps % (4 * session.scale.log_every) == 0 or not running:
            session.log(stage, step=float(budget.steps), loss=float(loss.detach()))
    average.swap()
    recalibrate(model, pictures, generator)
    session.save(stage, model=model)
    return model


@torch.no_grad()
def recalibrate(model: Classifier, pictures: Tensor, generator: torch.Generator) -> None:
    """Recompute the batch norms' statistics for the averaged weights, then switch to evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    for _ in range(24):
        rows = torch.randint(pictures.shape[0], (128,), generator=generator, device=pictures.device)
        model(augment(pictures[rows].float() / 255, generator).contiguous(memory_format=torch.channels_last))
    model.eval()
