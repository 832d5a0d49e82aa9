"""Command-line options generated from the control table: names, types, help and errors in the table's wording."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from app.cli.options import (
    add_control_options,
    add_engine_options,
    control_from_options,
    engine_options,
    parse_lora,
    parse_size,
)
from pipelines.backends.table import BACKENDS, backend_help
from pipelines.core.control_table import CONTROLS, STREAM_CONTROLS, Propagation
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, InputError
from pipelines.core.prompts import WeightedPrompt
from pipelines.files.loader_options import LoaderOptions, VideoChoices
from pipelines.files.lora_files import LoraFile


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_engine_options(parser)
    add_control_options(parser)
    return parser.parse_args(arguments)


def test_nothing_given_changes_nothing() -> None:
    assert control_from_options(parsed()) == Control()


def test_values_become_the_types_of_the_table() -> None:
    control = control_from_options(
        parsed(
            "--prompt", "a cat:2 | a dog", "--strength", "1", "--steps", "3", "--no-seed-lock", "--similarity-filter"
        )
    )
    assert control == Control(
        prompt=(WeightedPrompt(text="a cat", weight=2.0), WeightedPrompt(text="a dog")),
        strength=1.0,
        steps=3,
        seed_lock=False,
        similarity_filter=True,
    )
    assert isinstance(control.strength, float)


def test_every_control_that_does_not_reopen_the_engine_has_an_option_with_its_help() -> None:
    parser = argparse.ArgumentParser()
    add_control_options(parser)
    text = " ".join(parser.format_help().split())
    for name, spec in CONTROLS.items():
        assert (name in STREAM_CONTROLS) == (spec.propagation is not Propagation.REOPEN)
        if name in STREAM_CONTROLS:
            assert "--" + name.replace("_", "-") in text
            assert f"felt at the {spec.propagation.value}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strength", "2"), "strength cannot be 2.0. Give a value from 0.02 to 1."),
        (("--strength", "much"), "strength must be a number, not 'much'."),
        (("--steps", "1.5"), "steps must be a whole number, not '1.5'."),
        (("--guidance-mode", "half"), "guidance_mode cannot be 'half'. Choose one of: none, full, self, onetime."),
        (("--prompt", "word " * 10_000), "(10000 words). Keep it to 2000 characters."),
    ],
)
def test_bad_values_read_as_in_the_table(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ControlError) as caught:
        control_from_options(parsed(*arguments))
    assert message in str(caught.value)


@pytest.mark.parametrize("argument", ["--strengh", "--stren"])
def test_an_unknown_or_shortened_option_is_refused(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(argument, "1")
    assert caught.value.code == 2
    assert f"unrecognized arguments: {argument}" in capsys.readouterr().err


def test_engine_options_are_keywords_of_the_loader() -> None:
    options = engine_options(
        parsed("--model", "m", "--size", "320x192", "--lora", "a.safetensors:0.5", "--lora", "b/c")
    )
    assert options == LoaderOptions(
        width=320,
        height=192,
        frames_per_slot=1,
        device="auto",
        dtype="auto",
        backend="auto",
        loras=(LoraFile(source="a.safetensors", weight=0.5), LoraFile(source="b/c")),
        autoencoder="auto",
        allow_pickle=False,
        safety=True,
    )
    assert engine_options(parsed("--no-safety")).safety is False
    with pytest.raises(ControlError, match="model"):
        engine_options(parsed("--model", "m" * 5000))


def test_what_is_chosen_of_a_video_model_is_typed() -> None:
    video = ("--kv-policy", "sink", "--window-frames", "9", "--video-stream", "rolling", "--base", "wan")
    assert engine_options(parsed(*video)).video == VideoChoices(
        kv_policy="sink", window_frames=9, stream="rolling", base="wan"
    )
    assert engine_options(parsed()).video.chosen() == {}


@pytest.mark.parametrize("text", ["", "320", "320x", "0x10", "-1x5", "axb"])
def test_a_size_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        parse_size(text)


def test_a_size_beyond_the_table_is_refused() -> None:
    with pytest.raises(ControlError, match="width cannot be 9999"):
        engine_options(parsed("--size", "9999x16"))


def test_a_colon_in_a_path_is_no_scale(tmp_path: Path) -> None:
    odd = tmp_path / "a:2"
    odd.touch()
    assert parse_lora(str(odd)) == (str(odd), 1.0)
    assert parse_lora("c:/styles/x.safetensors") == ("c:/styles/x.safetensors", 1.0)
    assert parse_lora("x.safetensors:-1") == ("x.safetensors", -1.0)


def test_the_help_names_every_backend_and_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # long names are not broken at hyphens
    parser = argparse.ArgumentParser()
    add_engine_options(parser)
    text = " ".join(parser.format_help().split())
    assert backend_help() in text
    first, *others = backend_help().removesuffix(" (default auto)").split("; ")
    assert first.split(", ") == ["auto", *(name for name, row in BACKENDS.items() if row.kinds == ("image", "video"))]
    for kind in ("image", "video"):
        only = [name for name, row in BACKENDS.items() if row.kinds == (kind,)]
        assert (f"{kind} models also {', '.join(only)}" in others) == bool(only)
