"""A conditioner in one file, for image and video models: words of the prompt shift the latents that the network sees.

    python examples/add_a_conditioner.py "a red ball, warm" out.png

To ship it, move the classes to a file in pipelines/conditioning/ and add a row to `CONDITIONERS` there and, for a new
control, a row to pipelines/core/control_table.py. No engine changes.
"""

import sys
from collections.abc import Mapping

import torch
from PIL import Image

from cache.ring import RingField
from pipelines.conditioning import CONDITIONERS
from pipelines.conditioning.base import (
    LATENT_BIAS,
    Conditioner,
    ConditionerFactory,
    EngineParts,
    Inputs,
    NewSlot,
    PassView,
    StreamConditioner,
    StreamPlace,
)
from pipelines.core.controls import Control, Controls
from pipelines.core.errors import ControlError
from pipelines.load import load_engine

WORDS = {"warm": 0.5, "cold": -0.5}


def word_bias(words: Mapping[str, float] = WORDS) -> ConditionerFactory:
    """words: what each word adds to the latents, whose variance is about 1."""
    return lambda parts: WordBias(parts, words)


class WordBias(Conditioner):
    """Slots keep the shift of the prompt with which they were admitted. Without any of the words frames do not
    change."""

    name = "word-bias"
    controls = frozenset({"prompt"})  # of the control table
    columns = ("amount",)  # one float for each row of a batch

    def __init__(self, parts: EngineParts, words: Mapping[str, float]) -> None:
        self.words = words
        self.fields = {"word_bias": RingField(shape=(parts.latent_shape[0], 1, 1))}  # one tensor for each slot

    def check(self, controls: Controls) -> None:
        found = self.found(controls)
        if len(found) > 1:
            raise ControlError(f"The prompt is both {' and '.join(sorted(found))}.", "Use one of these words.")

    def found(self, controls: Controls) -> dict[str, float]:
        """Return the weighted share of prompts with each word that occurs."""
        total = sum(prompt.weight for prompt in controls.prompt)
        shares = {word: sum(p.weight for p in controls.prompt if word in p.text.split()) for word in self.words}
        return {word: share / total for word, share in shares.items() if share}

    def stream(self, controls: Controls, place: StreamPlace) -> StreamConditioner:
        return WordBiasOfStream(self)

    def inputs(self, view: PassView) -> Inputs:
        amount = view.columns(self.name)[..., None, None]
        return {LATENT_BIAS: amount * view.field("word_bias")}


class WordBiasOfStream(StreamConditioner):
    """Stateless: everything follows from the controls with which a slot was admitted."""

    def __init__(self, conditioner: WordBias) -> None:
        self._conditioner = conditioner

    def write(self, slot: NewSlot, fields: Mapping[str, torch.Tensor]) -> None:
        found = self._conditioner.found(slot.controls)
        fields["word_bias"].fill_(sum(self._conditioner.words[word] for word in found))

    def columns(self, slot: NewSlot) -> tuple[float, ...]:
        return (sum(self._conditioner.found(slot.controls).values()),)


def main(prompt: str, target: str) -> None:
    engine = load_engine("mini-image", conditioners=(*CONDITIONERS, word_bias()))
    with engine.open(Control.of({"prompt": prompt})) as stream:
        stream.generate()
        Image.fromarray(stream.flush()[0].image).save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
