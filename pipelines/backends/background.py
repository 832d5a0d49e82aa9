"""Owns the preparation of plans beside a running engine: which are wanted, built, loaded, and when they are used.

One thread works on one plan after the other; the engine's own thread only asks for parts and swaps. A plan that
cannot be built or loaded leaves the part as it is, and says why. Independent of recipes and models.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch

from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelError
from pipelines.core.origin import Origin
from pipelines.core.parts import Part, inputs_like
from pipelines.core.preparation import PartForm, PreparationStatus
from trt.errors import PlanError
from trt.store import PlanStore

from .build_job import BuildJob, BuildProcess
from .forms import LoadedForm, PartForms, PartUser
from .planned import PlannedCalls
from .recipe import Recipe
from .reports import Reports
from .stored import StoredPlans

logger = logging.getLogger(__name__)
_SETTLE_S = 0.5  # after the last part was wanted: a ring that fills wants a larger batch with each tick
_BEFORE_A_TICK = 4  # times as long until the first tick has been made: loading would slow it down


class PlanPreparation:
    """Makes plans of the parts that an engine calls. See `pipelines.core.preparation.Preparation`.

    recipes: by name of the part; a part without one stays as it is. backend: the name by which users build its plans.
    origin: what another process builds from. builds: make the plans that are not stored. notice: what the user should
    see; called by `swap`, in its thread.
    """

    def __init__(
        self,
        recipes: Mapping[str, Recipe],
        *,
        backend: str,
        origin: Origin,
        device: torch.device,
        builds: bool = True,
        notice: Notify,
        settle_s: float = _SETTLE_S,
    ) -> None:
        self._recipes, self._origin, self._device, self._builds = recipes, origin, device, builds
        self._notice, self._settle_s, self._lora_scale = notice, settle_s, 1.0
        self._forms = PartForms(recipes)
        self._reports = Reports(recipes, self._forms.current)
        self._wanted: list[Part] = []
        self._preferred: set[tuple[str, int]] = set()
        self._last_wanted_s = 0.0
        self._loaded: deque[tuple[int, LoadedForm]] = deque()  # with the epoch of its weights
        self._notices: deque[str] = deque()
        self._plans = StoredPlans(PlanStore(notice=self._notices.append), origin, backend)
        self._changed = threading.Condition()
        self._process: BuildProcess | None = None
        self._thread: threading.Thread | None = None
        self._working = self._closed = self._held = self._freezing = self._frozen = False
        self._ticks = 0  # begun, as far as that matters: 2 means that one has ended
        self._epoch = 0  # of the weights
        self._unstored: list[Part] = []  # found while freezing

    def calls(
        self, name: str, make_part: Callable[[dict[str, torch.Tensor]], Part], *, plain_threads: int = 0
    ) -> PlannedCalls:
        """Return the calls of a part, to be made by the engine. plain_threads: see `PlannedCalls`."""
        calls = PlannedCalls(make_part, self.want, plain_threads=plain_threads)
        self.add(name, calls)
        return calls

    def add(self, name: str, user: PartUser) -> None:
        """Give compiled forms of a part to `user`, which asks for them by `want`."""
        self._forms.add(name, user)
        self._reports.runs(self.forms)

    def want(self, part: Part) -> None:
        """Ask for a compiled form. Before the first tick, one that loads at once and is stored is used from this call
        on; later nothing is read here, since the call is part of a tick."""
        recipe = self._recipes.get(part.name)
        if recipe is None or self._held or self._frozen:
            return
        if recipe.loads_at_once and not self._ticks and self._use_stored(recipe, part):
            return
        with self._changed:
            self._wanted.append(part)
            self._last_wanted_s = time.monotonic()
            self._begin()

    # -- Preparation ---------------------------------------------------------------------------------------------------

    @property
    def status(self) -> PreparationStatus:
        """See `Preparation`."""
        return self._reports.status

    @property
    def forms(self) -> tuple[PartForm, ...]:
        """See `Preparation`."""
        return self._forms.current

    @property
    def building(self) -> BuildProcess | None:
        """The process that compiles at the moment."""
        return self._process

    def swap(self) -> bool:
        """Use what has been loaded since the last call."""
        if self._ticks < 2:
            with self._changed:
                self._ticks += 1
                self._changed.notify_all()
        while self._notices:
            self._notice(self._notices.popleft())
        used = False
        while self._loaded:
            epoch, loaded = self._loaded.popleft()
            if epoch == self._epoch or self._updated(loaded):
                self._use(loaded)
                used = True
        return used

    def prefer(self, name: str, batch: int) -> None:
        """See `Preparation`."""
        if (name, batch) in self._preferred or name not in self._recipes:
            return
        self._preferred.add((name, batch))
        part = self._forms[name].missing(batch)
        if part is not None and part not in self._wanted:
            self.want(part)

    def weights_changed(self, lora_scale: float) -> None:
        """Give plans that take weights the new ones; stop using the others, which are made anew."""
        self._epoch += 1
        self._lora_scale = lora_scale
        self._preferred.clear()
        with self._changed:
            self._wanted = [part for part in self._wanted if not self._recipes[part.name].bakes_weights]
        self._use_plain(lambda name: self._recipes[name].bakes_weights)
        refusing = {loaded.form.part for loaded in self._forms.loaded if not self._updated(loaded)}
        self._use_plain(lambda name: name in refusing)

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is wanted or under way."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or not (self._wanted or self._working), timeout_s)

    def freeze(self) -> bool:
        """See `Preparation`."""
        with self._changed:
            self._freezing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or not (self._wanted or self._working))
        self.swap()
        with self._changed:
            self._freezing, self._frozen = False, True
            self._wanted = list(self._unstored) if self._builds else []
            self._begin()
            return bool(self._wanted)

    def hold(self) -> None:
        """See `Preparation`."""
        self.close()
        self._held = True
        self._loaded.clear()
        self._notices.clear()
        self._use_plain(lambda name: True)

    def missing(self, forms: Sequence[PartForm]) -> list[PartForm]:
        """See `Preparation`."""
        plans = {form.plan: form for form in forms}
        return [form for form in plans.values() if self._plans.missing(form)]

    def take_over(self, form: PartForm) -> str:
        """See `Preparation`."""
        assert self._held, "only while nothing else is taken over"
        caution, loaded = "", LoadedForm(form=form, part=None, call=None)
        if form.plan:
            part = self._forms[form.part].part(inputs_like(form.inputs, self._device))
            loaded, caution = self._plans.load_same(self._recipes[form.part], part, form)
        self._loaded.append((self._epoch, loaded))
        return caution

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

    def _use_stored(self, recipe: Recipe, part: Part) -> bool:
        """Use a stored plan. False: there is none, or it cannot be loaded, as the thread will find too, and report."""
        try:
            loaded = self._plans.load(recipe, part)
        except Exception:  # noqa: BLE001  # whatever a library raises: the engine starts without the plan
            return False
        if loaded is not None:
            self._use(loaded)
        return loaded is not None

    def _updated(self, loaded: LoadedForm) -> bool:
        """Give a form the weights as they are now. False: it does not take them."""
        recipe = self._recipes[loaded.form.part]
        if recipe.bakes_weights or loaded.part is None or loaded.call is None:
            return False
        try:
            recipe.update(loaded.part, loaded.call)
        except (ModelError, PlanError) as error:
            self._notices.append(f"{recipe.title}: {error} {loaded.form.part} goes on as it is.")
            return False
        return True

    def _use(self, loaded: LoadedForm) -> None:
        self._forms.use(loaded)
        self._reports.runs(self.forms)

    def _use_plain(self, concerned: Callable[[str], bool]) -> None:
        self._forms.use_plain(concerned)
        self._reports.runs(self.forms)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Wake the thread, or start it. The caller holds the lock."""
        self._changed.notify_all()
        if self._wanted and self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="plans", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Prepare each part in a thread of its own: while one lives that has used PyTorch's threads, GNU OpenMP counts
        more threads than cores, and those of the ticks sleep at once after each operation: 1.4 times the time."""
        while (part := self._next()) is not None:
            thread = threading.Thread(target=self._work, args=(part,), name=f"plan of {part.name}", daemon=True)
            thread.start()
            thread.join()

    def _work(self, part: Part) -> None:
        epoch, recipe, failed = self._epoch, self._recipes[part.name], ""
        try:
            self._prepare(recipe, part, epoch)
        except Exception as error:  # whatever a library raises: the stream goes on without the plan
            if not self._closed:
                known = isinstance(error, ModelError | PlanError)
                cause = str(error) if known else f"{type(error).__name__}: {error}."
                failed = f"{recipe.title}: {cause} {part.name} goes on as it is."
                logger.warning("%s of %s: %s", part.name, recipe.name, error, exc_info=not known)
                self._notices.append(failed)
        finally:
            with self._changed:
                self._working = False
                self._reports.ends(part.name, failed=failed, waiting=len(self._wanted))
                self._changed.notify_all()

    def _next(self) -> Part | None:
        """Return the next part to prepare, of the largest batch that is wanted; None: closed."""
        with self._changed:
            while not self._closed:
                settle_s = self._settle_s * (1 if self._ticks > 1 else _BEFORE_A_TICK)
                left_s = 0.0 if self._freezing else self._last_wanted_s + settle_s - time.monotonic()
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
        loaded = None if self._frozen else self._plans.load(recipe, part)
        if loaded is None and self._freezing:
            self._unstored.append(part)
            return
        if loaded is None:
            self._build(recipe, part)
            if self._frozen:
                logger.info("%s is stored for the next engine", part.name)
                return
            loaded = self._plans.load(recipe, part)
        if loaded is None:
            raise ModelError(f"The compiled {part.name} is not in the store after it was built.")
        self._loaded.append((epoch, loaded))
        logger.info("%s runs with %s from the next tick on", part.name, recipe.name)

    def _build(self, recipe: Recipe, part: Part) -> None:
        if not self._builds:
            raise ModelError(f"No plan of {part.name} is stored.", self._plans.how_to_build)
        job = BuildJob(
            origin=self._origin,
            recipe=recipe,
            part=part.name,
            inputs=part.input_forms,
            key=self._plans.key(recipe, part),
            root=self._plans.store.root,
            lora_scale=self._lora_scale,
        )
        logger.info("%s: %s is being compiled; the stream runs meanwhile", recipe.name, part.name)
        with self._changed:
            if self._closed:
                return
            self._reports.begins(recipe, len(self._wanted))
            self._process = BuildProcess(job)
        try:
            self._process.wait(self._reports.step)
        finally:
            self._process = None


def _batch(part: Part) -> int:
    return int(next(iter(part.inputs.values())).shape[0])
