"""Owns resolving a model's name to a folder: bundled models, local folders, and the model hub with its cache.

Independent of weights: deals with file names and sizes only. huggingface_hub is imported only for hub ids.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.contracts import Notify
from pipelines.core.errors import HubUnreachableError, ModelError, ModelLayoutError, ModelNotFoundError

from .hub_files import MODEL_PARTS, select_files
from .layout import INDEX_FILE, find_weights, is_pickle, read_autoencoder, read_layout, unsafe_weights
from .lora_files import LoraFile

logger = logging.getLogger(__name__)
BUNDLED_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "models"
AUTOENCODER_PARTS = ("",)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENCE_LINES = re.compile(r"^(license|license_name):[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_OFFLINE_REMEDY = (
    "Check the connection; set HF_ENDPOINT to a mirror; copy the model's folder here and give its path; or copy a hub "
    "cache here and set HF_HOME to it (with HF_HUB_OFFLINE=1 the hub is never contacted)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model on this machine. name: its display name. bundled: whether it ships with Zoetrope."""

    name: str
    folder: Path
    bundled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRepository:
    """A repository in the hub cache. folder: its latest snapshot."""

    hub_id: str
    folder: Path
    size_bytes: int


def bundled_names() -> tuple[str, ...]:
    """Return the names of the models in assets/models."""
    return tuple(sorted(folder.parent.name for folder in BUNDLED_FOLDER.glob(f"*/{INDEX_FILE}")))


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def check_hub_id(name: str) -> None:
    """Raise ModelError unless a name has the form owner/name."""
    if not is_hub_id(name):
        raise ModelError(f"{name!r} is not a hub id.", "Give owner/name, for example stabilityai/sd-turbo.")


def resolve(
    name: str,
    *,
    parts: Sequence[str] = MODEL_PARTS,
    allow_pickle: bool = False,
    notice: Notify = logger.warning,
) -> ModelSource:
    """Find a model: a bundled name, then a local path, then the hub cache, then the hub itself.

    parts: sub-folders to fetch ("" is the repository's root). notice: called before a download starts.
    Raises ModelNotFoundError, HubUnreachableError, UnsafeWeightsError, and as `download` does.
    """
    if name in bundled_names():
        return ModelSource(name=name, folder=BUNDLED_FOLDER / name, bundled=True)
    path = Path(name).expanduser()
    if path.exists():
        return ModelSource(name=path.resolve().name, folder=path)
    if not is_hub_id(name):
        raise _not_found(name)
    cached = cached_folder(name)
    if cached is not None and is_complete(cached, parts=parts, allow_pickle=allow_pickle):
        return ModelSource(name=name, folder=cached)
    return ModelSource(name=name, folder=download(name, parts=parts, allow_pickle=allow_pickle, notice=notice))


def resolve_lora(lora: LoraFile, *, notice: Notify = logger.warning) -> Path:
    """Return the local file of a LoRA; hub ids are looked up in the cache, then fetched. Raises as `resolve` does."""
    path = Path(lora.source).expanduser()
    if path.is_file():
        if is_pickle(path):
            raise unsafe_weights(path)
        return path
    owner, _, rest = lora.source.partition("/")
    name, _, file = rest.partition("/")
    hub_id = f"{owner}/{name}"
    if not is_hub_id(hub_id) or path.is_dir():
        raise ModelNotFoundError(
            f"There is no LoRA file {lora.source!r}.", "Give a .safetensors file, owner/name, or owner/name/FILE."
        )
    folder = cached_folder(hub_id)
    found = None if folder is None else _lora_in(folder, file)
    if found is None:
        folder = download(hub_id, parts=("",), lora_file=file, notice=notice)
        found = _lora_in(folder, file)
    if found is None:
        raise ModelNotFoundError(f"{lora.source} contains no LoRA file.", f"Name the file: {hub_id}/FILE.safetensors.")
    return found


def cache_folder() -> Path:
    """Return the hub cache's folder: HF_HUB_CACHE, HF_HOME/hub, or ~/.cache/huggingface/hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_folder(hub_id: str) -> Path | None:
    """Return the snapshot of a repository in the cache, or None. Does not contact the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def cached_repositories() -> tuple[CachedRepository, ...]:
    """Return the cached model repositories, sorted by id; empty without a cache. Does not contact the hub."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return ()
    return tuple(
        CachedRepository(
            hub_id=repository.repo_id,
            folder=Path(max(repository.revisions, key=lambda revision: revision.last_modified).snapshot_path),
            size_bytes=repository.size_on_disk,
        )
        for repository in sorted(repositories, key=lambda repository: repository.repo_id)
        if repository.repo_type == "model" and repository.revisions
    )


def is_complete(folder: Path, *, parts: Sequence[str] = MODEL_PARTS, allow_pickle: bool = False) -> bool:
    """Return whether a folder has all configurations and weights of a model (for AUTOENCODER_PARTS, an autoencoder)."""
    try:
        alone = tuple(parts) == AUTOENCODER_PARTS
        components = (read_autoencoder(folder),) if alone else read_layout(folder).weighted
        for component in components:
            find_weights(component, allow_pickle=allow_pickle)
    except ModelError:
        return False
    return True


def download(
    hub_id: str,
    *,
    parts: Sequence[str] = MODEL_PARTS,
    allow_pickle: bool = False,
    lora_file: str | None = None,
    notice: Notify = logger.warning,
) -> Path:
    """Fetch the required files of a repository into the cache, with progress bars; returns the snapshot's folder.

    Interrupted downloads are resumed. lora_file: fetch only this file ("" for the only LoRA there is).
    Raises ModelError or a subclass, with the remedy.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _hub_errors(hub_id):
        info = HfApi().model_info(hub_id, files_metadata=True, timeout=10)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        if lora_file is None:
            wanted = select_files(hub_id, sizes, parts=parts, allow_pickle=allow_pickle)
        else:
            wanted = _lora_names(hub_id, sizes, lora_file)
        notice(f"Downloading {hub_id}: {sum(sizes[name] for name in wanted) / 1e6:.0f} MB to {cache_folder()}")
        return Path(snapshot_download(hub_id, revision=info.sha, allow_patterns=list(wanted)))


def licence_of(folder: Path) -> str:
    """Return the licence in the model card's front matter, or 'unknown (see the model card)'."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = text.split("---", 2)[1] if text.startswith("---") and text.count("---") >= 2 else ""
    found = dict(_LICENCE_LINES.findall(front))
    name = found.get("license_name") if found.get("license") == "other" else found.get("license")
    return name or found.get("license") or "unknown (see the model card)"


@contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """Convert what huggingface_hub raises to errors with a remedy. Also turns off its telemetry."""
    from huggingface_hub import constants, errors

    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    except errors.GatedRepoError:
        raise ModelError(
            f"{hub_id} requires you to accept its licence first.",
            f"Accept it on the hub's page of {hub_id}, then set HF_TOKEN to your access token.",
        ) from None
    except errors.RepositoryNotFoundError:
        raise _not_found(hub_id) from None
    except (
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        errors.HTTPError,  # type: ignore[attr-defined]  # of whichever client huggingface_hub uses
    ) as error:
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise HubUnreachableError(
            f"The hub at {constants.ENDPOINT} cannot be reached ({reason}), and {hub_id} is not in the cache "
            f"{constants.HF_HUB_CACHE}.",
            _OFFLINE_REMEDY,
        ) from None


def _not_found(name: str) -> ModelNotFoundError:
    names = bundled_names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    suggestion = f"Did you mean {' or '.join(near)}? " if near else ""
    return ModelNotFoundError(
        f"There is no model {name!r}: no bundled model, folder or hub repository has that name.",
        f"{suggestion}Bundled: {', '.join(names) or 'none'}. Or give a folder in diffusers layout, or a hub id "
        "(owner/name). `zoetrope models` lists the models on this machine.",
    )


def _lora_names(hub_id: str, names: Sequence[str] | dict[str, int], file: str) -> tuple[str, ...]:
    candidates = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if file:
        candidates = [name for name in names if name == file]
    if len(candidates) == 1:
        return tuple(candidates)
    if not candidates:
        pickles = [name for name in names if is_pickle(Path(name))]
        if pickles and not file:
            raise unsafe_weights(Path(hub_id) / pickles[0])
        raise ModelNotFoundError(f"{hub_id} has no file {file or '*.safetensors'}.", "Name one of its LoRA files.")
    raise ModelLayoutError(
        f"{hub_id} contains several .safetensors files: {', '.join(sorted(candidates))}.",
        f"Name one: {hub_id}/{sorted(candidates)[0]}.",
    )


def _lora_in(folder: Path, file: str) -> Path | None:
    files = [folder / file] if file else sorted(folder.glob("*.safetensors"))
    present = [candidate for candidate in files if candidate.is_file()]
    return present[0] if len(present) == 1 else None
