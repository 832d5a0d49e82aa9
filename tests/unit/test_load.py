"""Loading, compared with the parts of stock diffusers pipelines, for miniature models in the published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from pipelines.core.errors import ModelError, ModelLayoutError, UnsafeWeightsError
from pipelines.files import hub
from pipelines.image.loading.betas import schedule_config
from pipelines.image.loading.load import LoadOptions, load_image_model
from pipelines.image.loading.networks import guidance_scale_embedding
from pipelines.image.model import Condition, ImageModel
from pipelines.load import load_engine
from tests.fakes.tiny_models import (
    SD15_SCHEDULER,
    XL_TURBO_SCHEDULER,
    rename_keys,
    tiny_sd15,
    tiny_sd_turbo,
    tiny_sdxl_turbo,
    tiny_taesd,
    write_json,
)

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("models") / "sd15")


@pytest.fixture(scope="module")
def sd_turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd_turbo(tmp_path_factory.mktemp("models") / "sd-turbo")


@pytest.fixture(scope="module")
def sdxl_turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl_turbo(tmp_path_factory.mktemp("models") / "sdxl-turbo")


def load(folder: Path, **options: Any) -> tuple[ImageModel, list[str]]:
    notices: list[str] = []
    settings = {"device": "cpu", "dtype": "float32", "notice": notices.append, **options}
    return load_image_model(str(folder), LoadOptions(**settings)), notices


def condition(model: ImageModel, texts: list[str], time_ids: torch.Tensor | None = None) -> Condition:
    encoded = [model.prompts.encode(text) for text in texts]
    pooled = [prompt.pooled for prompt in encoded if prompt.pooled is not None]
    rows = torch.arange(len(texts))
    return Condition(
        embeds=torch.stack([prompt.embeds for prompt in encoded]),
        pooled=torch.stack(pooled) if pooled else None,
        time_ids=time_ids,
        row=rows,
        step=torch.zeros_like(rows),
    )


def difference(label: str, ours: torch.Tensor, stock: torch.Tensor) -> float:
    assert ours.shape == stock.shape
    gap = (ours - stock).detach().abs()
    print(f"{label}: max {gap.max():.2e}, mean {gap.mean():.2e}")  # noqa: T201
    return float(gap.max())


def stock_clean(prediction: torch.Tensor, x: torch.Tensor, t: int, config: dict[str, Any]) -> torch.Tensor:
    """Return x0 as computed by diffusers' own DDIM scheduler."""
    keys = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
    scheduler = DDIMScheduler(clip_sample=False, **{key: config[key] for key in keys})
    scheduler.set_timesteps(1000)
    return scheduler.step(prediction, t, x).pred_original_sample


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_denoiser_and_prompts_equal_stock_sd(tmp_path: Path, prediction_type: str) -> None:
    config = {**SD15_SCHEDULER, "prediction_type": prediction_type}
    folder = tiny_sd15(tmp_path, scheduler=config)
    model, _ = load(folder)
    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    texts, timesteps = ["a cat", "two dogs, at night"], [999, 259]
    stock_embeds, _ = stock.encode_prompt(texts, "cpu", 1, False)
    ours = condition(model, texts)
    assert difference("embeds", ours.embeds, stock_embeds) <= TOLERANCE
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    clean = model.runtime.denoiser(x, torch.tensor(timesteps), ours)
    with torch.no_grad():
        for row, t in enumerate(timesteps):
            out = stock.unet(x[row : row + 1], t, encoder_hidden_states=stock_embeds[row : row + 1]).sample
            expected = stock_clean(out, x[row : row + 1], t, config)[0]
            scale = max(1.0, float(expected.abs().max()))
            assert difference(f"x0 at {t}", clean[row], expected) <= TOLERANCE * scale


def test_turbo_prompts_pad_with_their_own_token(sd_turbo: Path) -> None:
    model, notices = load(sd_turbo)
    stock = StableDiffusionPipeline.from_pretrained(sd_turbo, safety_checker=None)
    stock_embeds, _ = stock.encode_prompt(["a cat!"], "cpu", 1, False)
    assert difference("embeds", condition(model, ["a cat!"]).embeds, stock_embeds) <= TOLERANCE
    assert stock.tokenizer.pad_token == "!"
    assert model.defaults["step_function"] == "turbo"
    assert model.defaults["steps"] == 1
    assert notices == []


def test_denoiser_and_prompts_equal_stock_sdxl(sdxl_turbo: Path) -> None:
    model, _ = load(sdxl_turbo)
    stock = StableDiffusionXLPipeline.from_pretrained(sdxl_turbo, scheduler=DDIMScheduler())
    texts = ["a cat", "a robot on the moon"]
    embeds, _, pooled, _ = stock.encode_prompt(texts, device="cpu", do_classifier_free_guidance=False)
    sizes = [(64, 64), (0, 0), (64, 64)]
    time_ids = stock._get_add_time_ids(*sizes, torch.float32, 40).expand(2, -1)
    ours = condition(model, texts, time_ids)
    assert ours.pooled is not None
    assert difference("embeds", ours.embeds, embeds) <= TOLERANCE
    assert difference("pooled", ours.pooled, pooled) <= TOLERANCE
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    clean = model.runtime.denoiser(x, torch.tensor([999, 999]), ours)
    added = {"text_embeds": pooled, "time_ids": time_ids}
    with torch.no_grad():
        out = stock.unet(x, 999, encoder_hidden_states=embeds, added_cond_kwargs=added).sample
    expected = stock_clean(out, x, 999, XL_TURBO_SCHEDULER)
    scale = max(1.0, float(expected.abs().max()))
    assert difference("x0", clean, expected) <= TOLERANCE * scale
    assert model.wants_time_ids
    assert model.defaults["step_function"] == "turbo"
    zeroed = model.runtime.denoiser(x, torch.tensor([999, 999]), condition(model, texts, torch.zeros(2, 6)))
    assert not torch.allclose(zeroed, clean, atol=1e-4)  # the sizes matter


@pytest.mark.parametrize("model_name", ["sd15", "sdxl_turbo"])
def test_codec_equals_stock(model_name: str, request: pytest.FixtureRequest) -> None:
    """In float64, where a different memory order of the weights causes only rounding errors."""
    folder = request.getfixturevalue(model_name)
    model, _ = load(folder, dtype="float64")
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float64)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(image).latent_dist.mode() * vae.config.scaling_factor
        decoded = vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)
    assert difference("latents", model.runtime.codec.encode(image), latents) <= 1e-9
    assert difference("pictures", model.runtime.codec.decode(latents), decoded) <= 1e-9
    assert (model.runtime.codec.latent_channels, model.runtime.codec.factor, model.size_px) == (4, 8, (64, 64))


def test_alphas_are_those_of_diffusers_to_the_last_bit() -> None:
    for config in (SD15_SCHEDULER, {**SD15_SCHEDULER, "beta_schedule": "linear"}):
        keys = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
        for zero_snr in (False, True):
            stock = EulerDiscreteScheduler(rescale_betas_zero_snr=zero_snr, **{key: config[key] for key in keys})
            ours = schedule_config({**config, "rescale_betas_zero_snr": zero_snr}).alphas_cumprod
            if zero_snr:
                np.testing.assert_allclose(ours, stock.alphas_cumprod.numpy(), rtol=1e-5)
            else:
                assert np.array_equal(ours, stock.alphas_cumprod.numpy().astype(np.float64))
    with pytest.raises(ModelLayoutError, match="beta_schedule 'sine' is unknown"):
        schedule_config({"beta_schedule": "sine"})


def test_guidance_embedding_is_that_of_the_lcm_pipeline() -> None:
    for width in (256, 7):
        stock = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([7.5]), width)
        torch.testing.assert_close(guidance_scale_embedding(7.5, width), stock, atol=0, rtol=0)


def test_an_undistilled_model_says_which_lora_it_needs(sd15: Path, tmp_path: Path) -> None:
    _, notices = load(sd15)
    assert notices == [notices[0]]
    assert "not distilled for few steps" in notices[0]
    lcm = {**SD15_SCHEDULER, "_class_name": "LCMScheduler"}
    model, notices = load(tiny_sd15(tmp_path, scheduler=lcm))
    assert notices == []
    assert (model.defaults["step_function"], model.defaults["steps"]) == ("lcm", 4)


def test_published_key_names_are_read(sd15: Path, tmp_path: Path) -> None:
    """Older releases prefix text networks, store position_ids, and name the autoencoder's attention differently."""
    folder = tiny_sd15(tmp_path)
    prefixed = {key: f"text_model.{key}" for key in ("embeddings.", "encoder.", "final_layer_norm.")}
    text_file = folder / "text_encoder" / "model.safetensors"
    if not any(key.startswith("text_model.") for key in load_file(text_file)):
        rename_keys(text_file, prefixed)
    rename_keys(text_file, {}, {"text_model.embeddings.position_ids": torch.arange(77)[None]})
    renamed = {}
    for side in ("encoder", "decoder"):
        block = f"{side}.mid_block.attentions.0."
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            renamed[f"{block}{new}."] = f"{block}{old}."
    rename_keys(folder / "vae" / "diffusion_pytorch_model.safetensors", renamed)
    published, _ = load(folder)
    current, _ = load(sd15)
    embeds = [model.prompts.encode("a cat").embeds for model in (published, current)]
    assert torch.equal(*embeds)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(published.runtime.codec.encode(image), current.runtime.codec.encode(image))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_listed(tmp_path: Path, change: str) -> None:
    folder = tiny_sd15(tmp_path)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    if change == "missing":
        del state["conv_in.weight"]
    elif change == "unexpected":
        state["conv_in.extra"] = torch.zeros(3)
    else:
        state["conv_in.weight"] = torch.zeros(5, 4, 3, 3)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ModelLayoutError, match="conv_in"):
        load(folder)


def test_pickles_are_refused_unless_insisted_on(tmp_path: Path) -> None:
    folder = tiny_sd15(tmp_path)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(UnsafeWeightsError, match=r"diffusion_pytorch_model\.bin is a pickle.*--allow-pickle"):
        load(folder)
    model, _ = load(folder, allow_pickle=True)
    x = torch.randn(1, 4, 8, 8)
    assert model.runtime.denoiser(x, torch.tensor([500]), condition(model, ["a cat"])).shape == x.shape


def test_half_precision_variant_and_shards_are_read(tmp_path: Path, sd15: Path) -> None:
    folder = tiny_sd15(tmp_path)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    halves = {key: value.half() for key, value in load_file(file).items()}
    save_file(halves, file.with_name("diffusion_pytorch_model.fp16.safetensors"), metadata={"format": "pt"})
    file.unlink()
    ours, _ = load(folder)
    full, _ = load(sd15)
    x, told = torch.randn(1, 4, 8, 8), condition(full, ["a cat"])
    gap = difference("fp16 file", *(model.runtime.denoiser(x, torch.tensor([200]), told) for model in (ours, full)))
    assert 0 < gap < 0.05


def test_another_autoencoder_can_be_chosen(sd15: Path, tmp_path: Path) -> None:
    model, _ = load(sd15, autoencoder=str(tiny_taesd(tmp_path / "taesd")))
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    latents = model.runtime.codec.encode(image)
    assert latents.shape == (2, 4, 8, 8)
    assert model.runtime.codec.decode(latents).abs().max() <= 1
    write_json(tmp_path / "other" / "config.json", {"_class_name": "AutoencoderDC"})
    with pytest.raises(ModelLayoutError, match="AutoencoderDC"):
        load(sd15, autoencoder=str(tmp_path / "other"))


def test_the_bundled_model_loads_in_the_best_format_of_this_cpu() -> None:
    model = load_image_model("mini-image", LoadOptions(device="cpu"))
    assert model.vocabulary == str(hub.BUNDLED_FOLDER / "mini-image" / "world.json")
    assert (model.defaults["step_function"], model.defaults["steps"], model.defaults["strength"]) == ("lcm", 2, 0.5)
    width, height = model.size_px
    factor = model.runtime.codec.factor
    latents = torch.randn(1, model.runtime.codec.latent_channels, height // factor, width // factor)
    clean = model.runtime.denoiser(latents, torch.tensor([999]), condition(model, ["a cat"]))
    assert clean.dtype is torch.float32
    assert clean.shape == latents.shape
    assert model.runtime.codec.decode(clean).shape == (1, 3, height, width)


def test_identity_needs_no_model() -> None:
    engine = load_engine("identity", width=64, height=48)
    with engine.open() as stream:
        assert (stream.info.width, stream.info.height) == (64, 48)
    engine.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "warp"}, "no backend named 'warp'"),
        ({"backend": "cuda-graph", "device": "cpu"}, "needs a CUDA device"),
        ({"backend": "fp8", "device": "cpu"}, "does not run image models"),
    ],
)
def test_backends_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_engine("mini-image", **options)
