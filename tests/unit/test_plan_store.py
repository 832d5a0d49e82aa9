"""The store of plans: what is found is what was built, nothing broken is returned, and it says why it builds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from trt import manifest
from trt.errors import PlanError
from trt.key import PlanKey, differences
from trt.store import PlanStore, default_root

KEY = PlanKey(
    recipe="tensorrt-rtx",
    part="denoise",
    model="mini-image",
    inputs="latents float16 [2, 4, 24, 24]",
    weights="sha256:1234",
    device="RTX 4090, 8.9",
    driver="580.65",
    libraries="tensorrt-rtx 1.7.1",
)
PLAN = bytes(range(256)) * 64


def write_plan(folder: Path) -> None:
    (folder / "plan.bin").write_bytes(PLAN)
    (folder / "tables").mkdir()
    (folder / "tables" / "names.json").write_text("{}")


def must_not_build(folder: Path) -> None:
    raise AssertionError("it was stored")


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, notices: list[str]) -> PlanStore:
    return PlanStore(tmp_path / "plans of [mine]", notices.append)


def age(folder: Path, seconds: float = 60) -> None:
    """Set back the times of a folder's files; the time of the inode's change stays now."""
    then = time.time() - seconds
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def test_every_field_of_a_key_is_in_its_digest() -> None:
    digests = {KEY.digest, *(replace(KEY, **{field.name: "another"}).digest for field in fields(PlanKey))}
    assert len(digests) == 1 + len(fields(PlanKey))
    assert PlanKey.from_fields(json.loads(json.dumps(KEY.as_fields()))) == KEY
    for damaged in ({}, {**KEY.as_fields(), "model": 3}, {**KEY.as_fields(), "more": ""}):
        with pytest.raises(ValueError, match="Not the fields"):
            PlanKey.from_fields(damaged)


def test_the_details_of_a_recipe_become_fields_of_the_key() -> None:
    common = {
        "recipe": "openvino",
        "part": "pass",
        "model": "m",
        "inputs": "x",
        "weights": "w",
        "program": "p",
        "lora": "",
    }
    key = PlanKey.with_details(**common, details={"device": "CPU", "threads": "2", "hint": "bf16"})  # type: ignore[arg-type]
    assert (key.device, key.options, key.driver) == ("CPU", "hint=bf16, threads=2", "")
    both = PlanKey.with_details(**common, details={"options": "level 3", "threads": "2"})  # type: ignore[arg-type]
    assert both.options == "level 3, threads=2"


def test_a_plan_is_built_once_and_found_by_every_store_of_the_folder(store: PlanStore) -> None:
    assert store.find(KEY) is None
    assert not store.root.exists()  # looking makes nothing
    folder = store.build(KEY, write_plan)
    assert (folder / "plan.bin").read_bytes() == PLAN
    assert store.build(KEY, must_not_build) == folder == PlanStore(store.root).find(KEY)
    assert store.find(replace(KEY, device="RTX 3060, 8.6")) is None
    (entry,) = store.entries()
    assert (entry.key, entry.folder, entry.size_bytes) == (KEY, folder, len(PLAN) + 2)
    assert not list(store.root.glob("building/*"))
    assert store.root.stat().st_mode & 0o077 == 0  # plans are code: for this user only


def truncate(home: Path) -> None:
    os.truncate(home / "files" / "plan.bin", len(PLAN) // 2)


def flip(home: Path) -> None:
    """Change one byte and set the file's times back: neither size nor times show it."""
    file = home / "files" / "plan.bin"
    before = file.stat()
    file.write_bytes(PLAN[:1000] + bytes([PLAN[1000] ^ 1]) + PLAN[1001:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove(home: Path) -> None:
    (home / "files" / "tables" / "names.json").unlink()


def add(home: Path) -> None:
    (home / "files" / "other.bin").write_bytes(b"")


def link(home: Path) -> None:
    (home / "files" / "plan.bin").rename(home / "elsewhere.bin")
    (home / "files" / "plan.bin").symlink_to(home / "elsewhere.bin")


def damage(home: Path) -> None:
    (home / "plan.json").write_text((home / "plan.json").read_text()[:-20])


def exchange(home: Path) -> None:
    """As if the folder had been copied from another machine's store under this name."""
    record = json.loads((home / "plan.json").read_text())
    record["key"]["device"] = "RTX 3060, 8.6"
    (home / "plan.json").write_text(json.dumps(record))


FLAWS: dict[Callable[[Path], None], str] = {
    truncate: "plan.bin has 8192 bytes instead of 16384",
    flip: "the checksum of plan.bin differs",
    remove: "tables/names.json is missing",
    add: "other.bin is not a file of the build",
    link: "plan.bin is not a regular file",
    damage: "plan.json is missing or damaged",
    exchange: "its key is another plan's",
}


@pytest.mark.parametrize("spoil", FLAWS, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("checked_before", [False, True])
def test_a_broken_plan_is_moved_aside_and_built_again(
    store: PlanStore,
    notices: list[str],
    spoil: Callable[[Path], None],
    checked_before: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifest, "_SETTLE_NS", 0)  # remember checks at once
    folder = store.build(KEY, write_plan)
    if checked_before:
        assert store.find(KEY) == folder
    spoil(folder.parent)
    assert store.find(KEY) is None
    assert FLAWS[spoil] in notices[-1]
    assert "moved to" in notices[-1]
    assert FLAWS[spoil] in str(store.why(KEY))
    assert store.entries() == []
    assert (store.build(KEY, write_plan) / "plan.bin").read_bytes() == PLAN
    assert store.find(KEY) == folder
    assert store.why(KEY).stored


@pytest.mark.parametrize("spoil", FLAWS, ids=lambda spoil: spoil.__name__)
def test_verify_reads_all_plans_and_moves_the_broken_ones_aside(
    store: PlanStore, spoil: Callable[[Path], None]
) -> None:
    spoil(store.build(KEY, write_plan).parent)
    good = replace(KEY, part="decode")
    store.build(good, write_plan)
    (broken,) = store.verify()
    assert broken.reason == FLAWS[spoil]
    assert [entry.key for entry in store.entries()] == [good]
    assert store.verify() == []


def test_a_plan_that_did_not_change_is_read_in_full_once_a_week(
    store: PlanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = manifest.sha256_of

    def count(file: Path) -> str:
        reads.append(file.name)
        return read(file)

    folder = store.build(KEY, write_plan)
    monkeypatch.setattr(manifest, "sha256_of", count)
    store.find(KEY)
    store.find(KEY)
    assert len(reads) == 4  # written so recently that a change could leave all times as they are
    monkeypatch.setattr(manifest, "_SETTLE_NS", 0)
    store.find(KEY)
    assert len(reads) == 6
    store.find(KEY)
    assert len(reads) == 6
    checked = folder.parent / "checked.json"
    record = json.loads(checked.read_text())
    record["checked"] -= (manifest.RECHECK_DAYS + 1) * 86400
    checked.write_text(json.dumps(record))
    store.find(KEY)
    assert len(reads) == 8
    (folder / "plan.bin").touch()
    store.find(KEY)
    assert len(reads) == 10


def test_why_names_what_differs_from_the_nearest_plan(store: PlanStore) -> None:
    assert str(store.why(KEY)) == "No plan of this recipe and part is stored."
    store.build(replace(KEY, part="decode"), write_plan)
    assert store.why(KEY).nearest is None
    store.build(replace(KEY, model="another", driver="590.1"), write_plan)
    store.build(replace(KEY, driver="590.1", libraries="tensorrt-rtx 1.8"), write_plan)
    store.build(replace(KEY, weights="sha256:" + "5" * 90, driver="590.1", inputs="x", lora="a@1"), write_plan)
    wanted = replace(KEY, driver="590.1", lora="style@0.8")
    why = store.why(wanted)
    assert why.nearest is not None
    assert why.nearest.key.libraries == "tensorrt-rtx 1.8"
    assert why.differences == differences(why.nearest.key, wanted)
    assert str(why).splitlines()[1:] == [
        "  lora: stored nothing, wanted style@0.8",
        "  libraries: stored tensorrt-rtx 1.8, wanted tensorrt-rtx 1.7.1",
    ]


def test_prune_removes_what_nobody_needs_and_says_why(store: PlanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: replace(KEY, model=name) for name in ("old", "foreign", "first", "second", "third")}
    for key in keys.values():
        store.build(key, write_plan)
    now = time.time()
    for days, name in enumerate(("third", "first", "second", "old")):
        checked = store.build(keys[name], must_not_build).parent / "checked.json"
        os.utime(checked, (now - days * 86400, now - days * 86400))
        record = json.loads((checked.parent / "plan.json").read_text())
        (checked.parent / "plan.json").write_text(json.dumps({**record, "built": now - 5 * 86400}))
    broken = replace(KEY, model="broken")
    truncate(store.build(broken, write_plan).parent)
    assert store.find(broken) is None
    removed = store.prune(
        keep_days=2.5,
        max_bytes=2 * (len(PLAN) + 2),
        unusable=lambda key: "no such card here" if key.model == "foreign" else "",
    )
    reasons = {entry.reason: entry for entry in removed}
    assert set(reasons) == {
        "broken, and moved aside",
        "no such card here",
        "not used for 3 days",
        "the longest unused",
    }
    assert {entry.key.model for entry in store.entries()} == {"third", "first"}
    assert not list(store.root.glob("quarantine/*"))
    assert not list(store.root.glob("building/*"))
    assert store.prune(keep_days=1000) == []


@pytest.mark.parametrize("error", [RuntimeError("the compiler failed"), KeyboardInterrupt()], ids=repr)
def test_a_build_that_fails_or_is_interrupted_leaves_nothing(store: PlanStore, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        write_plan(folder)
        raise error

    with pytest.raises(type(error)):
        store.build(KEY, fail)
    assert store.find(KEY) is None
    assert not list(store.root.glob("building/*"))
    assert store.build(KEY, write_plan)  # the lock is free


def test_a_build_that_writes_nothing_is_an_error(store: PlanStore) -> None:
    with pytest.raises(PlanError, match="wrote no files"):
        store.build(KEY, lambda folder: None)


def test_the_folder_is_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOETROPE_PLANS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "zoetrope" / "plans"
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path / "mine"))
    assert default_root() == PlanStore().root == tmp_path / "mine"
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(PlanError, match="cannot be made"):
        PlanStore().build(KEY, write_plan)
