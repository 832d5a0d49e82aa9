"""Devices and dtypes: what auto chooses and why, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from pipelines.core.errors import ModelError
from pipelines.files import precision
from pipelines.files.precision import choose_device, choose_precision

CPU = torch.device("cpu")


def use_cpu(monkeypatch: pytest.MonkeyPatch, flags: Mapping[str, object]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)


@pytest.mark.parametrize(
    ("flags", "dtype", "reason"),
    [
        ({"avx2": True}, torch.float32, "float32: the CPU does not calculate in bfloat16"),
        ({"avx2": True, "avx512_bf16": True}, torch.bfloat16, "bfloat16: the CPU has avx512_bf16"),
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16, "bfloat16: the CPU has avx512_bf16, amx_bf16"),
        ({"bf16": True}, torch.bfloat16, "bfloat16: the CPU has bf16"),
        ({}, torch.float32, "float32: the CPU does not calculate in bfloat16"),
    ],
)
def test_auto_on_a_cpu_follows_its_features(
    monkeypatch: pytest.MonkeyPatch, flags: Mapping[str, object], dtype: torch.dtype, reason: str
) -> None:
    use_cpu(monkeypatch, flags)
    chosen = choose_precision(CPU, "auto")
    assert (chosen.dtype, chosen.reason) == (dtype, reason)


def test_auto_on_cuda_is_float16() -> None:
    chosen = choose_precision(torch.device("cuda", 0), "auto")
    assert (chosen.dtype, chosen.dtype_name) == (torch.float16, "float16")


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ("float16", "CPUs do not calculate in it"),
        ("bfloat16", "this cpu device does not calculate in it"),
        ("int8", "no number format 'int8'. Use auto or one of: float32"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, requested: str, message: str) -> None:
    use_cpu(monkeypatch, {"avx2": True})
    with pytest.raises(ModelError, match=message):
        choose_precision(CPU, requested)


def test_what_was_asked_for_is_used() -> None:
    assert choose_precision(CPU, "float32").reason == "float32 as asked"
    assert choose_precision(CPU, "float64").dtype is torch.float64


def test_flags_are_those_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpu(monkeypatch, {"avx2": True, "avx512_f": False, "sse": True, "amx_bf16": True})
    assert precision.cpu_flags() == ("avx2", "amx_bf16")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    assert choose_device("cpu:0") == CPU
    for requested, message in (
        ("cuda", "this machine has 0 CUDA devices.*--device cpu"),
        ("warp", "no kind of device named 'warp'"),
        ("meta", "does not run on meta devices"),
    ):
        with pytest.raises(ModelError, match=message):
            choose_device(requested)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ModelError, match="has 2 CUDA devices"):
        choose_device("cuda:2")
