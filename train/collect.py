"""Owns downloading: fetches the pinned packages, unpacks them, and runs train.sprites, train.photos and train.pack.

python -m train.collect    # needs npm, apt-get, dpkg-deb and pip with access to their usual sources

Reproduces train/data/ (sprites.npz, photos.npz, pack.npz) and assets/samples/photos/.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .pack import Pack, save_pack, split
from .photo_table import PACKAGES, Package
from .photos import package_folder

DATA = Path(__file__).parent / "data"
PACK_LIMIT_BYTES = 26 * 2**20
SPRITE_PACKAGE = "@lobehub/fluent-emoji-3d"


class CollectError(RuntimeError):
    """A package could not be downloaded; the message says which, why, and what to do."""


def run(command: Sequence[str], folder: Path, purpose: str) -> None:
    """Run a command in folder. Raises CollectError, with its last lines, if it is not installed or fails."""
    if shutil.which(command[0]) is None:
        raise CollectError(
            f"{purpose} needs the program {command[0]}, which is not installed; install it and try again."
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise CollectError(
            f"{purpose} failed: `{' '.join(command)}` returned {done.returncode}.\n{tail}\n"
            "Check the network and that this version is still available; versions are pinned in train/photo_table.py."
        )


def download(package: Package, folder: Path) -> Path:
    """The package's archive, downloaded into folder by its own client; an existing archive is kept."""
    patterns = {"npm": "*.tgz", "apt": "*.deb", "pip": "*.whl"}
    commands = {
        "npm": ["npm", "pack", f"{package.name}@{package.version}"],
        "apt": ["apt-get", "download", f"{package.name}={package.version}"],
        "pip": [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", "."),
            f"{package.name}=={package.version}",
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    if not (archives := sorted(folder.glob(patterns[package.kind]))):
        run(commands[package.kind], folder, f"Downloading {package.name} {package.version}")
        archives = sorted(folder.glob(patterns[package.kind]))
    if len(archives) != 1:
        raise CollectError(
            f"{folder} holds {len(archives)} archives of {package.name}; delete that folder and try again."
        )
    return archives[0]


def unpack(package: Package, archive: Path, target: Path) -> None:
    """Unpack the archive into target atomically."""
    unfinished = target.with_name(target.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if package.kind == "npm":
        with tarfile.open(archive) as tar:
            tar.extractall(unfinished, filter="data")
    elif package.kind == "pip":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(unfinished)
    else:
        run(["dpkg-deb", "-x", str(archive), str(unfinished)], unfinished, f"Unpacking {package.name}")
    unfinished.rename(target)


def write_pack() -> int:
    """Join sprites.npz and photos.npz into pack.npz; its size in bytes."""
    with np.load(DATA / "sprites.npz") as stored:
        sprites = stored["sprites"]
    with np.load(DATA / "photos.npz") as stored:
        train = split(stored["photo_train"], stored["photo_train_offsets"])
        test = split(stored["photo_test"], stored["photo_test_offsets"])
    save_pack(DATA / "pack.npz", Pack(sprites=sprites, photo_train=train, photo_test=test))
    size = (DATA / "pack.npz").stat().st_size
    if size > PACK_LIMIT_BYTES:
        raise CollectError(f"pack.npz has {size} bytes, more than {PACK_LIMIT_BYTES}; use fewer photographs.")
    return size


def main() -> None:
    """Download what is missing, then rebuild train/data/ and the test photographs."""
    root = DATA / "packages"
    try:
        for package in PACKAGES:
            target = package_folder(root, package.name)
            if not target.is_dir():
                archive = download(package, package_folder(DATA / "downloads", package.name))
                unpack(package, archive, target)
            print(f"{package.name} {package.version}: {target.relative_to(DATA.parent.parent)}")
        project = DATA.parent.parent
        sprites = package_folder(root, SPRITE_PACKAGE) / "package" / "assets"
        run([sys.executable, "-m", "train.sprites", str(sprites)], project, "Making the sprites")
        run([sys.executable, "-m", "train.photos", str(root)], project, "Cutting the photographs")
        print(f"pack.npz: {write_pack() / 2**20:.1f} MiB")
    except CollectError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
