"""Owns the wording of mini-video's model card. Knows the vocabulary and measured figures, no weights."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.conditioning.actions import ACTION_NAMES
from train.clips.motions import MOTIONS
from train.vocabulary import SUBJECTS
from train.vocabulary_world import LIGHTS, PLACES, STYLES

from .networks import TEXT_TOKENS, VIDEO_SIZE_PX

_HEAD = f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---

# mini-video

A small playable video world that ships with Zoetrope: a causal few-step video model at {VIDEO_SIZE_PX}x{VIDEO_SIZE_PX},
16 frames a second, in the stock Wan 2.1 layout of diffusers. Live: `zoetrope live --model mini-video`; as a file:
`zoetrope render --model mini-video --prompt-only --seconds 20 out.mp4`. diffusers loads the same folder:

```python
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained("assets/models/mini-video")
frames = pipe("a robot bouncing on the beach", height={VIDEO_SIZE_PX}, width={VIDEO_SIZE_PX}, num_frames=33,
              num_inference_steps=4, guidance_scale=1.0, max_sequence_length={TEXT_TOKENS}).frames[0]
```

That pipeline sees all frames at once, which the model was not trained for: it proves the layout, and looks worse. As
trained, latent frames come in chunks of three, each after four steps with fresh noise between them, then a pass at
time 0 that leaves its keys and values for the chunks to come; `zoetrope.json` names the family, whose preset says so.

## Parts

| folder | class | what it does |
|---|---|---|
| transformer | WanTransformer3DModel | 10 layers, 256 wide (4 heads of 64), text of {TEXT_TOKENS} tokens x 128 |
| vae | AutoencoderKLWan | frames [3, 1 + 4k, H, W] to latents [16, 1 + k, H / 8, W / 8] and back |
| tiny_vae | the taew2_1 kind, first frame repeated at the front | the same latents, for live use |
| text_encoder, tokenizer | UMT5EncoderModel, T5TokenizerFast | 2 layers, 128 wide; a word of the world is one token |
| actions | Zoetrope's own, beside the stock layout | five numbers a latent frame, added to the time embedding |

Actions, each -1 to 1 for each latent frame: {", ".join(ACTION_NAMES)}. Without the folder, or with zeros, nothing is
added.

"""
_LIMITS = """## What it cannot do
Anything outside its words: other things, people, text, counting, several subjects. Other sizes than its own well. It is
a toy world on purpose.

"""
_DATA = """## Data and licences
Clips rendered by train/clips from Microsoft's Fluent emoji (MIT) and procedural places. The autoencoders also saw
moving views of photographs from packages under free terms, each listed with its licence in assets/manifest.json. No
other data. Made by `python -m train.video.run` and `python -m train.video.publish`. Weights: Apache-2.0.
"""


def model_card(measured: Mapping[str, str] | None = None) -> str:
    """Markdown of assets/models/mini-video/README.md. measured: what -> its figure, as text; None before any were."""
    lists = [
        f"**Subjects ({len(SUBJECTS)}):** " + ", ".join(subject.name for subject in SUBJECTS) + ".",
        f"**Places ({len(PLACES)}):** " + ", ".join(place.name for place in PLACES) + ", or none (a studio).",
        f"**Lights ({len(LIGHTS)}):** " + ", ".join(light.name for light in LIGHTS) + ".",
        f"**Styles ({len(STYLES) - 1} and plain):** " + ", ".join(style.name for style in STYLES) + ".",
        f"**Motions ({len(MOTIONS)}):** " + ", ".join(motion.term.name for motion in MOTIONS) + ".",
    ]
    rows = [f"- {name}: {figure}" for name, figure in (measured or {}).items()]
    figures = "\n".join(["## Measured", *(rows or ["Not yet."]), "", ""])
    return "".join([_HEAD, "## Vocabulary\n", "\n\n".join(lists), "\n\n", _LIMITS, figures, _DATA])
