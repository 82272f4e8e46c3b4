import os

import pytest
import torch

from lightgen.core import device
from lightgen.core.device import card, find_hardware, free_disk, free_memory, peak_flops
from lightgen.core.errors import UserError

BF16, FP32, CPU = torch.bfloat16, torch.float32, torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", BF16, 312.0),
        ("NVIDIA A100-SXM4-80GB", FP32, 19.5),
        ("NVIDIA H100 80GB HBM3", BF16, 989.4),
        ("NVIDIA H100 PCIe", BF16, 756.0),
        ("NVIDIA H200", FP32, 66.9),
        ("NVIDIA L40", BF16, 181.0),
        ("NVIDIA L40S", BF16, 362.0),
        ("NVIDIA L4", BF16, 121.0),
        ("NVIDIA GeForce RTX 4090", BF16, 165.2),
        ("nvidia geforce rtx 3090", BF16, 71.0),
    ],
)
def test_peak_by_name(name, dtype, tera):
    assert peak_flops(name, dtype) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA RTX A1000",
        "NVIDIA A10G",
        "Tesla V100-SXM2-16GB",
    ],
)
def test_no_peak_of_what_only_sounds_alike(name):
    assert peak_flops(name, BF16) is None


def test_no_peak_in_other_types():
    assert peak_flops("NVIDIA H100", torch.float64) is None
    assert peak_flops(torch.device("meta"), BF16) is None


def test_a_cpu_is_measured_once(monkeypatch):
    first = peak_flops(CPU, FP32)
    assert first is not None and 1e8 < first < 1e15
    monkeypatch.setattr(torch, "mm", None)
    assert peak_flops(CPU, FP32) == first


@pytest.mark.parametrize(("name", "known"), [("rtx 4090", "RTX 4090"), ("a100 80GB", "A100-80GB")])
def test_cards(name, known):
    found, memory = card(name)
    assert found == known
    assert 20 * 2**30 < memory < 80 * 2**30


def test_every_card_has_a_peak():
    assert all(peak_flops(name, BF16) and peak_flops(name, FP32) for name in device._CARDS)


def test_an_unknown_card_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^--gpu: unknown GPU 'H10', did you mean 'H100'\?$"):
        card("H10")
    with pytest.raises(UserError, match=r"^--gpu: unknown GPU 'abacus', allowed: A10, A100-40GB, [^\n]*$"):
        card("abacus")


def test_hardware():
    planned = find_hardware("H200", BF16)
    assert (planned.name, planned.is_gpu, planned.is_here) == ("H200", True, False)
    assert planned.peak == pytest.approx(989.4e12)
    here = find_hardware(None, FP32)
    assert here.is_here
    assert here.is_gpu == torch.cuda.is_available()


def test_free_memory_is_less_than_there_is():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = free_memory()
    assert found is not None and 2**20 < found < total
    assert free_memory(CPU) == pytest.approx(found, rel=0.2)


def test_memory_of_a_container(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("active_file 7\ninactive_file 50\n")
    assert device._left_in_container(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert device._left_in_container(tmp_path) is None
    assert device._left_in_container(tmp_path / "none") is None


def test_free_disk_of_a_place_that_is_yet_to_be(tmp_path):
    found, there = free_disk(tmp_path / "a" / "b"), free_disk(tmp_path)
    assert found is not None and there is not None
    assert found == pytest.approx(there, rel=0.2)
