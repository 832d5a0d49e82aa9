"""The memory estimate: exact counts from headers, and an error that suggests what would fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.core.errors import ModelLayoutError, OutOfMemoryError
from pipelines.files import memory
from pipelines.files.hub import BUNDLED_FOLDER
from pipelines.files.layout import Component, read_layout
from pipelines.files.memory import WORKING_BYTES, Budget, Pictures, check_memory, count_parameters, free_memory_bytes
from pipelines.files.precision import choose_precision
from pipelines.image.loading import load as loading
from pipelines.image.loading.load import LoadOptions, load_image_model

CPU = torch.device("cpu")
GIB = 2**30


def component(folder: Path) -> Component:
    return Component(name="unet", folder=folder, class_name="UNet2DConditionModel", config={})


def test_parameters_are_counted_from_the_header(tmp_path: Path) -> None:
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({"a": torch.zeros(3, 5, dtype=torch.float16), "b": torch.zeros(7)}, file, metadata={"format": "pt"})
    assert count_parameters(file) == 22
    budget = Budget()
    budget.add(component(tmp_path), torch.float32)
    assert (budget.weights_bytes, budget.half_bytes) == (88, 44)
    assert budget.needed_bytes == 88 + WORKING_BYTES


@pytest.mark.parametrize("kept_bytes", [0, 4, 30, -4])
def test_damaged_files_are_found_before_loading(tmp_path: Path, kept_bytes: int) -> None:
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({"a": torch.zeros(64)}, file)
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(ModelLayoutError, match="not a complete safetensors file"):
        count_parameters(file)


def test_pickles_count_by_size(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"x" * 1000)
    budget = Budget(allow_pickle=True)
    budget.add(component(tmp_path), torch.float32)
    assert budget.weights_bytes == 1000


def test_too_little_memory_says_what_would_fit(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2**20)}, tmp_path / "diffusion_pytorch_model.safetensors")
    budget = Budget()
    budget.add(component(tmp_path), torch.float32)
    check_memory(budget, CPU, free_bytes=lambda device: budget.needed_bytes)
    with pytest.raises(OutOfMemoryError) as caught:
        check_memory(budget, CPU, free_bytes=lambda device: budget.needed_bytes - 1)
    assert "needs about 0.3 GiB of memory, and 0.3 GiB are free" in str(caught.value)
    assert "--dtype bfloat16 would fit" in str(caught.value)
    with pytest.raises(OutOfMemoryError) as caught:
        check_memory(budget, torch.device("cuda", 0), free_bytes=lambda device: 0)
    assert "GPU memory" in str(caught.value)
    assert "would fit (" not in str(caught.value)
    assert "mini-image fits in 1 GiB" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "free_gib", "fits"),
    [((4096, 4096), 2.0, "3120x3120"), ((8192, 2048), 2.0, "6248x1560"), ((16384, 16384), 8.0, "6576x6576")],
)
def test_a_size_that_does_not_fit_is_refused_with_one_that_does(
    tmp_path: Path, size: tuple[int, int], free_gib: float, fits: str
) -> None:
    """mini-image's decoder has 48 channels; at 4096x4096 in bfloat16 a render was seen to take 3.5 GiB in all."""
    save_file({"a": torch.zeros(2**20)}, tmp_path / "diffusion_pytorch_model.safetensors")

    def budget(size: tuple[int, int]) -> Budget:
        needed = Budget()
        needed.add(component(tmp_path), torch.bfloat16)
        needed.pictures = Pictures(width=size[0], height=size[1], channels=48, itemsize=2)
        return needed

    free = round(free_gib * GIB)
    with pytest.raises(OutOfMemoryError, match=rf"at {size[0]}x{size[1]} needs about") as caught:
        check_memory(budget(size), CPU, free_bytes=lambda device: free)
    assert f"--size {fits} would fit" in str(caught.value)
    width, height = map(int, fits.split("x"))
    check_memory(budget((width, height)), CPU, free_bytes=lambda device: free)  # the remedy works


def test_the_estimate_of_a_large_size_is_that_of_a_render() -> None:
    assert Pictures(width=4096, height=4096, channels=48, itemsize=2).needed_bytes == pytest.approx(3.0 * GIB)
    assert Pictures().needed_bytes == 0


def test_a_bundled_model_refuses_a_size_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: GIB)
    with pytest.raises(OutOfMemoryError, match=r"--size .* would fit"):
        load_image_model("mini-image", LoadOptions(device="cpu", dtype="float32", width=8192, height=8192))


def test_what_a_large_size_costs_is_said_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "free_memory_bytes", lambda device: 17 * GIB)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 17 * GIB)
    with pytest.raises(KeyboardInterrupt):
        load_image_model(
            "mini-image", LoadOptions(device="cpu", dtype="bfloat16", width=4096, height=4096, notice=stop)
        )
    (text,) = said
    native = load_image_model("mini-image", LoadOptions(device="cpu", dtype="float32")).size_px
    times = round(4096 * 4096 / (native[0] * native[1]))
    assert "needs about 3.3 GiB of memory, of 17.0 GiB that are free" in text
    assert f"at least {times} times as long as at its own {native[0]}x{native[1]}" in text


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP_FOLDER", tmp_path)
    without_limit = free_memory_bytes(CPU)
    assert without_limit > 0
    (tmp_path / "memory.max").write_text("1000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("400\n", encoding="ascii")
    assert free_memory_bytes(CPU) == 600
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert free_memory_bytes(CPU) > 1000


def test_slicing_is_chosen_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off and auto say no word where the whole picture fits; on and auto refuse what does not fit either way."""
    pictures = Pictures(width=4096, height=4096, channels=48, itemsize=4, frames=2)
    assert replace(pictures, sliced=True).needed_bytes == 4096 * 4096 * 4 * (12 + 2 * 3)
    told: list[str] = []
    size = LoadOptions(device="cpu", dtype="float32", width=2048, height=2048, notice=told.append)
    layout = read_layout(BUNDLED_FOLDER / "mini-image")

    def sliced(slicing: str, free: float) -> bool:
        for module in (loading, memory):
            monkeypatch.setattr(module, "free_memory_bytes", lambda device: round(free * GIB))
        precision = choose_precision(CPU, "float32")
        return loading._check_memory(layout, layout.vae, precision, replace(size, slicing=slicing))

    assert [sliced("off", 8), sliced("auto", 8), sliced("on", 8)] == [False, False, True]
    assert not any("slice" in text for text in told)
    assert sliced("auto", 1)
    assert "slice by slice" in told[-1]
    with pytest.raises(OutOfMemoryError, match="--slicing on would fit"):
        sliced("off", 1)
    for slicing in ("auto", "on"):
        with pytest.raises(OutOfMemoryError) as caught:
            sliced(slicing, 0.3)
        assert "--slicing" not in str(caught.value)
