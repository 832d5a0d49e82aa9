"""Owns what the streams of one image engine share: the runtime and its lanes, the ring, the prompt cache, the tick
count, sizes and the log.

Independent of single streams and of the execution of ticks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from cache.features.frames import PRESETS, ReuseSettings
from cache.ring import Ring, RingField
from pipelines.conditioning.base import ConditionerFactory, EngineParts
from pipelines.conditioning.feature_bank import FeatureBankConditioner
from pipelines.conditioning.stream import all_fields, make_conditioners
from pipelines.core.conditions import PromptCache
from pipelines.core.controls import Control, Controls
from pipelines.core.errors import ControlError, InputError
from pipelines.core.parts import Part
from pipelines.core.queues import device_queues
from pipelines.core.tick_log import TickLog
from pipelines.core.transfers import Readback

from .denoise import DenoiseBatch, FloatRow, IntRow
from .feature_bank.runtime import bank_obstacle, bank_of, bank_runtime
from .lanes import Lanes
from .model import Condition, Denoiser, ImageModel, ImageRuntime, LatentCodec
from .parts import decode_part, denoise_part, encode_part
from .prompt_keys import EMBEDS, PromptKeys, can_project
from .reuse.memory import ReuseMemory
from .step_caches import StepCache, step_cache
from .step_reuse import StepReuse
from .steps import FEW_STEPS


class ImageCore:
    """The shared state of an image engine. Latents and formulas use the dtype `work_dtype`.

    runtime: the only way to the networks; `use_runtime` replaces it. lanes: its ticks that run side by side.
    prompt_keys: projected prompts, where the runtime takes them. step_reuse: caching across steps, if it was asked for.
    reuse_presets: settings of the control `reuse`, for streams opened from now on.
    reuse_epoch: changes when something that all streams share has changed, so that nothing kept for reuse is valid.
    """

    def __init__(
        self,
        model: ImageModel,
        *,
        width: int,
        height: int,
        frames_per_slot: int,
        max_slots: int,
        tick_log: TickLog | None,
        work_dtype: torch.dtype,
        conditioners: Sequence[ConditionerFactory],
        cache: str | StepCache = "",
        reuse_presets: Mapping[str, ReuseSettings] = PRESETS,
    ) -> None:
        self.model = model
        self.width, self.height = width or model.size_px[0], height or model.size_px[1]
        self.frames_per_slot, self.max_slots, self.work_dtype = frames_per_slot, max_slots, work_dtype
        self.runtime = model.runtime
        factor = self.codec.factor
        _check_sizes(self.width, self.height, factor, frames_per_slot, max_slots)
        self.latent_shape = (self.codec.latent_channels, self.height // factor, self.width // factor)
        self.queues = device_queues(model.device)
        self.texts = PromptCache(model.prompts)
        self.log = tick_log if tick_log is not None else TickLog()
        self.next_tick = 0
        self.lora_scale = Controls.lora_scale.default
        self.conditioners = make_conditioners(conditioners, self._parts())
        self._step_cache = step_cache(cache)
        self.ring = Ring(max_slots, self._fields(), model.device)
        self.reuse_epoch = 0
        self.reuse_presets = reuse_presets
        self._plain = model.runtime
        self._use(model.runtime)

    def part(self, name: str, inputs: dict[str, torch.Tensor]) -> Part:
        """Return a part of the model at the shapes of `inputs`, for a compiler. name: denoise, encode or decode."""
        denoiser, codec = self.runtime.denoiser, self.runtime.codec
        assert isinstance(denoiser, nn.Module), "only the plain networks are parts"
        assert isinstance(codec, nn.Module), "only the plain networks are parts"
        if name == "denoise":
            return denoise_part(denoiser, inputs)
        return encode_part(codec, inputs["images"]) if name == "encode" else decode_part(codec, inputs["latents"])

    @property
    def denoiser(self) -> Denoiser:
        """The runtime's."""
        return self.runtime.denoiser

    @property
    def codec(self) -> LatentCodec:
        """The runtime's."""
        return self.runtime.codec

    def use_runtime(self, runtime: ImageRuntime) -> None:
        """Replace the runtime and its lanes between two ticks; what is in flight goes on with the new one."""
        old = self.codec
        assert (runtime.codec.factor, runtime.codec.latent_channels) == (old.factor, old.latent_channels)
        assert not self._bank_lines() or bank_obstacle(runtime) is None, runtime.backend
        self.release_graphs()
        self._plain = runtime
        self._use(runtime)

    def bank_obstacle(self) -> str | None:
        """Return why streams cannot have a feature bank, as a clause; None if they can."""
        if not any(isinstance(conditioner, FeatureBankConditioner) for conditioner in self.conditioners):
            return "the engine was made without its conditioner"
        if self._step_cache is not None:
            return "the engine caches across steps"
        if isinstance(self._reuse, ReuseMemory) and self._reuse.in_use:
            return "a stream of this engine reuses windows of earlier frames"
        return bank_obstacle(self._plain)

    def follow_bank(self) -> bool:
        """Between two ticks, use a runtime with a feature bank as soon as a stream has one, and the plain one as soon
        as none has; a bank grows, but does not shrink meanwhile. Returns whether runtime and lanes are others now."""
        needed, bank = self._bank_lines(), bank_of(self.runtime)
        lines = 0 if bank is None else bank.states.lines
        if needed <= lines and bool(needed) == bool(lines):
            return False
        self.release_graphs()  # also waits for ticks that still write to the bank
        runtime = self._plain
        if needed:
            _, height, width = self.latent_shape
            runtime = bank_runtime(self._plain, (height, width), lines=needed, old=self.runtime)
        self._use(runtime)
        return True

    def _bank_lines(self) -> int:
        """Return how many lines the streams' feature banks need now."""
        return max((c.lines_needed for c in self.conditioners if isinstance(c, FeatureBankConditioner)), default=0)

    def release_graphs(self) -> None:
        """Wait until the device is idle, and drop everything captured."""
        self.lanes.invalidate()
        self._prompt_executor.invalidate()

    def _use(self, runtime: ImageRuntime) -> None:
        self.runtime = runtime
        self.lanes = Lanes(
            self.queues,
            runtime.make_executor,
            count=runtime.lanes,
            rows=self.max_slots,
            first_tick=self.next_tick,
        )
        self.step_reuse = self._make_step_reuse(self._step_cache)
        self.reuse_epoch += 1
        self._reuse: ReuseMemory | str | None = None
        self._prompt_executor = runtime.make_executor()
        self.prompt_keys: PromptKeys | None = None
        if runtime.projection is not None and can_project(self.ring, self.conditioners, 2 * self.max_slots):
            self.prompt_keys = PromptKeys(runtime.projection, self.ring, self._prompt_executor.calls(warm_calls=2))

    def windows_obstacle(self) -> str | None:
        """Return why streams compute no windows, as a clause; None if they do."""
        return self.reuse_obstacle() or ("whole pictures take no longer there" if self.on_cuda else None)

    @property
    def on_cuda(self) -> bool:
        """Whether the engine runs on a CUDA device."""
        return self.model.device.type == "cuda"

    def reuse_obstacle(self) -> str | None:
        """Return why windows cannot be computed, as a clause; None if they can."""
        if self._bank_lines():
            return "a stream of this engine has a feature bank"
        if self._reuse is None:
            self._reuse = self._make_reuse()
        return self._reuse if isinstance(self._reuse, str) else None

    @property
    def reuse_cell(self) -> int:
        """Latents per cell of windows; 1 while no stream asks for any."""
        return self._reuse.networks.cell if isinstance(self._reuse, ReuseMemory) else 1

    def reuse_memory(self) -> ReuseMemory:
        """The memory of reuse. There must be no obstacle."""
        why = self.reuse_obstacle()
        assert why is None, why
        assert isinstance(self._reuse, ReuseMemory)
        return self._reuse

    def _make_reuse(self) -> ReuseMemory | str:
        if self.step_reuse is not None:
            return "the engine caches across steps"
        if self.runtime.windows is None:
            return f"the backend {self.runtime.backend} has no windows"
        networks = self.runtime.windows()
        if isinstance(networks, str):
            return networks
        multiple = networks.cell * self.codec.factor
        if self.width % multiple or self.height % multiple:
            return f"width and height must be multiples of {multiple} for it"
        return ReuseMemory(networks, self._example, self._reuse_moved, factor=self.codec.factor)

    def _example(self) -> tuple[torch.Tensor, torch.Tensor, Condition]:
        """Return the arguments of a denoiser's call with one row."""
        instead = {} if self.prompt_keys is None else {EMBEDS: self.prompt_keys.cells}
        latents = self.ring.tensor("latents")[0]
        ints = torch.zeros((len(IntRow), 2 * self.max_slots), dtype=torch.int64, device=latents.device)
        floats = torch.zeros((len(FloatRow), 2 * self.max_slots), dtype=latents.dtype, device=latents.device)
        columns = {
            c.name: torch.zeros((2 * self.max_slots, len(c.columns)), device=latents.device)
            for c in self.conditioners
            if c.columns
        }
        batch = DenoiseBatch(
            self.ring,
            self.denoiser,
            floats,
            ints,
            conditioners=self.conditioners,
            columns=columns,
            time_ids=self.time_ids(),
            instead=instead,
        )
        timestep = ints[IntRow.TIMESTEP, :1]
        return latents, timestep, batch.condition(1, latents, timestep)

    def _reuse_moved(self) -> None:
        self.reuse_epoch += 1
        self.lanes.invalidate()

    def _make_step_reuse(self, cache: StepCache | None) -> StepReuse | None:
        if cache is None:
            return None
        return StepReuse(
            cache,
            self.model,
            self.denoiser,
            capacity=self.max_slots,
            frames=self.frames_per_slot,
            latent_shape=self.latent_shape,
            dtype=self.work_dtype,
        )

    def _parts(self) -> EngineParts:
        return EngineParts(
            engine="image",
            model=self.model.name,
            device=self.model.device,
            latent_shape=self.latent_shape,
            max_frames=self.frames_per_slot,
            takes=frozenset(),
            prompts=self.texts,
        )

    def _fields(self) -> dict[str, RingField]:
        latents = (self.frames_per_slot, *self.latent_shape)
        own = {
            "latents": RingField(shape=latents, dtype=self.work_dtype),
            "stock": RingField(shape=latents, dtype=self.work_dtype),
            "noise": RingField(shape=(FEW_STEPS, *latents), dtype=self.work_dtype),
            "denoised": RingField(shape=latents, dtype=self.work_dtype),
        }
        conditioned = all_fields(self.conditioners)
        assert own.keys().isdisjoint(conditioned), conditioned.keys()
        return {**own, **conditioned}

    def time_ids(self) -> torch.Tensor | None:
        """Return [1, 6] float32: original size, crop, target size (Podell et al. 2023, section 2.2), or None."""
        if not self.model.wants_time_ids:
            return None
        size = (self.height, self.width)
        return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=self.model.device)

    def make_readback(self) -> Readback:
        """Create the output buffers of one stream: for max_slots slots in flight and twice as many finished ones."""
        shape = (self.frames_per_slot, self.height, self.width, 3)
        return Readback(3 * self.max_slots, shape, self.model.device, self.queues.mark)

    def condition_fields(self, row: int) -> Mapping[str, torch.Tensor]:
        """Return the views, by field name, that conditioners write for the slot in a ring row."""
        return RowFields(self, row)

    def check_engine_controls(self, control: Control) -> None:
        """Raise ControlError if a control of the whole engine cannot be changed as `control` requests."""
        if control.lora_scale not in (None, self.lora_scale) and self.model.lora is None:
            raise ControlError("No LoRA is loaded, so lora_scale has nothing to scale.", "Load the model with a LoRA.")

    def set_engine_controls(self, control: Control) -> None:
        """Apply engine controls to every stream, from the next tick on. A change invalidates captured graphs."""
        scale = control.lora_scale
        if scale is not None and scale != self.lora_scale and self.model.lora is not None:
            self.lanes.settle()
            self.model.lora.set_scale(scale)
            self.runtime.preparation.weights_changed(scale)
            self.lora_scale = scale
            self.reuse_epoch += 1
            self.lanes.invalidate()
            if self.prompt_keys is not None:
                self.prompt_keys.clear()


class RowFields(Mapping[str, torch.Tensor]):
    """What conditioners write for the slot in one ring row, by field name. A view is taken to be written: what the
    caller does next on its own queue waits for the tick that used the row last."""

    def __init__(self, core: ImageCore, row: int) -> None:
        self._core, self._row = core, row
        self._names = tuple(name for conditioner in core.conditioners for name in conditioner.fields)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        self._core.lanes.order_write(self._row, self._core.next_tick)
        return self._core.ring.tensor(name)[self._row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_sizes(width: int, height: int, factor: int, frames_per_slot: int, max_slots: int) -> None:
    for name, value in (("width", width), ("height", height)):
        if value <= 0 or value % factor:
            nearest = max(factor, round(value / factor) * factor)
            raise ControlError(
                f"{name} cannot be {value} pixels.", f"It must be a multiple of {factor}: try {nearest}."
            )
    maximum = Controls.frames_per_slot.maximum
    assert maximum is not None
    if not 1 <= frames_per_slot <= maximum:
        raise ControlError(f"frames_per_slot cannot be {frames_per_slot}.", f"Give a value from 1 to {maximum:g}.")
    if not 1 <= max_slots <= 64:
        raise InputError(f"max_slots cannot be {max_slots}.", "Give a value from 1 to 64.")
