"""Owns what is set before Gradio is imported, so that the page stands sooner. Imports no Gradio."""

from __future__ import annotations

import os
from types import ModuleType

from pipelines.core.deferred import Deferral, defer


def prepare_gradio() -> None:
    """Switch its analytics off, and defer what it imports or does at import and the page never uses.

    At each import it parses the source of each of its components to rewrite .pyi files for editors: half of the import.
    pandas is for tables, of which the page has none.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    defer(
        {
            "gradio.component_meta": Deferral(parts=frozenset(), then=_keep_interface_files),
            "pandas": Deferral(parts=frozenset()),
        }
    )


def _keep_interface_files(component_meta: ModuleType) -> None:
    if "create_or_modify_pyi" in component_meta.__dict__:
        component_meta.__dict__["create_or_modify_pyi"] = lambda *_: None
