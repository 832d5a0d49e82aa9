"""A model family in one file and one row: "posterise:N" reduces pictures to N tones of each colour.

Run it:  python examples/add_a_model_family.py PICTURE OUTPUT.png posterise:4

To ship a family, move it to a file in pipelines/kinds/ and add a row to MODEL_KINDS there; the command line, the
worker, takes and `zoetrope models` then support it. A family with a network overrides `weight_files` and keeps the
default of `uses_torch`; see pipelines/kinds/image.py.
"""

import re
import sys

import cv2
import numpy as np

from pipelines.core.contracts import Engine
from pipelines.core.controls import Controls
from pipelines.core.types import Frame
from pipelines.files.loader_options import LoaderOptions
from pipelines.identity import IdentityEngine
from pipelines.kinds import MODEL_KINDS, LoadContext, ModelKind
from pipelines.load import load_engine


class PosteriseEngine(IdentityEngine):
    """Inherits streams, slots and accounting from the identity engine; only the picture differs."""

    def __init__(self, tones: int, *, model: str, width: int, height: int) -> None:
        super().__init__(model=model, width=width, height=height)
        self._step = 255 / (tones - 1)

    def draw(self, image: np.ndarray, controls: Controls) -> np.ndarray:
        """Blend the reduced tones with the picture by the control `strength` (1: reduced tones only)."""
        tones = np.round(image / self._step) * self._step
        return (image + controls.strength * (tones - image)).round().astype(np.uint8)


class PosteriseKind(ModelKind):
    """The row: which names are its models, and how they are loaded."""

    name = "posterise"
    uses_torch = False
    built_in = ("posterise:4",)

    def recognises(self, model: str) -> bool:
        return re.fullmatch(r"posterise:([2-9]|[1-9]\d)", model) is not None

    def load(self, model: str, options: LoaderOptions, context: LoadContext) -> Engine:
        tones = int(model.partition(":")[2])
        return PosteriseEngine(tones, model=model, width=options.width or 192, height=options.height or 192)


def main(source: str, target: str, model: str) -> None:
    image = np.ascontiguousarray(cv2.imread(source)[..., ::-1])
    kinds = (PosteriseKind(), *MODEL_KINDS)  # before the most general kind, which accepts any name
    engine = load_engine(model, kinds=kinds, width=image.shape[1], height=image.shape[0])
    with engine.open() as stream:
        stream.push(Frame(image=image, pts=0, time_base=1 / stream.info.frame_rate, seq=0))
        cv2.imwrite(target, stream.flush()[0].image[..., ::-1])
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
