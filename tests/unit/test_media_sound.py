"""Sound of every kind reaches every container: whole, in tune, at its time, and with a sentence where it is changed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from app.media.containers import CONTAINERS
from app.media.sound_choice import Sound, choose_sound
from app.media.video_writer import VideoPlan, VideoWriter
from tests.fakes.clips import picture

TONE_HZ = 440
_CHUNK = 1024


def soak(*case: object) -> object:
    """A variant that runs with the soak tests."""
    return pytest.param(*case, marks=pytest.mark.soak)


def make_sound(
    path: Path,
    encoder: str,
    *,
    rate: int = 48000,
    layout: str = "stereo",
    seconds: float = 2.0,
    start_s: float = 0.0,
    hole_s: tuple[float, float] | None = None,
    container_format: str | None = None,
) -> Path:
    """Write a file with a picture and a tone in all channels. hole_s: from when to when there is no sound."""
    with av.open(str(path), "w", format=container_format) as container:
        video = container.add_stream("mpeg4", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(encoder, rate=rate)
        audio.codec_context.layout = layout
        audio.codec_context.bit_rate = 64_000
        for index in range(round(seconds * 24)):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = index + round(start_s * 24), Fraction(1, 24)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        resampler = av.AudioResampler(format=audio.codec_context.format.name, layout=layout, rate=rate)
        channels = av.AudioLayout(layout).nb_channels
        for first in range(0, round(seconds * rate), _CHUNK):
            count = min(_CHUNK, round(seconds * rate) - first)
            if hole_s is not None and hole_s[0] <= first / rate < hole_s[1]:
                continue
            wave = 0.3 * np.sin(2 * np.pi * TONE_HZ * (np.arange(first, first + count) / rate))
            sound = av.AudioFrame.from_ndarray(
                np.repeat(wave.astype(np.float32), channels)[None], format="flt", layout=layout
            )
            sound.sample_rate, sound.time_base, sound.pts = rate, Fraction(1, rate), first + round(start_s * rate)
            for resampled in resampler.resample(sound):
                container.mux(audio.encode(resampled))
        container.mux(audio.encode(None))
    return path


def brought(source: Path, output: Path, *, seconds: float = 2.0) -> list[str]:
    """Write pictures and the sound of `source`; returns the writer's sentences."""
    scratch = output.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    plan = VideoPlan(
        kind=CONTAINERS[output.suffix],
        size=(64, 48),
        frame_rate=Fraction(24),
        time_base=Fraction(1, 24),
        sound=Sound(path=source, origin_s=_origin_s(source)),
    )
    writer = VideoWriter(output, scratch, plan, keep=False, keep_last_piece=False)
    for index in range(round(seconds * 24)):
        writer.write(picture(index), index, 1)
    writer.finish(complete=True)
    assert not list(scratch.iterdir())
    return writer.remarks()


def _origin_s(source: Path) -> Fraction:
    with av.open(str(source)) as container:
        video = container.streams.video[0]
        return Fraction(video.start_time or 0) * Fraction(video.time_base)


class Heard:
    """The sound of a file as a player decodes it."""

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            self.codec = stream.codec_context.codec.canonical_name
            frames = list(container.decode(stream))
            self.rate, self.layout = frames[-1].sample_rate, frames[-1].layout.name
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=48000)
            self.start_s = float(frames[0].pts * frames[0].time_base)
            parts = [part for frame in frames for part in resampler.resample(frame)] if self._steady(frames) else []
        self.wave = np.concatenate([part.to_ndarray()[0] for part in parts]) if parts else np.zeros(0)

    @staticmethod
    def _steady(frames: list[av.AudioFrame]) -> bool:
        return len({(frame.sample_rate, frame.layout.name) for frame in frames}) == 1

    @property
    def seconds(self) -> float:
        return len(self.wave) / 48000

    @property
    def tone_hz(self) -> float:
        spectrum = np.abs(np.fft.rfft(self.wave * np.hanning(len(self.wave))))
        return float(spectrum.argmax() * 48000 / len(self.wave))

    def loud(self, from_s: float, to_s: float) -> bool:
        part = self.wave[round((from_s - self.start_s) * 48000) : round((to_s - self.start_s) * 48000)]
        return bool(np.sqrt((part**2).mean()) > 0.05)


@pytest.mark.parametrize(
    ("source", "encoder", "rate", "output", "codec"),
    [
        ("a.ts", "aac", 48000, ".mp4", "aac"),  # ADTS headers
        ("a.ts", "aac", 44100, ".mov", "aac"),
        soak("a.ts", "aac", 32000, ".mkv", "aac"),
        soak("a.ts", "aac", 48000, ".webm", "opus"),
        ("a.wmv", "wmav2", 44100, ".mp4", "aac"),  # frames without times at the end
        ("a.asf", "wmav1", 44100, ".webm", "opus"),
        soak("b.asf", "wmav2", 32000, ".mov", "aac"),
        soak("b.wmv", "wmav2", 22050, ".mkv", "aac"),
        ("a.mov", "pcm_s24le", 192000, ".mp4", "aac"),  # AAC ends at 96 kHz
        soak("a.mov", "pcm_s16le", 176400, ".webm", "opus"),
        ("a.mov", "pcm_s24le", 192000, ".mov", "pcm_s24le"),
        soak("a.mov", "pcm_s16be", 48000, ".mov", "pcm_s16be"),
        ("a.avi", "libmp3lame", 11025, ".mp4", "aac"),  # MP4 takes MP3 from 16 kHz on
        ("a.avi", "libmp3lame", 8000, ".mov", "mp3"),
        soak("a.avi", "libmp3lame", 8000, ".mkv", "mp3"),
        ("a.mkv", "libmp3lame", 44100, ".mp4", "mp3"),
        ("a.mkv", "pcm_s16le", 4000, ".mp4", "aac"),
        soak("a.mkv", "flac", 96000, ".mp4", "aac"),
        soak("a.mkv", "alac", 96000, ".mp4", "alac"),
        soak("a.ts", "mp2", 48000, ".mp4", "aac"),
    ],
)
def test_sound_of_any_codec_and_rate(
    tmp_path: Path, source: str, encoder: str, rate: int, output: str, codec: str
) -> None:
    clip = make_sound(tmp_path / source, encoder, rate=rate)
    said = brought(clip, tmp_path / f"out{output}")
    heard = Heard(tmp_path / f"out{output}")
    assert heard.codec == codec
    assert heard.seconds == pytest.approx(2.0, abs=max(0.08, 2600 / rate))  # codecs fill up their last frames
    assert heard.start_s == pytest.approx(0, abs=0.05)
    assert heard.tone_hz == pytest.approx(TONE_HZ, abs=2)
    copied = codec == (encoder if encoder != "libmp3lame" else "mp3")
    assert [sentence for sentence in said if "is encoded again as" in sentence] == ([] if copied else said)
    assert bool(said) != copied


@pytest.mark.parametrize(
    ("encoder", "layout", "output", "heard"),
    [
        ("ac3", "5.1(side)", ".mp4", "5.1(side)"),  # copied
        ("ac3", "5.1(side)", ".webm", "5.1"),
        ("flac", "5.1", ".mp4", "5.1"),
        soak("flac", "7.1", ".webm", "7.1"),
        soak("flac", "5.0", ".mov", "5.0"),
        soak("flac", "mono", ".mp4", "mono"),
        ("flac", "quad", ".mp4", "stereo"),
        ("pcm_s16le", "2.1", ".webm", "stereo"),  # read back as "3 channels"
    ],
)
def test_channels_are_kept_or_their_loss_is_said(
    tmp_path: Path, encoder: str, layout: str, output: str, heard: str
) -> None:
    clip = make_sound(tmp_path / "a.mkv", encoder, layout=layout, seconds=1)
    said = " ".join(brought(clip, tmp_path / f"out{output}", seconds=1))
    assert Heard(tmp_path / f"out{output}").layout == heard
    if heard != layout:
        assert f"48000 Hz {'3 channels' if layout == '2.1' else layout}) is encoded again as" in said
        assert f"48000 Hz {heard}:" in said


def joined(folder: Path, *parts: tuple[str, int, str], restart: bool = False) -> Path:
    """Two seconds each of these sounds (encoder, rate, layout), one after the other, as a broadcast is recorded."""
    whole = folder / "joined.ts"
    data = b""
    for index, (encoder, rate, layout) in enumerate(parts):
        start_s = 0 if restart else 2.0 * index
        file = make_sound(folder / f"{index}.ts", encoder, rate=rate, layout=layout, start_s=start_s)
        data += file.read_bytes()
    whole.write_bytes(data)
    return whole


@pytest.mark.parametrize(
    ("parts", "output"),
    [
        soak((("mp2", 48000, "stereo"), ("mp2", 44100, "mono")), ".mp4"),
        ((("ac3", 48000, "5.1(side)"), ("ac3", 48000, "stereo")), ".webm"),
        soak((("ac3", 44100, "stereo"), ("ac3", 48000, "5.1(side)")), ".webm"),
        ((("aac", 48000, "stereo"), ("aac", 44100, "mono")), ".mp4"),  # ADTS could be copied but for the change
        soak((("aac", 44100, "5.1"), ("aac", 44100, "stereo")), ".mov"),
    ],
)
def test_sound_that_changes_on_the_way_is_steady_in_the_output(
    tmp_path: Path, parts: tuple[tuple[str, int, str], ...], output: str
) -> None:
    clip = joined(tmp_path, *parts)
    said = brought(clip, tmp_path / f"out{output}", seconds=4)
    heard = Heard(tmp_path / f"out{output}")
    assert heard.seconds == pytest.approx(4.0, abs=0.1)
    assert heard.tone_hz == pytest.approx(TONE_HZ, abs=2)
    assert all(heard.loud(at, at + 0.2) for at in (0.5, 1.5, 2.3, 3.5))
    changed = [sentence for sentence in said if "changes on the way" in sentence]
    assert changed
    assert f"{parts[1][1]} Hz {parts[1][2]}" in changed[-1]


@pytest.mark.parametrize("output", [".mp4", soak(".mkv"), soak(".webm")])
def test_sound_goes_on_where_its_clock_was_restarted(tmp_path: Path, output: str) -> None:
    clip = joined(tmp_path, ("aac", 48000, "mono"), ("aac", 48000, "mono"), restart=True)
    brought(clip, tmp_path / f"out{output}", seconds=4)
    heard = Heard(tmp_path / f"out{output}")
    assert heard.seconds == pytest.approx(4.0, abs=0.15)
    assert heard.loud(3.2, 3.7)


@pytest.mark.parametrize(("encoder", "output"), [("pcm_s16le", ".mp4"), soak("flac", ".webm"), soak("aac", ".mov")])
def test_a_hole_stays_a_hole_and_what_follows_is_in_time(tmp_path: Path, encoder: str, output: str) -> None:
    clip = make_sound(tmp_path / "a.mkv", encoder, seconds=3, hole_s=(1.0, 2.0))
    brought(clip, tmp_path / f"out{output}", seconds=3)
    with av.open(str(tmp_path / f"out{output}")) as container:
        loud = [
            float(frame.pts * frame.time_base)
            for frame in container.decode(audio=0)
            if np.abs(frame.to_ndarray()).max() > 0.05
        ]
    assert not [at for at in loud if 1.1 < at < 1.9]
    assert [at for at in loud if 2.1 < at < 2.9]
    assert max(loud) == pytest.approx(3.0, abs=0.08)


def test_damaged_sound_is_passed_over_and_said(tmp_path: Path) -> None:
    clip = make_sound(tmp_path / "a.mkv", "flac", seconds=3)
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
        for packet in packets[len(packets) // 3 : len(packets) // 3 + 3]:
            at = data.index(bytes(packet))
            data[at : at + packet.size] = b"\x5a" * packet.size
    clip.write_bytes(bytes(data))
    said = brought(clip, tmp_path / "out.mp4", seconds=3)
    assert any("3 damaged packets, which are left out" in sentence for sentence in said)
    heard = Heard(tmp_path / "out.mp4")
    assert heard.seconds == pytest.approx(3.0, abs=0.1)
    assert heard.loud(2.5, 2.8)


def test_sound_of_which_nothing_can_be_decoded_is_dropped_with_a_sentence(tmp_path: Path) -> None:
    clip = make_sound(tmp_path / "a.mkv", "flac", seconds=1)
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        for packet in [packet for packet in container.demux(audio=0) if packet.size]:
            at = data.index(bytes(packet))
            data[at : at + packet.size] = b"\x5a" * packet.size
    clip.write_bytes(bytes(data))
    (said,) = brought(clip, tmp_path / "out.mp4", seconds=1)
    assert said.endswith("cannot be read (nothing in it can be decoded): the output has no sound.")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(container.streams.video) == 1
        assert not container.streams.audio


def test_sound_of_an_unknown_codec_is_dropped_with_a_sentence(tmp_path: Path) -> None:
    clip = make_sound(tmp_path / "a.mkv", "flac", seconds=1)
    clip.write_bytes(clip.read_bytes().replace(b"A_FLAC", b"A_XXXX"))
    (said,) = brought(clip, tmp_path / "out.mkv", seconds=1)
    assert said.endswith("cannot be read (its codec is unknown here): the output has no sound.")


def test_copying_costs_no_sentence(tmp_path: Path) -> None:
    clip = make_sound(tmp_path / "a.ts", "aac", seconds=1)
    choice = choose_sound(Sound(path=clip, origin_s=Fraction(0)), CONTAINERS[".mov"])
    assert choice.copies
    assert choice.notice == ""


@pytest.mark.parametrize("encoder", ["aac", "flac"])
def test_quicktime_files_are_tagged_as_players_expect(tmp_path: Path, encoder: str) -> None:
    clip = make_sound(tmp_path / "a.mkv", encoder, seconds=1)
    output = tmp_path / "out.mov"
    brought(clip, output, seconds=1)
    data = output.read_bytes()
    assert data[4:12] == b"ftypqt  "
    assert data.index(b"moov") < data.index(b"mdat")
    assert b"moof" not in data
    assert b"avc1" in data
    assert b"mp4a" in data
    with av.open(str(output)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert container.streams.audio[0].codec_context.codec.canonical_name == "aac"
