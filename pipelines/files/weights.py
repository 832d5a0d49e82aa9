"""Owns strict loading: every key of a file must match and every parameter must get a value, or an error lists them.

Uses the loading functions of diffusers and transformers; independent of what the networks compute.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pipelines.core.errors import ModelLayoutError

from .layout import Component, find_weights

_MAX_LISTED = 8
# Buffers that older transformers releases wrote to checkpoints and that newer ones compute.
_HARMLESS = re.compile(r"(^|\.)embeddings\.position_ids$")


def load_component(
    network: Any, component: Component, *, dtype: torch.dtype, device: torch.device, allow_pickle: bool = False
) -> Any:
    """Load `network` (a class of diffusers or transformers) from a model's sub-folder, strictly.

    Returns the module in eval mode, without gradients, in dtype on device. Raises ModelLayoutError listing the keys
    that are missing, unexpected or of a different shape, and UnsafeWeightsError as `find_weights` does.
    """
    weights = find_weights(component, allow_pickle=allow_pickle, prefer_half=dtype is torch.float16)
    with quiet_loading():
        try:
            module, report = network.from_pretrained(
                component.folder,
                variant=weights.variant,
                use_safetensors=not weights.pickled,
                torch_dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelLayoutError(
                f"The {component.name} in {component.folder} cannot be loaded: {_first_line(error)}",
                "Its config.json does not match its weights, or a file is damaged: download it again.",
            ) from error
    check_report(component, report)
    assert isinstance(module, nn.Module)
    return module.to(device=device).eval().requires_grad_(False)


def check_report(component: Component, report: Mapping[str, Any]) -> None:
    """Raise ModelLayoutError unless a loading report (missing, unexpected, mismatched keys) is empty."""
    problems = [
        f"{kind} {_listed(keys)}"
        for kind, name in (("missing", "missing_keys"), ("unexpected", "unexpected_keys"), ("shape", "mismatched_keys"))
        if (keys := _meaningful(report.get(name, ())))
    ]
    if problems:
        raise ModelLayoutError(
            f"The weights of the {component.name} in {component.folder} do not fit its configuration: "
            f"{'; '.join(problems)}.",
            "The config.json and the weights come from different models: download it again.",
        )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the reports and progress bars of both libraries while a part loads; `check_report` checks the reports.

    A library that is not imported yet is left alone: the class of the part has imported its own.
    """
    with ExitStack() as restored:
        for library in ("diffusers", "transformers"):
            if library in sys.modules:
                _silence(importlib.import_module(f"{library}.utils.logging"), restored)
        yield


def _silence(logging: ModuleType, restored: ExitStack) -> None:
    restored.callback(logging.set_verbosity, logging.get_verbosity())
    if logging.is_progress_bar_enabled():
        restored.callback(logging.enable_progress_bar)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _meaningful(keys: Iterable[Any]) -> list[str]:
    names = [str(key[0]) if isinstance(key, tuple) else str(key) for key in keys]
    return sorted(name for name in names if not _HARMLESS.search(name))


def _listed(keys: list[str]) -> str:
    rest = len(keys) - _MAX_LISTED
    return ", ".join(keys[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
