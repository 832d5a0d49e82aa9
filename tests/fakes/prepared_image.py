"""mini-image whose decoder is prepared by a recipe while its other parts run eagerly, for tests of takes and faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch

from pipelines.backends.base import Backend
from pipelines.backends.calibration.record import recorded
from pipelines.backends.openvino.recipe import OpenVINORecipe
from pipelines.backends.plan_keys import plan_key
from pipelines.backends.planned_image import planned_image
from pipelines.backends.recipe import Recipe
from pipelines.backends.table import BACKENDS, backend_table
from pipelines.files.loader_options import LoaderOptions
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageNetworks, ImageRuntime
from pipelines.image.runtime import plain_runtime
from pipelines.load import load_engine
from trt.key import PlanKey
from trt.store import PlanStore

OPTIONS = LoaderOptions(device="cpu", dtype="float32", backend="prepared")
INT8 = OpenVINORecipe(quantised=True, calibration_samples=4, loads_at_once=False)


@dataclass(frozen=True, kw_only=True)
class PreparedBackend(Backend):
    """Eager until the decoder's plan is ready. notices: what the user is told."""

    name: str = "prepared"
    purpose: str = "tests"
    recipe: Recipe
    notices: list[str] = field(default_factory=list)

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        assert networks.origin is not None
        options = replace(OPTIONS, backend="eager")  # the process that builds knows no backend of tests
        origin = replace(networks.origin, arguments={"model": "mini-image", "options": options, "prepare": False})
        networks = replace(networks, origin=origin, notice=self.notices.append)
        plain = replace(plain_runtime(networks), backend=self.name)
        return planned_image(networks, plain, {"decode": self.recipe})


def loads(recipe: Recipe, notices: list[str] | None = None) -> Callable[..., ImageEngine]:
    """Return `load_engine` with the backend "prepared". notices: what the user is told about plans."""
    backend = PreparedBackend(recipe=recipe, notices=[] if notices is None else notices)
    backends = backend_table(*BACKENDS.values(), backend)
    return cast("Callable[..., ImageEngine]", partial(load_engine, backends=backends, notice=lambda text: None))


def build_decoder(store: PlanStore, recipe: Recipe = INT8) -> PlanKey:
    """Build the plan of the decoder in this process, as the process beside a stream does; return its key."""
    engine = load_engine("mini-image", replace(OPTIONS, backend="eager"), notice=lambda text: None)
    assert isinstance(engine, ImageEngine)
    part = engine.core.part("decode", {"latents": torch.zeros(1, *engine.core.latent_shape)})
    samples = recorded(engine, part, recipe.samples) if recipe.samples else ()
    key = plan_key(recipe, part, "mini-image")
    store.build(key, lambda folder: recipe.build(part, samples, folder, lambda text: None))
    engine.close()
    return key
