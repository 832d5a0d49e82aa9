"""bench.drift, bench.mini_video and bench.prompt_switch on a tiny random model: their results, files and options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import actions, drift, mini_video, prompt_switch
from bench.drift import CASES, Case, read_case
from bench.drift_plots import plot
from bench.prompt_switch import chunks_until, pairs, statistics_of, verdict
from bench.video_scores import truth_of
from cache.kv.policies import POLICIES, make_policy
from tests.fakes.sprites import made_up_pack
from tests.fakes.tiny_video_model import tiny_video_model

CLASSIFIER = "assets/models/mini-classifier"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_video_model(tmp_path_factory.mktemp("tiny"), tiny_vae=True)


@pytest.fixture(scope="module", autouse=True)
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with made_up_pack(tmp_path_factory.mktemp("pack")):
        yield


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _arguments(model: Path, captions: int, *more: str) -> list[str]:
    return [
        *("--model", str(model), "--classifier", CLASSIFIER, "--device", "cpu", "--threads", "1", "--json"),
        *("--captions", str(captions), *more),
    ]


def test_every_policy_is_a_case_and_fits_the_window() -> None:
    assert {case.policy for case in CASES.values()} == set(POLICIES)
    for name, case in CASES.items():
        options = case.video_options(243)
        policy = make_policy(case.policy, grid=(8, 8), chunk_frames=3, **options.policy_options)
        attended = policy.attended_tokens / 64
        assert attended == (243 if name == "full" else pytest.approx(12, abs=4.6)), name


def test_two_prompts_under_two_policies_and_on_from_there(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "drift"
    arguments = [*_arguments(model, 2), "--seconds", "3", "--out", str(out), "--cases", "window", "full"]
    assert drift.main([*arguments, "--minutes", "0"]) == 0
    nothing = json.loads(capsys.readouterr().out)
    assert (nothing["cases"], nothing["left"]) == ({}, ["window", "full"])
    assert drift.main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["left"] == []
    row: dict[str, Any] = first["cases"]["window"]
    assert row["kv_mib"] > 0
    assert row["fps"] > 0
    assert 0 <= row["subject"] <= 1
    stored = json.loads((out / "full.json").read_text(encoding="utf-8"))
    assert len(stored["curves"]["flicker"]) == 3
    assert set(stored["curves"]) == {
        "sharpness", "saturation", "degree", "flicker", "histogram_drift", "subject", "place", "style",
    }  # fmt: skip

    def never(*_: object) -> None:
        raise AssertionError("a finished case is not measured again")

    monkeypatch.setattr(drift, "measured", never)
    assert drift.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == first["cases"]
    plot(out, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").stat().st_size > 2000
    plot(out, tmp_path / "bold.png", bold=["window"])
    assert (tmp_path / "bold.png").read_bytes() != (tmp_path / "drift.png").read_bytes()
    with pytest.raises(ValueError, match="has no case sink-6; it has full, window"):
        plot(out, tmp_path / "none.png", bold=["sink-6"])
    assert "| window |" in drift.table({"window": stored})
    with pytest.raises(ValueError, match="use another --out"):
        read_case(out / "full.json", {"captions": 3})


def test_a_plot_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"bench\.drift"):
        plot(tmp_path, tmp_path / "a.png")


def test_the_full_cache_holds_the_whole_stream() -> None:
    assert Case(policy="full").video_options(243).policy_options == {"max_frames": 243}


def test_mini_video_says_every_figure_and_bar(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mini_video, "PSNR_CLIPS", 2)
    monkeypatch.setattr(mini_video, "PSNR_LATENTS", 2)
    sheet = tmp_path / "sheet.png"
    arguments = [*_arguments(model, 3), "--seconds", "3", "--batch", "2", "--sheet", str(sheet), "--no-photographs"]
    assert mini_video.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["captions"] == 3
    assert set(found["psnr_db"]) == {"stock", "tiny"}
    assert set(found["bars"]) == {
        *(f"{name}_0_to_5_s" for name in ("subject", "place", "motion")),
        *(f"{name}_lost_at_the_end" for name in ("subject", "place", "motion")),
        *("degree_kept", "sharpness_kept", "saturation_kept"),
    }
    assert not found["all_met"]
    assert found["bars"]["place_0_to_5_s"]["least"] == 0.9
    assert found["cost"]["bytes_of_a_stream"]["kv"] > 0
    assert sheet.stat().st_size > 1000
    assert len(sheet.with_suffix(".txt").read_text(encoding="utf-8").splitlines()) == 3


def test_a_model_without_actions_is_refused(model: Path) -> None:
    from pipelines.core.errors import InputError

    with pytest.raises(InputError, match="takes no actions"):
        actions.main([*_arguments(model, 5), "--seconds", "1"])


# -- prompt switches ---------------------------------------------------------------------------------------------------


def test_a_switch_is_measured_in_each_mode(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*_arguments(model, 2), "--chunks-before", "1", "--chunks-after", "2"]
    assert prompt_switch.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["modes"]) == ["cut", "flush", "glide"]
    for mode in found["modes"].values():
        assert len(mode["new_seen_by_chunk"]) == 2
        assert 0 <= mode["old_gone"]["share"] <= 1


def test_pairs_differ_in_subject_and_place() -> None:
    before, after = pairs(16, 150, 0)
    assert before.subject.shape == (16,)
    assert not bool((before.subject == after.subject).any())
    assert not bool((before.place == after.place).any())
    assert int(after.place.min()) >= 0


def test_a_chunk_counts_only_when_it_stays_so() -> None:
    holds = torch.tensor([[True, False, True], [True, True, True], [False, True, False]])
    assert chunks_until(holds) == [3, 1, None]
    assert statistics_of([3, 1, None]) == {"share": 0.6667, "median_chunk": 2.0, "worst_chunk": 3}
    assert statistics_of([None]) == {"share": 0.0, "median_chunk": None, "worst_chunk": None}


def test_a_verdict_on_known_answers() -> None:
    before, after = pairs(2, 150, 0)
    old, new = truth_of(before), truth_of(after)
    half = torch.stack([new[:, 0], old[:, 1], new[:, 2]], 1)
    found = verdict(torch.stack([old, half, new, new], 1), before, after)
    assert found["new_seen"]["median_chunk"] == 3
    assert found["new_subject"]["median_chunk"] == 2
    assert found["old_gone"]["worst_chunk"] == 3
    assert found["new_seen_by_chunk"] == [0.0, 0.0, 1.0, 1.0]
