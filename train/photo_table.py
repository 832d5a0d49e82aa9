"""Owns the list of photographs: package, file, author, licence, and whether training or the held-out test uses each.

One row is one source picture; a picture (or a panorama) is used for training or for the test, never for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ALLOWED_LICENCES = (
    "CC0-1.0",
    "LicenseRef-public-domain",
    "MIT",
    "Apache-2.0",
    "BSD-3-Clause",
    "CC-BY-1.0",
    "CC-BY-2.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
)
"""SPDX identifiers that a bundled file or a training picture may have (a `LicenseRef-` is SPDX's form for the rest)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A pinned package. kind: the client that downloads it; spdx and notice: its licence and copyright line."""

    kind: Literal["npm", "apt", "pip"]
    name: str
    version: str
    spdx: str
    notice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """One source picture. crops: pieces of it that the test uses; 0 = training. panorama: equirectangular OpenEXR."""

    package: str
    path: str
    spdx: str
    author: str
    title: str
    crops: int = 0
    panorama: bool = False

    def __post_init__(self) -> None:
        if self.spdx not in ALLOWED_LICENCES:
            raise ValueError(f"{self.path}: licence {self.spdx}; use only {', '.join(ALLOWED_LICENCES)}")
        if not 0 <= self.crops <= 5:
            raise ValueError(f"{self.path}: crops={self.crops}; at most 5 test crops come from one picture")


PACKAGES = (
    Package(
        kind="npm",
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        spdx="MIT",
        notice="Fluent Emoji, Copyright (c) Microsoft Corporation; packaged by LobeHub",
    ),
    Package(
        kind="npm",
        name="@pmndrs/assets",
        version="1.7.0",
        spdx="CC0-1.0",
        notice="panoramas from Poly Haven (formerly HDRI Haven), CC0",
    ),
    Package(
        kind="apt",
        name="blender-data",
        version="3.4.1+dfsg-2",
        spdx="CC0-1.0",
        notice="studiolights/world/license.txt: all HDRIs are CC0, by Greg Zaal (HDRI Haven); nothing else is used",
    ),
    Package(
        kind="apt",
        name="lomiri-wallpapers-16.04",
        version="20.04.0-2",
        spdx="CC-BY-4.0",
        notice="only its CC-BY-4.0 and CC0-1.0 pictures are used, each by the author named",
    ),
    Package(
        kind="apt",
        name="gcompris-qt-data",
        version="3.1-2",
        spdx="LicenseRef-public-domain",
        notice="only the public-domain, CC0 and CC-BY photographs that its copyright file lists one by one are used",
    ),
    Package(
        kind="apt",
        name="opencv-doc",
        version="4.6.0+dfsg-12",
        spdx="Apache-2.0",
        notice="OpenCV sample pictures, Apache-2.0 as the package states; not stated picture by picture",
    ),
    Package(
        kind="pip",
        name="scikit-image",
        version="0.25.2",
        spdx="CC0-1.0",
        notice="only pictures that skimage.data documents as CC0 or public domain are used",
    ),
    Package(
        kind="pip",
        name="scikit-learn",
        version="1.7.2",
        spdx="CC-BY-2.0",
        notice="the two pictures of sklearn/datasets/images, authors in its README.txt",
    ),
    Package(
        kind="pip",
        name="matplotlib",
        version="3.10.8",
        spdx="LicenseRef-public-domain",
        notice="sample_data/grace_hopper.jpg, a work of the US Navy",
    ),
)


def _lomiri(name: str, author: str, title: str, crops: int = 0, spdx: str = "CC-BY-4.0") -> Photo:
    path = f"usr/share/backgrounds/{name}.jpg"
    return Photo(package="lomiri-wallpapers-16.04", path=path, spdx=spdx, author=author, title=title, crops=crops)


def _gcompris(bundle: str, name: str, spdx: str, author: str, title: str, crops: int = 0) -> Photo:
    folder = "categorization/resource/images" if bundle != "explore_world_animals" else f"{bundle}/resource"
    rcc = "categorization" if bundle != "explore_world_animals" else bundle
    path = f"usr/share/gcompris-qt/rcc/{rcc}.rcc:gcompris/src/activities/{folder}/{name}.webp"
    return Photo(package="gcompris-qt-data", path=path, spdx=spdx, author=author, title=title, crops=crops)


def _skimage(name: str, spdx: str, author: str, title: str, crops: int = 0) -> Photo:
    path = f"skimage/data/{name}"
    return Photo(package="scikit-image", path=path, spdx=spdx, author=author, title=title, crops=crops)


def _blender(name: str, crops: int = 0) -> Photo:
    path = f"usr/share/blender/datafiles/studiolights/world/{name}.exr"
    title = f"{name} panorama"
    return Photo(
        package="blender-data", path=path, spdx="CC0-1.0", author="Greg Zaal", title=title, crops=crops, panorama=True
    )


def _pmndrs(name: str) -> Photo:
    path = f"package/hdri/{name}.exr.js"
    title = f"{name} panorama"
    return Photo(package="@pmndrs/assets", path=path, spdx="CC0-1.0", author="Poly Haven", title=title, panorama=True)


def _opencv(name: str) -> Photo:
    path = f"usr/share/doc/opencv-doc/examples/{name}"
    title = name.rsplit("/", 1)[-1]
    return Photo(package="opencv-doc", path=path, spdx="Apache-2.0", author="OpenCV contributors", title=title)


PD = "LicenseRef-public-domain"
AITZOL = "Aitzol Berasategi"
FREESPACE = 'Trevor "Freespace"'

PHOTOS: tuple[Photo, ...] = (
    # Held out for the test.
    _lomiri("friends_by_Aitzol_Berasategi", AITZOL, "friends", 4),
    _lomiri("picosdeeuropa_by_Aitzol_Berasategi", AITZOL, "picosdeeuropa", 4),
    _lomiri("Picture_0B_by_freespace", FREESPACE, "Picture 0B", 3),
    _lomiri("Picture_1A_by_freespace", FREESPACE, "Picture 1A", 2),
    _lomiri("Wine_by_Jakkub_Mede", "Jakub Mede", "Wine", 4),
    _skimage("camera.png", "CC0-1.0", "Lav Varshney", "camera", 1),
    _skimage("rocket.jpg", PD, "SpaceX", "rocket", 1),
    _skimage("coins.png", PD, "Brooklyn Museum collection", "coins", 1),
    Photo(
        package="scikit-learn",
        path="sklearn/datasets/images/china.jpg",
        spdx="CC-BY-2.0",
        author="danielbuechele",
        title="china",
        crops=2,
    ),
    Photo(
        package="scikit-learn",
        path="sklearn/datasets/images/flower.jpg",
        spdx="CC-BY-2.0",
        author="vultilion",
        title="flower",
        crops=1,
    ),
    Photo(
        package="matplotlib",
        path="matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        spdx=PD,
        author="James S. Davis, US Navy",
        title="Grace Hopper",
        crops=1,
    ),
    _gcompris("explore_world_animals", "animals/moose", PD, "Ryan Hagerty", "Male Moose", 2),
    _gcompris("explore_world_animals", "animals/crocodile", "CC-BY-3.0", "Kmanoj", "Marsh Crocodiles basking", 2),
    _gcompris("explore_world_animals", "animals/panda", "CC-BY-1.0", "Aaron Logan", "Lightmatter panda", 2),
    _gcompris("categorization", "monuments/greatWall", "CC-BY-2.0", "Hao Wei", "The Great Wall", 1),
    _gcompris("categorization", "monuments/leaningTowerOfPisa", "CC-BY-2.0", "Dan Kamminga", "Torre di Pisa", 1),
    _gcompris("categorization", "monuments/zimniPalace", "CC-BY-3.0", "Dezidor", "Zimní palác (3)", 1),
    _gcompris("categorization", "renewable/windmill7", "CC-BY-1.0", "J.c.houd", "Saint-Vaast, Le Moulin", 1),
    _gcompris("categorization", "renewable/windmill12", "CC-BY-2.0", "Jean-Pol Grandmont", "Ellezelles", 1),
    _gcompris("categorization", "renewable/solar1", "CC-BY-2.0", "Nadya Peek", "Solar cooker 1", 1),
    _gcompris("categorization", "renewable/solar2", "CC0-1.0", "Fluffyarse", "Sungril solar cooker", 1),
    _gcompris("categorization", "renewable/dam2", PD, "László Szalai", "Bekes-dam duzzaszto", 1),
    _gcompris("categorization", "tools/nailCutter", PD, "Tripy", "Cortaunyas", 1),
    _gcompris("categorization", "tools/scissors2", "CC-BY-1.0", "Modeha", "2scissors", 1),
    _gcompris("categorization", "tools/screwDriver", PD, "Dmitry G", "Screw driver", 1),
    _gcompris("categorization", "tools/multimeter2", PD, "Chabrez", "Multimeter DT-830", 1),
    _gcompris("categorization", "fishes/fish25", PD, "Necrophorus", "Goldfisch 1", 1),
    _gcompris("categorization", "others/bucket", PD, "MarlonBSB", "Balde", 1),
    _gcompris("categorization", "others/buffetset", PD, "Susan G. Detweiler", "Lincoln buff set, 1864", 1),
    _blender("interior", 5),
    _blender("forest", 5),
    _blender("city", 5),
    # Training.
    _lomiri("aitzgorri_by_Aitzol_Berasategi", AITZOL, "aitzgorri"),
    _lomiri("life_by_Aitzol_Berasategi", AITZOL, "life"),
    _lomiri("sunset_by_Aitzol_Berasategi", AITZOL, "sunset"),
    _lomiri("seeding_by_Clements_Engelhardt", "Clemens Engelhardt", "seeding", 0, "CC0-1.0"),
    _skimage("hubble_deep_field.jpg", PD, "NASA", "Hubble eXtreme Deep Field"),
    _skimage("brick.png", "CC0-1.0", "CC0Textures", "brick"),
    _skimage("grass.png", "CC0-1.0", "Linolafett", "grass"),
    _skimage("gravel.png", "CC0-1.0", "CC0Textures", "gravel"),
    _gcompris("categorization", "fishes/fish4", PD, "Hadal", "YellowPerch"),
    _gcompris("categorization", "others/pan", PD, "Suricata", "Pfanne (Gusseisen)"),
    _gcompris("categorization", "renewable/solar4", PD, "ENERGY.GOV", "Hybrid Solar Energy System"),
    _gcompris("categorization", "renewable/windmill", PD, "G-Man", "Chesterton Windmill"),
    _gcompris("categorization", "tools/screwDriver2", PD, "Dezertscorpion", "Torque screw driver"),
    _gcompris("categorization", "tools/sideCutter1", PD, "M338", "Carbon steel diagonal side cutters"),
    _gcompris("categorization", "tools/wrench", PD, "Dori", "Monkey wrench"),
    *(_blender(name) for name in ("courtyard", "night", "studio", "sunrise", "sunset")),
    *(
        _pmndrs(name)
        for name in (
            "apartment",
            "bridge",
            "city",
            "dawn",
            "esplanade",
            "forest",
            "hall",
            "lab",
            "lobby",
            "park",
            "sky",
            "sunset",
            "warehouse",
            "workshop",
        )
    ),
    *(
        _opencv(name)
        for name in (
            "alphamat/input_images/plant.jpg",
            "data/aero1.jpg",
            "data/board.jpg",
            "data/building.jpg",
            "data/chicky_512.png",
            "data/home.jpg",
            "data/stuff.jpg",
        )
    ),
)
