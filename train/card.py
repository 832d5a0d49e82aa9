"""Owns the text of the two model cards. Depends on the vocabulary and the measured figures, not on weights."""

from __future__ import annotations

from typing import Any

from .vocabulary import SUBJECTS
from .vocabulary_world import LIGHTS, PLACES, STYLES

_HEAD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# mini-image

A small few-step image model that ships with Zoetrope: text to image and image to image at 192x192 in 1 to 4 steps, in
the stock Stable Diffusion layout of diffusers. `StableDiffusionPipeline.from_pretrained("assets/models/mini-image")`
loads it; call it with `guidance_scale=1.0` and `num_inference_steps` from 1 to 4.

It was trained from nothing, by the code in train/, on one H100: autoencoder 1 minute, teacher 13 minutes, distillation
5 minutes (docs/mini-image.md has the recipe, docs/log.md the experiments). It is a toy world on purpose: what it can
draw is listed below, and nothing else.

## What it can do
- Draw one of its subjects in one of its places under one of its lights, in one of its styles: "a robot on the beach at
  sunset, pencil sketch". Each part can be left out: no place is a plain studio, no light is day, no style is plain.
- Redraw a camera picture or photograph in a style at moderate strength: "a photo, watercolour", strength 0.4 to 0.6.

## What it cannot do
- Anything outside its words: other things, people, text, counting, relations, several subjects, colours on demand.
- Faces and fine detail in photographs: the autoencoder keeps one number in twelve and the denoiser has 6 M parameters.
- Other sizes than 192x192 well.

"""


def model_card(figures: dict[str, Any] | None, captions: list[str]) -> str:
    """Markdown of assets/models/mini-image/README.md.

    figures: bench.mini_image's result, None before it has run. captions: of the sample sheet, empty without one.
    """
    lists = [
        f"**Subjects ({len(SUBJECTS)}):** " + ", ".join(s.name for s in SUBJECTS) + ".",
        f"**Places ({len(PLACES)}):** " + ", ".join(p.name for p in PLACES) + ", or none (a studio).",
        f"**Lights ({len(LIGHTS)}):** " + ", ".join(light.name for light in LIGHTS) + ".",
        f"**Styles ({len(STYLES) - 1} and plain):** " + ", ".join(style.name for style in STYLES) + ".",
        "Synonyms and wordings are in world.json; `photo` is the subject word for what a camera sees.",
    ]
    data = (
        "## Data and licences\n"
        "Scenes rendered by train/world.py from Microsoft's Fluent emoji (MIT) and procedural places; photographs\n"
        "from packages under free terms, each listed with its licence in assets/manifest.json. No other data.\n"
        "scikit-image's astronaut, chelsea and coffee were never trained on. Weights: Apache-2.0.\n"
    )
    samples = _samples(captions) if captions else ""
    return "".join([_HEAD, "## Vocabulary\n", "\n\n".join(lists), "\n\n", _measured(figures), data, samples])


def _samples(captions: list[str]) -> str:
    listed = "\n".join(f"{index}. {caption}" for index, caption in enumerate(captions, 1))
    return (
        "\n## Samples\n"
        "Held-out captions in 1, 2 and 4 steps (rows), from left to right:\n\n"
        f"{listed}\n\n![held-out captions](../../../docs/images/mini-image-captions.jpg)\n\n"
        "Unseen photographs (first row) at strength 0.5 in each style, 2 steps:\n\n"
        "![photographs](../../../docs/images/mini-image-photos.jpg)\n"
    )


def _measured(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "## Measured\nNot yet.\n\n"
    psnr, captions, photos = figures["psnr_db"], figures["captions"], figures["photographs"]
    lines = [
        "## Measured",
        f"`python -m bench.mini_image --json` ({figures['device']}, {figures['dtype']}):",
        "",
        f"- Autoencoder PSNR: astronaut {psnr['astronaut']:.1f}, chelsea {psnr['chelsea']:.1f}, coffee "
        f"{psnr['coffee']:.1f} dB (mean {psnr['photos_mean']:.1f}); fresh scenes {psnr['world_mean']:.1f} dB.",
        f"- {captions['count']} held-out captions, recognised by an independent classifier:",
        "",
        "| steps | subject | place | style |",
        "|---|---|---|---|",
    ]
    for steps in (1, 2, 4):
        row = captions[f"steps_{steps}"]
        lines.append(f"| {steps} | {row['subject']:.1%} | {row['place']:.1%} | {row['style']:.1%} |")
    lines.append("")
    for steps in (1, 2, 4):
        row = photos[f"steps_{steps}"]
        lines.append(
            f"- {photos['count']} unseen photographs x 6 styles, strength 0.5, steps {steps}: edge correlation "
            f"{row['edge_correlation']:.2f}, style recognised {row['style']:.1%}."
        )
    return "\n".join([*lines, "", ""])


def classifier_card(figures: dict[str, Any] | None) -> str:
    """Markdown of assets/models/mini-classifier/README.md."""
    text = (
        "# mini-classifier\n\n"
        "The independent judge of mini-image: a small residual network (train/classifier.py) that names subject,\n"
        "place and style of a 192x192 picture. Trained on rendered scenes of train/world.py only, with its own\n"
        "architecture and seed. Load it with `train.classifier.load_classifier`. Apache-2.0.\n"
    )
    if figures is None:
        return text
    rows = [
        f"- {name} scenes: subject {row['subject']:.1%}, place {row['place']:.1%}, style {row['style']:.1%}"
        for name, row in figures["judge"].items()
    ]
    return text + "\nRecognised, all combinations:\n" + "\n".join(rows) + "\n"
