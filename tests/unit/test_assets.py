"""assets/manifest.json agrees with the bundled files and the allowed licences."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import av
import cv2
import pytest

ASSETS = Path(__file__).parents[2] / "assets"
ALLOWED = {
    "CC0-1.0",
    "LicenseRef-public-domain",
    "MIT",
    "Apache-2.0",
    "BSD-3-Clause",
    "CC-BY-1.0",
    "CC-BY-2.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
}
TEST_PHOTOS = 60


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((ASSETS / "manifest.json").read_text(encoding="utf-8"))
    return read


def test_every_bundled_file_is_listed_with_its_checksum(manifest: dict[str, Any]) -> None:
    there = {
        path.relative_to(ASSETS).as_posix()
        for path in ASSETS.rglob("*")
        if path.is_file()
        and path.name not in ("README.md", "manifest.json")
        and path.relative_to(ASSETS).parts[0] != "LICENSES"
        and not path.name.startswith(".")
    }
    listed = [entry["path"] for entry in manifest["files"]]
    assert len(listed) == len(set(listed)), "a file is listed twice"
    assert there == set(listed), "run `python -m train.manifest`"
    for entry in manifest["files"]:
        data = (ASSETS / entry["path"]).read_bytes()
        assert len(data) == entry["bytes"], entry["path"]
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], f"{entry['path']}: run `python -m train.manifest`"


def test_licences_are_allowed_and_their_texts_are_bundled(manifest: dict[str, Any]) -> None:
    used = {entry["spdx"] for entry in manifest["files"]}
    for source in manifest["training_sources"]:
        used |= set(source["spdx"].split(" AND ")) | {picture["spdx"] for picture in source["pictures"]}
    assert used <= ALLOWED
    for spdx in used:
        assert (ASSETS / "LICENSES" / f"{spdx}.txt").read_text(encoding="utf-8").strip()


def test_attribution_is_given(manifest: dict[str, Any]) -> None:
    assert all(entry["source"] and entry["made"] for entry in manifest["files"])
    for source in manifest["training_sources"]:
        assert source["attribution"]
        assert source["version"]
        for picture in source["pictures"]:
            assert picture["author"], picture["file"]
            assert picture["title"], picture["file"]
    notices = " ".join(source["attribution"] for source in manifest["training_sources"])
    assert "Copyright (c) Microsoft Corporation" in notices


def test_training_and_test_pictures_are_disjoint(manifest: dict[str, Any]) -> None:
    uses: dict[tuple[str, str], set[str]] = {}
    for source in manifest["training_sources"]:
        for picture in source["pictures"]:
            uses.setdefault((source["package"], picture["file"]), set()).add(picture["use"])
    assert {"training"} in uses.values()
    assert {"test"} in uses.values()
    assert all(len(use) == 1 for use in uses.values())


def test_sample_photographs() -> None:
    photos = sorted((ASSETS / "samples" / "photos").glob("*.jpg"))
    assert [path.name for path in photos] == [f"{i:02d}.jpg" for i in range(TEST_PHOTOS)]
    for path in photos:
        picture = cv2.imread(str(path))
        assert picture is not None, path.name
        assert picture.shape == (256, 256, 3), path.name
        assert picture.std() > 8, f"{path.name} is almost blank"


def test_sample_clip_has_144_frames_and_sound() -> None:
    path = ASSETS / "samples" / "camera.mp4"
    assert path.stat().st_size < 1_500_000
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, float(video.average_rate or 0)) == (384, 288, 24.0)
        frames = sum(1 for _ in container.decode(video=0))
        container.seek(0)
        loudest = max(float(abs(block.to_ndarray()).max()) for block in container.decode(audio=0))
    assert frames == 144
    assert 0.05 < loudest <= 1.0
