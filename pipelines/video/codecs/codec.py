"""Owns the contracts of video autoencoders, the conversion of frame and latent counts, and the checks of their inputs.

Independent of architectures and weights. Latents are [B, C, n, h, w], normalised as for the diffusion transformer;
pixels are [B, 3, F, H, W] float32 in [0, 1]. The first latent of a stream covers 1 frame and each later one
`time_factor` frames (Wan 2.1: 1, 4, 4, ...).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch

from pipelines.core.errors import InputError

from .memory import CodecSnapshot, FeatureMemory


class RowState(Protocol):
    """What a streaming encoder and decoder share: one row of state for each stream."""

    rows: int
    height: int  # pixels
    width: int  # pixels

    @property
    def bytes(self) -> int: ...  # of all rows' state
    def latents_done(self, row: int) -> int: ...  # 0: the row's next call is its first
    def reset(self, row: int | None = None) -> None: ...
    def snapshot_buffers(self, device: torch.device | str | None = None) -> tuple[torch.Tensor, ...]: ...
    def snapshot(self, row: int, *, into: tuple[torch.Tensor, ...] | None = None) -> CodecSnapshot: ...
    def restore(self, row: int, snapshot: CodecSnapshot) -> None: ...


class VideoDecoder(RowState, Protocol):
    """Decodes latents to pixels, chunk by chunk, with the result of decoding the whole clip at once."""

    def decode(self, latents: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor: ...
    def run(self, latents: torch.Tensor, rows: torch.Tensor | None, *, first: bool) -> torch.Tensor: ...
    def advance(self, rows: Sequence[int] | None, latents: int) -> None: ...


class FrameDecoder(Protocol):
    """Decodes latents to uint8 frames, chunk by chunk. decoder: the state of its rows."""

    @property
    def decoder(self) -> RowState: ...

    def decode(self, latents: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """latents [B, C, n, h, w], an entry for each of `rows` (None: all) -> uint8 [B, F, H, W, 3] on the device,
        valid until the next call. Rows, frame counts and errors are those of `VideoDecoder.decode`.
        """
        ...


class VideoEncoder(RowState, Protocol):
    """Encodes pixels to latents, chunk by chunk, with the result of encoding the whole clip at once."""

    def encode(self, pixels: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor: ...
    def run(self, pixels: torch.Tensor, rows: torch.Tensor | None, *, first: bool) -> torch.Tensor: ...
    def advance(self, rows: Sequence[int] | None, latents: int) -> None: ...


class VideoCodec(Protocol):
    """A video autoencoder. Makes streaming encoders and decoders, each with rows for several streams."""

    latent_channels: int
    factor: int  # pixels of a side for one latent, 8
    time_factor: int  # frames of a latent after the first, 4
    encoder_delay_frames: int  # by how many frames a live encoder's latents lag; encode_clip's never do

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def decoder(self, *, height: int, width: int, rows: int = 1) -> VideoDecoder: ...
    def encoder(self, *, height: int, width: int, rows: int = 1) -> VideoEncoder: ...


def frames_of(latents: int, *, first: bool, time_factor: int = 4) -> int:
    """Return the number of frames that `latents` latents cover; first: the first of them begins a stream."""
    return latents * time_factor - (time_factor - 1 if first else 0)


def latents_of(frames: int, *, first: bool, time_factor: int = 4) -> int:
    """Return the number of latents that cover `frames` frames. Raises InputError unless it is 1 + 4k, then 4k."""
    extra = 1 if first else 0
    count, rest = divmod(frames - extra, time_factor)
    if frames >= 1 and not rest and count + extra >= 1:
        return count + extra
    below = max(frames - extra, 0) // time_factor * time_factor + extra
    fitting = [n for n in (below, below + time_factor) if n >= 1]
    where = f"the first call of a stream takes 1 + {time_factor}k" if first else f"later calls take {time_factor}k"
    raise InputError(
        f"{frames} frames cannot be encoded together: {where} frames.",
        f"Give {' or '.join(map(str, fitting))} frames, and keep the rest for the next call.",
    )


def check_frame_size(height: int, width: int, factor: int) -> None:
    """Raise InputError unless both sides are positive multiples of `factor` pixels."""
    if height >= factor and width >= factor and not height % factor and not width % factor:
        return
    near = [max(factor, round(side / factor) * factor) for side in (height, width)]
    raise InputError(
        f"{width}×{height} pixels cannot be encoded or decoded: both sides must be multiples of {factor}.",
        f"Use {near[1]}×{near[0]}.",
    )


def check_pixels(pixels: torch.Tensor, *, height: int, width: int, batch: int) -> None:
    """Raise InputError unless pixels are [batch, 3, F, height, width] floating point."""
    shape = tuple(pixels.shape)
    if pixels.dim() == 4:
        raise InputError(
            f"An image {shape} was given where a video [B, 3, F, H, W] is needed.",
            "Make it a video of one frame: image.unsqueeze(2); or use encode_image.",
        )
    if pixels.dim() != 5 or shape[1] != 3:
        raise InputError(
            f"Pixels of shape {shape} are not [B, 3, F, H, W].", "The second axis must be the three colour channels."
        )
    if not pixels.is_floating_point():
        raise InputError(
            f"Pixels are {pixels.dtype}.", "Give floats in [0, 1]; pixels.to_pixels converts uint8 frames."
        )
    _check_batch(shape, batch, "pixels")
    if shape[3:] != (height, width):
        raise InputError(
            f"Frames of {shape[4]}×{shape[3]} pixels were given to an encoder of {width}×{height}.",
            "Resize them, or open an encoder of that size.",
        )


def check_latents(latents: torch.Tensor, *, channels: int, height: int, width: int, batch: int) -> None:
    """Raise InputError unless latents are [batch, channels, n >= 1, height, width] (sizes in latents)."""
    shape = tuple(latents.shape)
    if latents.dim() == 4:
        raise InputError(
            f"Latents of an image {shape} were given where those of a video [B, C, n, h, w] are needed.",
            "Make them one latent frame: latents.unsqueeze(2).",
        )
    if latents.dim() != 5 or not shape[2]:
        raise InputError(f"Latents of shape {shape} are not [B, C, n, h, w] with n of at least 1.", "")
    if shape[1] != channels:
        hint = " The second axis seems to be the frames." if shape[2] == channels else ""
        raise InputError(
            f"Latents have {shape[1]} channels, this autoencoder has {channels}.{hint}",
            "Use the autoencoder that the transformer was trained with" + (", or swap the axes." if hint else "."),
        )
    _check_batch(shape, batch, "latents")
    if shape[3:] != (height, width):
        raise InputError(
            f"Latents of {shape[4]}×{shape[3]} were given to a decoder of {width}×{height} latents.",
            "Open a decoder of that size.",
        )


def _check_batch(shape: Sequence[int], batch: int, what: str) -> None:
    if shape[0] != batch:
        raise InputError(
            f"{shape[0]} batch entries of {what} were given for {batch} rows.",
            "Give one entry for each row, or name the rows: rows=[...].",
        )


class CodecStream(ABC):
    """Base of the streaming encoders and decoders: rows of state with their counts of latents.

    A call that fails midway leaves its rows partly advanced: reset or restore them. For a given number of frames, rows
    and `first`, `run` is a static program: it allocates no state, keeps none in Python and does not synchronise, so
    that it can be captured in a CUDA graph; whoever replays the graph calls `advance` for the counts.
    """

    def __init__(self, memory: FeatureMemory, *, height: int, width: int) -> None:
        self.rows = memory.rows
        self.height = height
        self.width = width
        self._memory = memory
        self._latents_done = [0] * memory.rows

    @abstractmethod
    def run(self, values: torch.Tensor, rows: torch.Tensor | None, *, first: bool) -> torch.Tensor:
        """Run the network. rows: [B] int64 on the state's device; None: all rows in order, which saves copies."""

    @property
    def bytes(self) -> int:
        """Size of the state of all rows."""
        return self._memory.bytes

    @property
    def memory(self) -> FeatureMemory:
        """The state tensors."""
        return self._memory

    def latents_done(self, row: int) -> int:
        """Number of latents that a row has processed since its reset."""
        return self._latents_done[row]

    def advance(self, rows: Sequence[int] | None, latents: int) -> None:
        """Count the latents that `run` has consumed or produced."""
        for row in self._numbers(rows):
            self._latents_done[row] += latents

    def reset(self, row: int | None = None) -> None:
        """Clear the state, so that the next call of this row (None: of every row) is a first call."""
        for number in self._numbers(None if row is None else [row]):
            self._memory.clear(number)
            self._latents_done[number] = 0

    def snapshot_buffers(self, device: torch.device | str | None = None) -> tuple[torch.Tensor, ...]:
        """Allocate buffers for one snapshot. device: e.g. the CPU if memory is short; None: the state's own."""
        return self._memory.snapshot_buffers(device)

    def snapshot(self, row: int, *, into: tuple[torch.Tensor, ...] | None = None) -> CodecSnapshot:
        """Return a copy of a row's state, for `restore`. into: its `snapshot_buffers`, which invalidates an earlier
        snapshot in them; None: new memory."""
        features = self.snapshot_buffers() if into is None else into
        self._memory.copy_row(row, features)
        return CodecSnapshot(features=features, latents_done=self._latents_done[row])

    def restore(self, row: int, snapshot: CodecSnapshot) -> None:
        """Restore a snapshot, which may be of any row of a `CodecStream` of the same codec and size."""
        shapes = tuple(tuple(feature.shape) for feature in snapshot.features)
        if shapes != self._memory.shapes:
            raise InputError("The snapshot is of another size or another autoencoder.", "Take a new one.")
        self._memory.load_row(row, snapshot.features)
        self._latents_done[row] = snapshot.latents_done

    def _numbers(self, rows: Sequence[int] | None) -> list[int]:
        numbers = list(range(self.rows)) if rows is None else list(rows)
        if not numbers or len(set(numbers)) != len(numbers) or not all(0 <= n < self.rows for n in numbers):
            raise InputError(f"Rows {numbers} cannot be used together.", f"Name distinct rows of 0..{self.rows - 1}.")
        return numbers

    def _begin(self, rows: Sequence[int] | None) -> tuple[list[int], torch.Tensor | None, bool]:
        """Return the rows' numbers, their index (None: all rows in order), and whether it is their first call."""
        numbers = self._numbers(rows)
        firsts = {self._latents_done[number] == 0 for number in numbers}
        if len(firsts) != 1:
            raise InputError(
                f"Some of the rows {numbers} are at their first call and others are not: their frame counts differ.",
                "Make one call for the rows whose latents_done is 0 and one for the others.",
            )
        if numbers == list(range(self.rows)):
            return numbers, None, firsts.pop()
        on_gpu = self._memory.device.type == "cuda"
        index = torch.tensor(numbers, pin_memory=on_gpu)
        return numbers, index.to(self._memory.device, non_blocking=True), firsts.pop()


@torch.no_grad()
def decode_clip(codec: VideoCodec, latents: torch.Tensor) -> torch.Tensor:
    """Decode a whole clip: latents [B, C, n, h, w] -> pixels [B, 3, 1 + 4(n - 1), H, W] in [0, 1]."""
    batch, _, _, height, width = _video_shape(latents, "latents")
    decoder = codec.decoder(height=height * codec.factor, width=width * codec.factor, rows=batch)
    return decoder.decode(latents)


@torch.no_grad()
def encode_clip(codec: VideoCodec, pixels: torch.Tensor) -> torch.Tensor:
    """Encode a whole clip: pixels [B, 3, 1 + 4k, H, W] in [0, 1] -> latents [B, C, 1 + k, h, w]."""
    batch, _, frames, height, width = _video_shape(pixels, "pixels")
    latents_of(frames, first=True, time_factor=codec.time_factor)
    if codec.encoder_delay_frames:  # all frames are available: let the encoder look ahead, repeating the last frame
        pixels = torch.cat((pixels, pixels[:, :, -1:].expand(-1, -1, codec.encoder_delay_frames, -1, -1)), dim=2)
    return codec.encoder(height=height, width=width, rows=batch).encode(pixels)


def encode_image(codec: VideoCodec, image: torch.Tensor) -> torch.Tensor:
    """Encode an image as the first frame of a video: [B, 3, H, W] in [0, 1] -> latents [B, C, 1, h, w]."""
    if image.dim() == 5 and image.shape[2] > 1:
        raise InputError(
            f"A video of {image.shape[2]} frames was given where an image [B, 3, H, W] is needed.",
            "Pick one frame: pixels[:, :, 0]; or use encode_clip.",
        )
    return encode_clip(codec, image if image.dim() == 5 else image.unsqueeze(2))


def _video_shape(values: torch.Tensor, what: str) -> tuple[int, int, int, int, int]:
    if values.dim() != 5:
        raise InputError(
            f"An image's {what} {tuple(values.shape)} were given where a video's [B, C, F, H, W] are needed.",
            f"Make it a video of one frame: {what}.unsqueeze(2).",
        )
    batch, channels, frames, height, width = values.shape
    return batch, channels, frames, height, width
