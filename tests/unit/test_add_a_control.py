"""examples/add_a_control.py: one row of the control table, and the control is on every way in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.page.widgets import ELSEWHERE, label_of
from examples.add_a_control import another_value, main
from pipelines.core.control_table import CONTROLS, STREAM_CONTROLS
from pipelines.core.errors import ControlError

ROOT = Path(__file__).parents[2]
TABLE = Path("pipelines", "core", "control_table.py")
PLACE = "    # fmt: on\n"
ROWS = {
    "film_grain": """
    film_grain = _float(
        0.0, 0.0, 1.0, propagation=_TICK, section="Look",
        help="Grain on every frame; 0 is none.",
    )
""",
    "look_up": """
    look_up = _choice(
        "none", ("none", "warm", "cold"), propagation=_SLOT, engines=_IMAGE, section="Guidance", unit="",
        help="Colours of every frame.",
    )
""",
    "light_flicker": """
    light_flicker = _bool(False, propagation=_CHUNK, engines=_VIDEO, section="Video", help="Light flickers.")
""",
}
SHOWN = {
    "film_grain": [
        "command line: --film-grain 1.0",
        "page: Look: Slider 'Film grain · next tick'",
        'API: {"maximum": 1.0, "minimum": 0.0, "type": "number"}',
        "OSC: /zoetrope/film_grain",
        'timeline: {"at_s": 2, "film_grain": 1.0}',
        "in code: controls.film_grain",
    ],
    "look_up": [
        "command line: --look-up cold",
        "page: Guidance: Radio 'Look up · next slot'",
        'API: {"enum": ["none", "warm", "cold"], "type": "string"}',
        "OSC: /zoetrope/look_up",
        'timeline: {"at_s": 2, "look_up": "cold"}',
        "in code: controls.look_up",
    ],
    "light_flicker": [
        "command line: --light-flicker",
        "page: Video: Checkbox 'Light flicker · next chunk'",
        'API: {"type": "boolean"}',
        "OSC: /zoetrope/light_flicker",
        'timeline: {"at_s": 2, "light_flicker": true}',
        "in code: controls.light_flicker",
    ],
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The program with a control table of its own."""
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("app", "cache", "trt", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(tree: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_row_in_the_table_is_all_that_a_control_needs(tree: Path) -> None:
    text = (tree / TABLE).read_text(encoding="utf-8")
    assert text.count(PLACE) == 1
    (tree / TABLE).write_text(text.replace(PLACE, "".join(ROWS.values()) + PLACE), encoding="utf-8")
    expected = [line for name, lines in SHOWN.items() for line in (name, *(f"  {line}" for line in lines))]
    assert run(tree, "-m", "examples.add_a_control", *SHOWN).splitlines() == expected
    helped = run(tree, "-m", "app", "render", "--help")
    assert "--film-grain X" in helped
    assert "--light-flicker, --no-light-flicker" in helped


@pytest.mark.parametrize("name", STREAM_CONTROLS)
def test_every_control_is_on_every_way_in(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(name)  # it asserts that each way means the same change
    spec = CONTROLS[name]
    shown, *lines = capsys.readouterr().out.splitlines()
    assert shown == name
    ways = dict(line.strip().split(": ", 1) for line in lines)
    assert [*ways] == ["command line", "page", "API", "OSC", "timeline", "in code"]
    assert another_value(spec) != spec.default
    if name in ELSEWHERE:
        assert ways["page"] == "on the stage itself"
    else:
        assert ways["page"].startswith(f"{spec.section}: ")
        assert ways["page"].endswith(f" '{label_of(spec)}'")


def test_a_control_that_cannot_be_shown_says_why() -> None:
    with pytest.raises(ControlError, match="no control named 'film_grain'"):
        main("film_grain")
    with pytest.raises(ControlError, match="kv_policy needs a new stream"):
        main("kv_policy")
