"""`zoetrope models`: lists bundled and cached models, downloads models, shows the folders.

Reads configurations and names only; loads no networks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import ModelError
from pipelines.kinds import MODEL_KINDS, kind_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One row of the list. kind: what the folder contains, or why it cannot be used."""

    name: str
    origin: str
    size_bytes: int
    kind: str
    licence: str


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `models` and its actions to the command line."""
    parser = subparsers.add_parser(
        "models", help="list, download and find models", description="List, download and find models."
    )
    parser.set_defaults(run=run, action="list")
    actions = parser.add_subparsers(metavar="ACTION")
    actions.add_parser("list", help="list bundled and cached models (the default)").set_defaults(action="list")
    actions.add_parser("where", help="show the folders that models are read from").set_defaults(action="where")
    download = actions.add_parser("download", help="download a model from the hub into the cache")
    download.add_argument("name", metavar="ID", help="hub id (owner/name), or a bundled name")
    download.add_argument(
        "--kind", choices=tuple(_DOWNLOADS), default="model", help="what the repository contains (default model)"
    )
    download.add_argument(
        "--allow-pickle", action="store_true", help="also download pickled weights, which can run code"
    )
    download.set_defaults(action="download")


def run(options: argparse.Namespace) -> int:
    """Run the requested action. Returns the exit status."""
    return _ACTIONS[options.action](options)


def _list(_: argparse.Namespace) -> int:
    rows = [*_bundled(), *_cached()]
    table = [("NAME", "FROM", "SIZE", "KIND", "LICENCE")]
    table += [(row.name, row.origin, _size(row.size_bytes), row.kind, row.licence) for row in rows]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]
    for cells in table:
        _say("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    _say("")
    for kind in reversed(MODEL_KINDS):  # the most general kind first
        if published := kind.published():
            _say(published)
    _say("Download one with `zoetrope models download ID`, or pass a folder in diffusers layout to --model.")
    return 0


def _where(_: argparse.Namespace) -> int:
    from pipelines.files import hub

    _say(f"bundled: {hub.BUNDLED_FOLDER}")
    _say(f"cache:   {hub.cache_folder()}  (change it with HF_HOME or HF_HUB_CACHE)")
    return 0


def _download(options: argparse.Namespace) -> int:
    from pipelines.files import hub

    if options.name in hub.bundled_names():
        _say(f"{options.name} is bundled with Zoetrope: {hub.BUNDLED_FOLDER / options.name}")
        return 0
    folder = _DOWNLOADS[options.kind](options)
    _say(f"{options.name} is in {folder}")
    return 0


def _download_model(options: argparse.Namespace) -> Path:
    return kind_of(options.name).download(options.name, allow_pickle=options.allow_pickle, notice=_say)


def _download_autoencoder(options: argparse.Namespace) -> Path:
    from pipelines.files import hub

    hub.check_hub_id(options.name)
    return hub.download(options.name, parts=hub.AUTOENCODER_PARTS, allow_pickle=options.allow_pickle, notice=_say)


def _download_lora(options: argparse.Namespace) -> Path:
    from pipelines.files import hub
    from pipelines.files.lora_files import LoraFile

    hub.check_hub_id(options.name)
    return hub.resolve_lora(LoraFile(source=options.name), notice=_say)


_DOWNLOADS: Mapping[str, Callable[[argparse.Namespace], Path]] = {
    "model": _download_model,
    "autoencoder": _download_autoencoder,
    "lora": _download_lora,
}
_ACTIONS: Mapping[str, Callable[[argparse.Namespace], int]] = {"list": _list, "where": _where, "download": _download}


def _bundled() -> Iterator[_Row]:
    from pipelines.files import hub

    for name in hub.bundled_names():
        folder = hub.BUNDLED_FOLDER / name
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        yield _row(name, "bundled", size, folder)


def _cached() -> Iterator[_Row]:
    from pipelines.files import hub

    for repository in hub.cached_repositories():
        yield _row(repository.hub_id, "cache", repository.size_bytes, repository.folder)


def _row(name: str, origin: str, size: int, folder: Path) -> _Row:
    from pipelines.files import hub

    try:
        kind = _describe(folder)
    except ModelError as error:
        kind = f"not usable as a model: {error.message}"
    return _Row(name=name, origin=origin, size_bytes=size, kind=kind, licence=hub.licence_of(folder))


def _describe(folder: Path) -> str:
    """Describe a folder's contents: a model, in its kind's words, an autoencoder, or LoRA files. Raises ModelError."""
    from pipelines.files.layout import read_autoencoder

    for kind in MODEL_KINDS:
        if description := kind.describe(folder):
            return description
    if (folder / "config.json").is_file():
        return f"autoencoder ({read_autoencoder(folder).class_name})"
    if any(folder.glob("*.safetensors")):
        return "LoRA"
    raise ModelError("no model_index.json", "Download it again.")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
