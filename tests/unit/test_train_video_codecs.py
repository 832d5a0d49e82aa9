"""Whole clips with gradients equal streams; the bank samples its contents; both autoencoders learn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines.video.codecs.wan import WanCodec
from train.bank import PHOTO_SUBJECT, SourceMaterial
from train.clips.motions import ClipSpec
from train.clips.render import Clips
from train.session import FULL, TINY, TrainingSession
from train.video.autoencoder import PHASES, CodecTrainer
from train.video.bank import ClipBank, clip_bank, draw_windows, long_clips, openings, subject_coverage
from train.video.codec_losses import latent_loss, pixel_loss
from train.video.codecs import Codecs, Moments, codecs_in_use, load_codecs, measure_codecs, set_posterior_noise
from train.video.first_weights import begin_stock, begin_tiny
from train.video.networks import make_tiny_autoencoder, make_wan_autoencoder
from train.video.photo_clips import moving_views, photo_caption, styled_views
from train.video.pixel_bank import draw_clips, pixel_bank
from train.video.tokenizer import build_tokenizer, token_ids
from train.video.whole_clip import WholeClips, use_lean_norms
from train.vocabulary_world import STYLES

NARROW = {"base_dim": 8, "decoder_base_dim": 8}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def make_session(folder: Path) -> TrainingSession:
    scale = replace(TINY, video_clips=12, video_latents=3, video_chunk=4, video_codec_clips=4, video_codec_latents=2)
    return TrainingSession(device=CPU, out=folder, resume=folder / "none", scale=scale)


def make_source() -> SourceMaterial:
    """Return a source of three plain discs as sprites, and a photograph of noise."""
    line = torch.linspace(-1, 1, 40)
    alpha = (line.square() + line.square()[:, None] < 0.6).float()
    sprites = torch.stack([torch.cat([torch.rand(3, 1, 1) * alpha, alpha[None]]) for _ in range(3)])
    return SourceMaterial(sprites=sprites, photos=[(torch.rand(3, 230, 220) * 255).byte()])


@pytest.mark.parametrize("lean", [False, True])
def test_whole_clips_equal_diffusers_and_the_stream(lean: bool) -> None:
    """float32: latents differ by up to 4e-7, pixels by up to 4e-6, also with the norms of training."""
    vae = make_wan_autoencoder(**NARROW)
    clip = torch.rand(2, 3, 9, 32, 32)
    with torch.no_grad():
        latents = vae.encode(clip * 2 - 1).latent_dist.mode()
        decoded = vae.decode(latents).sample
        streamed = WanCodec(vae).encoder(height=32, width=32, rows=2).encode(clip)
    if lean:
        use_lean_norms(vae)
    whole = WholeClips(vae, clips=2, size_px=32)
    own = whole.encode(clip * 2 - 1)
    tolerance = 1e-5
    torch.testing.assert_close(own, latents, atol=tolerance, rtol=0)
    torch.testing.assert_close(whole.decode(own).clamp(-1, 1), decoded, atol=tolerance, rtol=0)
    torch.testing.assert_close(streamed, latents, atol=2e-6, rtol=0)
    whole.decode(own).square().mean().backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_lean_norms_keep_the_weights_names() -> None:
    vae = make_wan_autoencoder(**NARROW)
    names = list(vae.state_dict())
    use_lean_norms(vae)
    assert list(vae.state_dict()) == names


def test_posterior_has_one_small_deviation() -> None:
    vae = make_wan_autoencoder(**NARROW)
    set_posterior_noise(vae, 0.05)
    with torch.no_grad():
        posterior = vae.encode(torch.rand(1, 3, 1, 16, 16)).latent_dist
    torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, 0.05))


def test_moments_normalise_channel_by_channel() -> None:
    moments = Moments()
    raw = 3 + 2 * torch.randn(4, 16, 3, 8, 8)
    moments.move_towards(raw, 1.0)
    normal = moments.normalise(raw).transpose(0, 1).flatten(1)
    torch.testing.assert_close(normal.mean(1), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(1), torch.ones(16), atol=1e-5, rtol=0)


def test_losses_are_zero_for_what_is_right() -> None:
    clip = torch.rand(1, 3, 5, 16, 16)
    loss, squared = pixel_loss(clip, clip, torch.zeros(()))
    assert loss == squared == 0
    assert pixel_loss(clip.flip(2), clip, torch.zeros(()))[0] > 0
    white = torch.randn(8, 4, 4, 32, 32)
    assert latent_loss(white) < 0.01 < latent_loss(2 * white)


def test_views_move_smoothly_and_draws_are_windows_of_the_bank() -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 64).expand(4, 3, 64, 64).contiguous()
    views = moving_views(ramp, 9, 32, generator)
    assert views.shape == (4, 3, 9, 32, 32)
    assert float(views.diff(dim=2).abs().max()) < 0.1
    bank = torch.arange(6 * 8 * 8, dtype=torch.uint8).view(1, 1, 6, 8, 8).expand(2, 3, 6, 8, 8)
    clips = draw_clips(bank, 5, 3, 4)
    values = (clips * 255).round()
    assert clips.shape == (5, 3, 3, 4, 4)
    assert set(values.diff(dim=3).unique().tolist()) <= {8.0, 8.0 - 256}
    assert set(values.diff(dim=4).abs().unique().tolist()) <= {1.0, 255.0}


def test_pixel_bank_mixes_the_world_with_photographs_and_clutter(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    bank = pixel_bank(session, make_source(), session.generator(1), clips=8)
    assert bank.shape == (8, 3, 5, 128, 128)
    assert bank.dtype == torch.uint8
    assert int(bank.flatten(1).amax(1).min()) > 0


def small_bank(clips: int = 5, length: int = 6) -> ClipBank:
    """Return a bank of latents whose value encodes clip and time."""
    place = 100 * torch.arange(clips)[:, None] + torch.arange(length)
    return ClipBank(
        latents=place.half().view(clips, 1, length, 1, 1).expand(-1, 16, -1, 2, 2).contiguous(),
        ids=torch.arange(clips, dtype=torch.int16).view(-1, 1, 1).expand(-1, 4, 32).contiguous() + 3,
        actions=place.half()[..., None].expand(-1, -1, 5).contiguous(),
        coverage=torch.full((clips, 1, length, 2, 2), 255, dtype=torch.uint8),
        spec=torch.arange(clips)[:, None].expand(-1, 5).contiguous(),
        empty_ids=torch.tensor([1] + [0] * 31),
    )


def test_windows_are_cut_from_one_clip_each() -> None:
    windows = draw_windows(small_bank(), 400, 4, begin_share=0.25, empty_share=0.5)
    place = windows.latents[:, 0, :, 0, 0]
    assert torch.equal(place, 100.0 * windows.spec[:, :1] + windows.first[:, None] + torch.arange(4))
    assert torch.equal(windows.actions[..., 2], place)
    assert torch.equal(windows.begins, windows.first == 0)
    assert sorted(windows.first.unique().tolist()) == [0, 1, 2]
    assert 0.35 < float(windows.begins.float().mean()) < 0.65  # a quarter, and a third of the rest
    empty = windows.ids[:, 0] == 1
    assert torch.equal(windows.ids[~empty, 0], windows.spec[~empty, 0] + 3)
    assert 0.4 < float(empty.float().mean()) < 0.6
    assert torch.equal(windows.mask.sum(1), torch.where(empty, 1, 32))
    assert windows.coverage.shape == (400, 1, 4, 2, 2)


def test_a_draw_repeats_with_its_generator() -> None:
    first, second = (draw_windows(small_bank(), 8, 3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_clip_bank_renders_encodes_and_captions(tmp_path: Path) -> None:
    session, tokenizer = make_session(tmp_path), build_tokenizer()

    def encode(frames: Tensor) -> Tensor:
        assert frames.shape[2:] == (9, 128, 128)
        return (
            torch.nn.functional.adaptive_avg_pool3d(frames, (3, 16, 16))
            .mean(1, keepdim=True)
            .expand(-1, 16, -1, -1, -1)
        )

    bank = clip_bank(session, make_source(), encode, tokenizer, long_clips(session.scale))
    assert bank.latents.shape == (12, 16, 3, 16, 16)
    assert bank.ids.shape == (12, 4, 32)
    assert bank.actions.shape == (12, 3, 5)
    assert (bank.spec[:, 0] == PHOTO_SUBJECT).tolist() == [True] + [False] * 11
    assert not bank.coverage[0].any()
    assert torch.equal(bank.empty_ids, token_ids(tokenizer, [""])[0])
    assert json.loads((tmp_path / "curve.jsonl").read_text(encoding="utf-8"))["clips"] == 12


def test_photographs_in_motion_are_drawn_in_the_styles_that_their_captions_name() -> None:
    source, generator = make_source(), torch.Generator().manual_seed(2)
    groups = list(styled_views(source, 5, 2, generator, group=3))
    assert [frames.shape for _, frames in groups] == [(3, 3, 5, 128, 128), (2, 3, 5, 128, 128)]
    assert all(float(frames.min()) >= 0 and float(frames.max()) <= 1 for _, frames in groups)
    assert all((spec.subject == PHOTO_SUBJECT).all() and (spec.motion == 0).all() for spec, _ in groups)
    rng, names = random.Random(0), {style.name for style in STYLES[1:]}
    told = [photo_caption(2, rng) for _ in range(60)]
    assert "pixel art" in names & set(told)
    assert all("pixel" in text for text in told)
    assert any("photo" in text for text in told)


def test_a_bank_of_openings_holds_more_and_shorter_clips() -> None:
    long, short = long_clips(FULL), openings(FULL, 3)
    assert (short.latents, short.clips) == (3, FULL.video_openings)
    assert short.clips > 3 * long.clips
    assert short.group * short.latents == long.group * long.latents
    assert short.seconds == long.seconds / 2
    assert short.salt != long.salt


def test_coverage_follows_the_subject() -> None:
    frames = torch.zeros(2, 3, 5, 32, 32)
    subject = torch.tensor([8.0, 24.0]).expand(2, 5, 2)
    none = torch.full((2,), -1)
    spec = ClipSpec(torch.tensor([0, -1]), none, none, none, none)
    cover = subject_coverage(spec, Clips(frames, torch.zeros(2, 5, 3), subject), 4)
    assert cover.shape == (2, 1, 2, 4, 4)
    assert cover[0, 0, 1, 3, 0] > 200
    assert cover[0, 0, 1, 0, 3] == 0
    assert int(cover[1].amax()) == 0


def test_both_autoencoders_learn_from_a_clip_and_come_back_from_the_checkpoint(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    codecs = Codecs(vae=make_wan_autoencoder(**NARROW), tiny=make_tiny_autoencoder(), moments=Moments())
    bank = (moving_views(torch.rand(2, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3), 5, 32,
                         torch.Generator().manual_seed(0)) * 255).byte()  # fmt: skip
    trainer = CodecTrainer(session, codecs, bank)
    step = trainer.make_step(PHASES[1])
    for optimiser in trainer.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3
    sums = []
    for _ in range(12):
        trainer.sums.zero_()
        step()
        trainer.after_step(PHASES[1])
        sums.append(trainer.sums.clone())
    assert sums[-1][1] < sums[0][1]
    assert sums[-1][2] < sums[0][2]
    trainer.freeze_stock()
    frozen = [parameter.detach().clone() for parameter in trainer.masters[0].full]
    trainer.make_step(PHASES[2])()
    assert all(torch.equal(a, b) for a, b in zip(frozen, trainer.masters[0].full, strict=True))
    trainer.save(frozen=True)


def test_decoders_learn_on_latents_that_stay_as_they_are(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    codecs = Codecs(vae=make_wan_autoencoder(**NARROW), tiny=make_tiny_autoencoder(), moments=Moments())
    before = {name: values.clone() for name, values in codecs.vae.state_dict().items()}
    bank = torch.randint(0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8)
    trainer = CodecTrainer(session, codecs, bank, encoder=False)
    step = trainer.make_step(PHASES[1])
    for optimiser in trainer.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3
    step()
    trainer.after_step(PHASES[1])
    trainer.save(frozen=False)
    saved = {
        name.removeprefix("vae."): values
        for name, values in load_file(tmp_path / "video_autoencoder.safetensors").items()
        if name.startswith("vae.")
    }
    assert saved.keys() == before.keys()
    trainer.finish(frozen=False)
    for name, values in codecs.vae.state_dict().items():
        assert torch.equal(values, before[name]) == (not name.startswith(("decoder.", "post_quant_conv."))), name
        torch.testing.assert_close(values, saved[name].float(), atol=1e-3, rtol=1e-3)
    assert torch.equal(codecs.moments.mean, torch.zeros(16))


def test_what_was_trained_comes_back_for_inference(tmp_path: Path) -> None:
    from train.video.codecs import make_codecs, save_codecs

    session = make_session(tmp_path)
    codecs = make_codecs(session)
    codecs.moments.mean.fill_(0.5)
    save_codecs(session, codecs)
    loaded = load_codecs(session)
    assert loaded.vae.config.latents_mean == [0.5] * 16
    assert loaded.vae.dtype == torch.bfloat16
    clip = torch.rand(1, 3, 5, 32, 32)
    again = codecs_in_use(session, loaded)
    assert torch.equal(loaded.encode()(clip), again.encode()(clip))
    with pytest.raises(FileNotFoundError, match="video_autoencoder"):
        load_codecs(make_session(tmp_path / "nowhere"))
    assert callable(measure_codecs)


def test_first_weights_keep_signals_and_copy_frames_in_time() -> None:
    """A still clip begins with latents and pixels that are neither dead nor wild, and later frames alike."""
    vae, tiny = make_wan_autoencoder(**NARROW), make_tiny_autoencoder()
    begin_stock(vae)
    begin_tiny(tiny)
    still = torch.rand(2, 3, 1, 32, 32).expand(-1, -1, 9, -1, -1)
    whole = WholeClips(vae, clips=2, size_px=32)
    with torch.no_grad():
        latents, own = whole.encode(still * 2 - 1), tiny.encode(still)
        pixels, decoded = whole.decode(torch.randn_like(latents)), tiny.decode(torch.randn_like(latents))
    assert all(0.1 < float(x.std()) < 3 for x in (latents, own, pixels, decoded))
    assert abs(float(decoded.mean()) - 0.5) < 0.3
