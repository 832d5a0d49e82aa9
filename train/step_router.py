"""Owns the training of a router for caching across steps (HarmoniCa, Huang et al. 2024, arXiv 2410.01723): which parts
of the UNet are computed at which step, learned on the model's own cached trajectories, without pictures.

``python -m train.step_router`` trains the bundled model's and writes the table into its step profile; minutes on a CPU.
Two parts are routed at each step: the network's output, and the deep feature below a branch. A trajectory advances with
the routed output, so later steps see the error of earlier ones; each step's error counts by how much caching at that
step changes the final latents.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.step_caches import CALIBRATION, FOLDER, MODEL
from cache.features.steps.router import RouterTable, mixed, route, router_loss
from pipelines.image.loading.load import LoadOptions, load_image_model
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.model import Condition, ImageModel
from pipelines.image.noise import NoiseSource
from pipelines.image.shallow_unet import BranchedUNet
from pipelines.image.step_profile import PROFILE_FILE, StepProfile
from pipelines.image.steps import STEP_FUNCTIONS, StepCoefficients, plan

_LIMIT = 5.0  # of the parameters, as in the paper's code


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """What a trajectory needs. plan: its T steps. costs: of output and deep feature, shares of a whole pass."""

    denoiser: UNetDenoiser
    network: BranchedUNet
    plan: tuple[StepCoefficients, ...]
    embeds: torch.Tensor
    costs: torch.Tensor

    def inputs(self, x: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Sample, timestep and other inputs of the network."""
        t = torch.full((len(x),), self.plan[step].timestep)
        sample, named = self.denoiser.network_inputs(
            x, Condition(embeds=self.embeds, pooled=None, time_ids=None, row=t, step=t)
        )
        return sample, t, named

    def clean(self, x: torch.Tensor, prediction: torch.Tensor, step: int) -> torch.Tensor:
        """x0."""
        t = torch.full((len(x),), self.plan[step].timestep)
        return self.denoiser.clean(x, prediction, t)

    def advanced(self, x: torch.Tensor, x0: torch.Tensor, step: int) -> torch.Tensor:
        """The latents of the next step."""
        k = self.plan[step]
        return k.a_next * x0 + k.w_eps * (x - k.a * x0) / k.b


def make_bench(model: ImageModel, profile: StepProfile, branch: int, prompts: Sequence[str]) -> Bench:
    """Set up the trajectories of these prompts at the profile's steps."""
    denoiser = model.runtime.denoiser
    assert isinstance(denoiser, UNetDenoiser)
    denoiser.requires_grad_(False)
    network = BranchedUNet(denoiser.unet, branch)
    embeds = torch.stack([model.prompts.encode(prompt).embeds for prompt in prompts])
    bench = Bench(
        denoiser=denoiser,
        network=network,
        plan=plan(STEP_FUNCTIONS["ddim"], model.schedule, profile.timesteps),
        embeds=embeds,
        costs=torch.ones(2),
    )
    return replace(bench, costs=_costs(bench, _noise(model, len(prompts), 0)))


@torch.no_grad()
def _costs(bench: Bench, x: torch.Tensor) -> torch.Tensor:
    """Shares of a whole pass that the output alone, and the deep feature, take, counted in operations."""
    sample, t, named = bench.inputs(x, 0)
    with FlopCounterMode(display=False) as whole:
        _, deep, _ = bench.network.full(sample, t, **named)
    with FlopCounterMode(display=False) as above:
        bench.network.shallow(sample, t, deep, **named)
    share = above.get_total_flops() / whole.get_total_flops()
    return torch.tensor([share, 1 - share])


def _noise(model: ImageModel, rows: int, seed: int) -> torch.Tensor:
    factor = model.runtime.codec.factor
    shape = (model.runtime.codec.latent_channels, model.size_px[1] // factor, model.size_px[0] // factor)
    return torch.cat([NoiseSource(1, shape, 1).locked(1000 + rows * seed + row, 1).entry for row in range(rows)])


@torch.no_grad()
def final_latents(bench: Bench, x: torch.Tensor, table: RouterTable) -> torch.Tensor:
    """Render with a static table; what is off is taken from the last step that computed it."""
    deep = prediction = torch.empty(0)
    for step, (output, below) in enumerate(table.on):
        sample, t, named = bench.inputs(x, step)
        if below:
            prediction, deep, _ = bench.network.full(sample, t, **named)
        elif output:
            prediction, _ = bench.network.shallow(sample, t, deep, **named)
        x = bench.advanced(x, bench.clean(x, prediction, step), step)
    return x


def step_weights(bench: Bench, x: torch.Tensor, table: RouterTable) -> list[float]:
    """lambda of each step, as many as there are in sum: the squared change of the final latents when the step is cached
    as the table says too, beside all later ones."""
    on = [(True, True)] * len(table.on)
    before, weights = final_latents(bench, x, RouterTable(on=tuple(on))), [0.0] * len(on)
    for step in reversed(range(1, len(on))):
        if all(table.on[step]):
            weights[step] = weights[step + 1] if step + 1 < len(on) else 0.0
            continue
        on[step] = (table.on[step][0], table.on[step][1])
        now = final_latents(bench, x, RouterTable(on=tuple(on)))
        weights[step], before = float((now - before).square().mean()), now
    scale = len(weights) / (sum(weights) or 1.0)
    return [weight * scale for weight in weights]


def train_epoch(
    bench: Bench,
    x: torch.Tensor,
    router: torch.Tensor,
    optimiser: torch.optim.Optimizer,
    weights: Sequence[float],
    beta: float,
) -> None:
    """One trajectory along the routed outputs; one update from all its steps."""
    probabilities, errors = torch.sigmoid(router), []
    with torch.no_grad():
        sample, t, named = bench.inputs(x, 0)
        held, deep, _ = bench.network.full(sample, t, **named)
        x = bench.advanced(x, bench.clean(x, held, 0), 0)
    for step in range(1, len(bench.plan)):
        sample, t, named = bench.inputs(x, step)
        with torch.no_grad():
            target, fresh, _ = bench.network.full(sample, t, **named)
        routed_deep = mixed(fresh, deep, probabilities[step, 1])
        output, _ = bench.network.shallow(sample, t, routed_deep, **named)
        routed = mixed(output, held, probabilities[step, 0])
        errors.append((routed - target).square().mean())
        held, deep = routed.detach(), routed_deep.detach()
        with torch.no_grad():
            x = bench.advanced(x, bench.clean(x, held, step), step)
    loss = router_loss(errors, weights[1:], probabilities[1:], bench.costs, beta)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    with torch.no_grad():
        router.clamp_(-_LIMIT, _LIMIT)


def train(bench: Bench, model: ImageModel, options: argparse.Namespace) -> Iterator[RouterTable]:
    """Train; gives the table after each epoch."""
    rows, steps = len(bench.embeds), len(bench.plan)
    router = torch.zeros((steps, 2), requires_grad=True)
    optimiser = torch.optim.AdamW([router], lr=options.rate, weight_decay=0.0)
    weights: list[float] = []
    for epoch in range(options.epochs):
        if epoch % options.reweigh == 0:
            ranked = RouterTable(on=((True, True), *[(False, False)] * (steps - 1))) if epoch == 0 else _table(router)
            weights = step_weights(bench, _noise(model, rows, epoch), ranked)
        train_epoch(bench, _noise(model, rows, epoch + 1), router, optimiser, weights, options.beta)
        table = _table(router)
        share = sum(bench.costs[part].item() for row in table.on for part in (0, 1) if row[part]) / steps
        sys.stderr.write(f"epoch {epoch + 1}: {share:.0%} of the work\n")
        yield table


def _table(router: torch.Tensor) -> RouterTable:
    """The table at the threshold 1/2: with so few updates the probabilities do not reach the ends."""
    return route(torch.sigmoid(router.detach()), threshold=0.5)


def main() -> None:
    """Parse the command line, train, and write the table into the profile after each epoch."""
    parser = argparse.ArgumentParser(
        prog="python -m train.step_router", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branch", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--reweigh", type=int, default=8, help="epochs between estimates of the steps' weights")
    parser.add_argument("--rate", type=float, default=0.4, help="learning rate")
    parser.add_argument("--beta", type=float, default=0.0025, help="price of computing")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER / PROFILE_FILE, help="the profile to add the table to")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = load_image_model(MODEL, LoadOptions(device="cpu", dtype="float32"))
    profile = StepProfile.read(options.out)
    bench = make_bench(model, profile, options.branch, CALIBRATION[: options.prompts])
    for table in train(bench, model, options):
        on = tuple((bool(output), bool(deep)) for output, deep in table.on)
        replace(profile, router=on, router_branch=options.branch).write(options.out)


if __name__ == "__main__":
    main()
