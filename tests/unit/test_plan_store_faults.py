"""The store of plans with several processes, killed ones, and full disks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.test_plan_store import KEY, PLAN, must_not_build, write_plan
from trt.errors import PlanBusyError
from trt.store import PlanStore

ROOT = Path(__file__).parents[2]
BUILDER = """
import sys, time
from pathlib import Path
from tests.unit.test_plan_store import KEY, write_plan
from trt.store import PlanStore

store, log = PlanStore(Path(sys.argv[1]), lambda text: print(text, flush=True)), Path(sys.argv[2])

def write(folder):
    with log.open("a") as stream:
        stream.write("built\\n")
    write_plan(folder)
    print("writing", flush=True)
    while log.with_name("hold").exists():
        time.sleep(0.02)

print(store.build(KEY, write), flush=True)
"""
SPACE = """
import resource, sys
from pathlib import Path
from tests.unit.test_plan_store import KEY
from trt.errors import PlanSpaceError
from trt.store import PlanStore

root, size, limit, swallow = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "swallow"
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
store = PlanStore(root)

def write(folder):
    try:
        with (folder / "plan.bin").open("wb") as stream:
            for _ in range(size // 65536):
                stream.write(bytes(65536))
    except OSError:
        if not swallow:  # as a library whose stream is never asked whether it could write
            raise RuntimeError("the library failed") if not limit else sys.exc_info()[1]

try:
    store.build(KEY, write)
except PlanSpaceError as error:
    assert "zoetrope plans prune" in error.remedy
    assert store.find(KEY) is None and store.entries() == []
    assert not list(root.glob("building/*")), list(root.rglob("*"))
    print("refused")
    small = store.build(KEY, lambda folder: (folder / "plan.bin").write_bytes(b"small") and None)
    print((small / "plan.bin").read_bytes().decode())
"""


def start(code: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == line


def test_two_processes_build_a_plan_once(tmp_path: Path) -> None:
    log, hold = tmp_path / "log", tmp_path / "hold"
    hold.touch()
    first = start(BUILDER, tmp_path / "plans", log)
    wait_for(first, "writing")
    second = start(BUILDER, tmp_path / "plans", log)
    wait_for(second, "Another process is building the plan of denoise; waiting for it.")
    with pytest.raises(PlanBusyError, match="Another process is building"):
        PlanStore(tmp_path / "plans").build(KEY, must_not_build, wait=False)
    assert PlanStore(tmp_path / "plans").find(KEY) is None  # half of it is never seen
    assert PlanStore(tmp_path / "plans").prune(keep_days=0) == []  # nor taken from the builder
    hold.unlink()
    found = {process.communicate(timeout=60)[0].splitlines()[-1] for process in (first, second)}
    assert (first.returncode, second.returncode) == (0, 0)
    assert found == {str(PlanStore(tmp_path / "plans").find(KEY))}
    assert log.read_text() == "built\n"


@pytest.mark.parametrize("then", ["build", "prune"])
def test_a_killed_build_leaves_no_plan_and_no_lock(tmp_path: Path, then: str) -> None:
    (tmp_path / "hold").touch()
    builder = start(BUILDER, tmp_path / "plans", tmp_path / "log")
    wait_for(builder, "writing")
    waiting = start(BUILDER, tmp_path / "plans", tmp_path / "log")
    wait_for(waiting, "Another process is building the plan of denoise; waiting for it.")
    waiting.send_signal(signal.SIGKILL)
    waiting.communicate(timeout=60)
    builder.send_signal(signal.SIGKILL)
    builder.communicate(timeout=60)
    store = PlanStore(tmp_path / "plans")
    assert store.find(KEY) is None
    assert len(list(store.root.glob("building/*/files/plan.bin"))) == 1
    if then == "build":
        started = time.monotonic()
        assert (store.build(KEY, write_plan) / "plan.bin").read_bytes() == PLAN
        assert time.monotonic() - started < 20  # it waits for nobody
    else:
        (removed,) = store.prune()
        assert removed.reason == "left by a killed build"
    assert not list(store.root.glob("building/*"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits on the size of files are tested on Linux")
def test_a_limit_on_the_size_of_files_leaves_nothing(tmp_path: Path) -> None:
    process = start(SPACE, tmp_path / "plans", 1_000_000, 300_000, "raise")
    assert process.communicate(timeout=60)[0].split() == ["refused", "small"]


@pytest.mark.parametrize("library", ["raise", "swallow"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, library: str) -> None:
    """On a disk of 4 MB in memory that only this process sees."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=4m plans {disk} && exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    try:
        able = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("this system lets no process mount a disk of its own")
    process = start(SPACE, disk, 8_000_000, 0, library, prefix=prefix)
    assert process.communicate(timeout=60)[0].split() == ["refused", "small"]
