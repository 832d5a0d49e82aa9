"""Owns the single entry point from a model's name to an engine; the table of model kinds determines the loader.

Independent of networks, rings and frames. Heavy libraries are imported only when a model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.backends.base import Backend
from pipelines.backends.table import BACKENDS
from pipelines.core.contracts import Engine, Notify
from pipelines.core.tick_log import TickLog
from pipelines.files.loader_options import LoaderOptions
from pipelines.kinds import MODEL_KINDS, LoadContext, ModelKind, kind_of

if TYPE_CHECKING:
    from cache.kv.policies import KVPolicy
    from pipelines.conditioning.base import ConditionerFactory

logger = logging.getLogger(__name__)


def load_engine(
    model: str,
    options: LoaderOptions | None = None,
    *,
    tick_log: TickLog | None = None,
    notice: Notify = logger.warning,
    kinds: tuple[ModelKind, ...] = MODEL_KINDS,
    backends: Mapping[str, Backend] = BACKENDS,
    conditioners: Sequence[ConditionerFactory] | None = None,
    policies: Mapping[str, type[KVPolicy]] | None = None,
    prepare: bool = True,
    **choices: object,
) -> Engine:
    """Load an engine for a bundled name ("mini-image"), a local folder, a checkpoint, a hub id, or a built-in name.

    options: the user's choices. choices: fields of `LoaderOptions` by name, which override `options`; `video` may be a
    mapping of fields of `VideoChoices`: load_engine("mini-image", device="cpu", width=512, height=512).
    notice: receives sentences that the user should see. kinds: the table of model kinds; pass a longer one to add a
    kind. backends: the table of backends; see backends.table.backend_table to add one. conditioners: what may steer a
    slot or chunk, (*CONDITIONERS, mine) to add one; None: CONDITIONERS. policies: the KV policies by name,
    {**POLICIES, "mine": Mine} to add one; None: cache.kv.policies.POLICIES. prepare: let the engine compile its parts
    in other processes while it runs, where its backend does so.
    Raises ModelError and its subclasses, InputError and ControlError, each with the remedy; TypeError for an unknown
    choice.
    """
    wanted = (options or LoaderOptions()).changed(choices)
    context = LoadContext(
        notice=notice,
        tick_log=tick_log,
        backends=backends,
        conditioners=None if conditioners is None else tuple(conditioners),
        policies=policies,
        prepare=prepare,
    )
    return kind_of(model, kinds).load(model, wanted, context)
