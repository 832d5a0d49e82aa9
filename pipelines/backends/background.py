"""Owns the preparation of plans beside a running engine: which are wanted, built, loaded, and when they are used.

One thread works on one plan after the other; the engine's own thread only asks for parts and swaps. A plan that
cannot be built or loaded leaves the part as it is, and says why. Independent of recipes and models.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelError
from pipelines.core.origin import Origin
from pipelines.core.parts import Part, PartCall
from trt.errors import PlanError
from trt.store import PlanStore

from .build_job import BuildJob, BuildProcess, InputShape
from .plan_keys import plan_key
from .planned import PlannedCalls
from .recipe import Recipe

logger = logging.getLogger(__name__)
_SETTLE_S = 2.0  # after the last part was wanted: a ring that fills wants a larger batch with each tick


class PartUser(Protocol):
    """What calls a part: it is given the compiled form when that is ready."""

    def use(self, part: Part, call: PartCall) -> None:
        """Use a compiled form at its part's shapes from now on."""
        ...

    def use_plain(self) -> None:
        """Use the plain network again, and want compiled forms anew."""
        ...

    def missing(self, batch: int) -> Part | None:
        """Return a part with this size of batch that has been called and has no compiled form of that size."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    part: Part
    call: PartCall
    epoch: int


class PlanPreparation:
    """Makes plans of the parts that an engine calls. See `pipelines.core.preparation.Preparation`.

    recipes: by name of the part; a part without one stays as it is. origin: what another process builds from.
    builds: make the plans that are not stored. notice: what the user should see; called by `swap`, in its thread.
    """

    def __init__(
        self,
        recipes: Mapping[str, Recipe],
        *,
        origin: Origin,
        builds: bool = True,
        store: PlanStore,
        notice: Notify,
        settle_s: float = _SETTLE_S,
    ) -> None:
        self._recipes, self._origin, self._builds, self._store = recipes, origin, builds, store
        self._notice, self._settle_s, self._lora_scale = notice, settle_s, 1.0
        self._users: dict[str, PartUser] = {}
        self._wanted: list[Part] = []
        self._preferred: set[tuple[str, int]] = set()
        self._last_wanted_s = 0.0
        self._loaded: deque[_Loaded] = deque()
        self._notices: deque[str] = deque()
        self._changed = threading.Condition()
        self._process: BuildProcess | None = None
        self._thread: threading.Thread | None = None
        self._working = self._closed = self._ticking = False
        self._epoch = 0  # of the weights
        self._state = ""

    def calls(
        self, name: str, make_part: Callable[[dict[str, torch.Tensor]], Part], *, plain_threads: int = 0
    ) -> PlannedCalls:
        """Return the calls of a part, to be made by the engine. plain_threads: see `PlannedCalls`."""
        calls = self._users[name] = PlannedCalls(make_part, self.want, plain_threads=plain_threads)
        return calls

    def add(self, name: str, user: PartUser) -> None:
        """Give compiled forms of a part to `user`, which asks for them by `want`."""
        self._users[name] = user

    def want(self, part: Part) -> None:
        """Ask for a compiled form. Before the first tick, one that loads at once and is stored is used from this call
        on; later nothing is read here, since the call is part of a tick."""
        recipe = self._recipes.get(part.name)
        if recipe is None:
            return
        if recipe.loads_at_once and not self._ticking and (call := self._stored(recipe, part)) is not None:
            self._users[part.name].use(part, call)
            return
        with self._changed:
            self._wanted.append(part)
            self._last_wanted_s = time.monotonic()
            self._changed.notify_all()
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="plans", daemon=True)
                self._thread.start()

    # -- Preparation ---------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """What is under way."""
        return self._state

    @property
    def building(self) -> BuildProcess | None:
        """The process that compiles at the moment."""
        return self._process

    def swap(self) -> bool:
        """Use what has been loaded since the last call."""
        self._ticking = True
        while self._notices:
            self._notice(self._notices.popleft())
        used = False
        while self._loaded:
            loaded = self._loaded.popleft()
            if loaded.epoch == self._epoch:
                self._users[loaded.part.name].use(loaded.part, loaded.call)
                used = True
        return used

    def prefer(self, name: str, batch: int) -> None:
        """See `Preparation`."""
        if (name, batch) in self._preferred or name not in self._recipes:
            return
        self._preferred.add((name, batch))
        part = self._users[name].missing(batch)
        if part is not None and part not in self._wanted:
            self.want(part)

    def weights_changed(self, lora_scale: float) -> None:
        """Stop using plans that contain the weights; they are made anew."""
        self._epoch += 1
        self._lora_scale = lora_scale
        self._preferred.clear()
        with self._changed:
            self._wanted = [part for part in self._wanted if not self._recipes[part.name].bakes_weights]
        for name, user in self._users.items():
            if name in self._recipes and self._recipes[name].bakes_weights:
                user.use_plain()

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is wanted or under way."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or not (self._wanted or self._working), timeout_s)

    def close(self) -> None:
        """End the thread and its process."""
        with self._changed:
            self._closed = True
            process = self._process
            self._changed.notify_all()
        if process is not None:
            process.stop()
        if self._thread is not None:
            self._thread.join()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (part := self._next()) is not None:
            epoch, recipe = self._epoch, self._recipes[part.name]
            try:
                self._prepare(recipe, part, epoch)
            except (ModelError, PlanError) as error:
                if not self._closed:
                    logger.warning("%s of %s: %s", part.name, recipe.name, error)
                    self._notices.append(f"{recipe.name}: {error} {part.name} goes on as it is.")
            finally:
                with self._changed:
                    self._working, self._state = False, ""
                    self._changed.notify_all()

    def _next(self) -> Part | None:
        """Return the next part to prepare, of the largest batch that is wanted; None: closed."""
        with self._changed:
            while not self._closed:
                left_s = self._last_wanted_s + self._settle_s - time.monotonic()
                if self._wanted and left_s <= 0:
                    break
                self._changed.wait(left_s if self._wanted else None)
            if self._closed:
                return None
            self._working = True
            chosen = max(self._wanted, key=_batch)
            exact = bool(self._recipes[chosen.name].open_axes(chosen))  # one file serves every batch, without padding
            served = [p for p in self._wanted if p is chosen or (p.name == chosen.name and not exact)]
            self._wanted = [p for p in self._wanted if p not in served]  # smaller batches are padded
            return chosen

    def _prepare(self, recipe: Recipe, part: Part, epoch: int) -> None:
        call = self._stored(recipe, part)
        if call is None:
            self._build(recipe, part)
            call = self._stored(recipe, part)
        if call is None:
            raise ModelError(f"The compiled {part.name} is not in the store after it was built.")
        self._loaded.append(_Loaded(part=part, call=call, epoch=epoch))
        self._notices.append(f"{part.name} runs with {recipe.name} from now on.")

    def _stored(self, recipe: Recipe, part: Part) -> PartCall | None:
        folder = self._store.find(plan_key(recipe, part, self._origin.model, self._origin.lora))
        return None if folder is None else recipe.load(part, folder)

    def _build(self, recipe: Recipe, part: Part) -> None:
        if not self._builds:
            raise ModelError(
                f"No plan of {part.name} is stored.",
                f"Build them: `zoetrope plans build {self._origin.model} --backend {recipe.name}`.",
            )
        inputs = tuple(
            InputShape(name=n, shape=tuple(t.shape), strides=t.stride(), dtype=t.dtype) for n, t in part.inputs.items()
        )
        job = BuildJob(
            origin=self._origin,
            recipe=recipe,
            part=part.name,
            inputs=inputs,
            key=plan_key(recipe, part, self._origin.model, self._origin.lora),
            root=self._store.root,
            lora_scale=self._lora_scale,
        )
        self._notices.append(f"{recipe.name}: {part.name} is being compiled; the stream runs meanwhile.")
        with self._changed:
            if self._closed:
                return
            self._process = BuildProcess(job)
        try:
            self._process.wait(self._report)
        finally:
            self._process = None

    def _report(self, text: str) -> None:
        self._state = text


def _batch(part: Part) -> int:
    return int(next(iter(part.inputs.values())).shape[0])
