"""Owns assets/manifest.json: what every bundled file is, its checksum and licence, and where training data came from.

python -m train.manifest    # run again after replacing any file under assets/

Independent of how the files are made. Licence texts are in assets/LICENSES/<SPDX identifier>.txt.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .make_sample import SHOTS, find
from .photo_table import PACKAGES, PHOTOS, Photo
from .photos import test_sources

ASSETS = Path(__file__).parent.parent / "assets"
FORMAT = "zoetrope-assets/1"
FIELDS = {
    "files": "every file under assets/ except README.md files, manifest.json and LICENSES/",
    "files[].path": "path below assets/",
    "files[].sha256": "SHA-256 of the file's bytes, hexadecimal",
    "files[].bytes": "size of the file",
    "files[].spdx": "SPDX identifier of its licence; the text is LICENSES/<spdx>.txt",
    "files[].source": "where its content comes from, with authors and titles",
    "files[].made": "the command that makes it, and what was changed",
    "training_sources": "every package whose pictures the bundled models were trained on or are tested with",
    "training_sources[].spdx": "the licence of what was taken, where all of it has one; each picture has its own",
    "training_sources[].taken": "what was taken from the package",
    "training_sources[].pictures": "each picture: file in the package, licence, author, title, and its use",
}
TAKEN = {
    "@lobehub/fluent-emoji-3d": "one sprite for each subject in train/vocabulary.py, scaled to 160 px",
}


def credit(photo: Photo) -> str:
    """One line that names title, author, licence and package."""
    version = next(package.version for package in PACKAGES if package.name == photo.package)
    return f'"{photo.title}" by {photo.author}, {photo.spdx}, from {photo.package} {version}'


def describe(path: str) -> dict[str, str]:
    """spdx, source and made of one file below assets/. Raises ValueError if no rule covers it."""
    if path.startswith("samples/photos/"):
        photo = test_sources()[int(Path(path).stem)]
        change = "a view with tone mapping" if photo.panorama else "cropped and resized"
        made = f"python -m train.collect: {change} to 256x256"
        return {"spdx": photo.spdx, "source": f"{photo.path} ({credit(photo)})", "made": made}
    if path == "samples/camera.mp4":
        source = "; ".join(credit(find(shot.title)) for shot in SHOTS)
        made = "python -m train.make_sample: the pictures in motion, with a tune synthesised by that script"
        return {"spdx": "CC-BY-4.0", "source": source, "made": made}
    if path == "models/mini-image/step_profile.json":
        made = "python -m bench.step_caches --calibrate; the router: python -m train.step_router"
        return {"spdx": "Apache-2.0", "source": "this project; measured on the model itself", "made": made}
    makers = (
        ("mini-image", "train.run"),
        ("mini-classifier", "train.run"),
        ("mini-video", "train.video.run"),
        ("mini-video-judge", "train.video.run"),
    )
    for model, maker in makers:
        if path.startswith(f"models/{model}/"):
            source = "this project; trained from random weights on training_sources and on scenes that train/ renders"
            return {"spdx": "Apache-2.0", "source": source, "made": f"python -m {maker}"}
    raise ValueError(f"assets/{path} has no rule in train/manifest.py; add one with its licence and origin")


def bundled_files(assets: Path) -> list[str]:
    """Paths below assets/ that the manifest must list, sorted."""
    every = (path.relative_to(assets) for path in assets.rglob("*") if path.is_file())
    bundled = (p for p in every if p.name not in ("README.md", "manifest.json") and p.parts[0] != "LICENSES")
    return sorted(p.as_posix() for p in bundled if not p.name.startswith("."))


def file_entry(assets: Path, path: str) -> dict[str, Any]:
    """The manifest's entry of one file."""
    data = (assets / path).read_bytes()
    return {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **describe(path)}


def training_sources() -> list[dict[str, Any]]:
    """One entry per package, with every picture taken from it."""
    sources = []
    for package in PACKAGES:
        photos = [photo for photo in PHOTOS if photo.package == package.name]
        licences = sorted({photo.spdx for photo in photos} or {package.spdx})
        sources.append(
            {
                "client": package.kind,
                "package": package.name,
                "version": package.version,
                "spdx": " AND ".join(licences),
                "attribution": package.notice,
                "taken": TAKEN.get(package.name, f"{len(photos)} pictures: crops and views, resized"),
                "pictures": [
                    {
                        "file": photo.path,
                        "spdx": photo.spdx,
                        "author": photo.author,
                        "title": photo.title,
                        "use": "test" if photo.crops else "training",
                    }
                    for photo in photos
                ],
            }
        )
    return sources


def build(assets: Path = ASSETS) -> dict[str, Any]:
    """The complete manifest for the files currently under assets."""
    return {
        "format": FORMAT,
        "fields": FIELDS,
        "files": [file_entry(assets, path) for path in bundled_files(assets)],
        "training_sources": training_sources(),
    }


def main() -> None:
    """Write assets/manifest.json."""
    manifest = build()
    (ASSETS / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    size = sum(entry["bytes"] for entry in manifest["files"])
    print(f"{len(manifest['files'])} files, {size / 2**20:.1f} MiB; {len(manifest['training_sources'])} sources")


if __name__ == "__main__":
    main()
