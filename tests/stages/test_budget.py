"""What is counted without storage is what runs with it."""

from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.models.shape import TransformerConfig
from lightgen.models.student import Student
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.dpo import DPOConfig
from lightgen.objectives.masked import MaskedConfig, MaskedObjective, draw_masking
from lightgen.stages.budget import (
    Count,
    Features,
    build_student,
    build_text_encoder,
    flops_per_image,
    forward_flops,
    mean_mask_share,
    state_bytes,
)
from lightgen.stages.ledger import Ledger
from lightgen.stages.lora import LoraConfig
from lightgen.stages.tasks import DPOTask, PretrainTask
from lightgen.training.optimizer import Optimizer, OptimizerConfig

GRID = (4, 4)
TINY = TransformerConfig(
    latent_channels=4,
    width=64,
    num_heads=2,
    encoder_layers=1,
    decoder_layers=2,
    text_width=32,
    text_length=6,
    head_width=64,
    head_layers=1,
)
LATE = replace(
    TINY,
    fusion="late",
    decoder_layers=1,
    cross_layers=1,
    layers="plain",
    positions="learned",
    prediction="ddpm",
    dropout=0.1,
)
TASK = PretrainTask(objective=MaskedConfig(text_drop=0.0, mask_min=0.5))
BF16, FP32 = torch.bfloat16, torch.float32


@cache
def flops(task=TASK, shape=TINY, **settings) -> float:
    return flops_per_image(task, shape, GRID, **settings)


@cache
def peak(shape=TINY, task=TASK, samples=4, hidden=16, dtype=BF16, accelerator=False, **settings) -> int:
    count = Count(task=task, shape=shape, grid=GRID, **settings)
    return count.peak_bytes(samples, hidden, dtype, accelerator=accelerator)


@pytest.mark.parametrize(
    "config", [MaskedConfig(mask_min=0.7), MaskedConfig(), MaskedConfig(mask_spread=0.1)]
)
def test_mean_mask_share_is_that_of_the_law(config):
    shares = 1 - abs(numpy_draws(0, "test-shares").normal(0.0, config.mask_spread, 200_000))
    assert mean_mask_share(config) == pytest.approx(shares[shares >= config.mask_min].mean(), abs=1e-3)
    assert mean_mask_share(MaskedConfig(mask_spread=0.0)) == 1


@pytest.mark.parametrize("least", [0.0, 0.7])
def test_mean_mask_share_is_that_of_the_other_laws(least):
    uniform = numpy_draws(0, "test-shares").random(200_000)
    for law, shares in (("uniform", uniform), ("cosine", np.cos(np.pi / 2 * uniform))):
        config = MaskedConfig(mask_law=law, mask_min=least)
        assert mean_mask_share(config) == pytest.approx(shares[shares >= least].mean(), abs=2e-3)


def test_tokens_that_skip_blocks_cost_less():
    shape = replace(TINY, decoder_layers=6)
    full, three, four = (flops(shape=replace(shape, decoder_layers=n)) for n in (6, 3, 4))
    none = replace(TASK, objective=replace(TASK.objective, route_share=0.0, route=(1, 4)))
    half = replace(TASK, objective=replace(none.objective, route_share=0.5))
    assert flops(none, shape) == full
    # three blocks of whose tokens, but for the text, half are gone
    length, words = GRID[0] * GRID[1], TINY.text_length
    saved = (full - flops(half, shape)) / (four - three) / 3
    assert saved == pytest.approx(0.5 * length / (length + words), rel=0.15)


def test_a_backward_pass_is_two_forward_passes_and_checkpointing_less_than_one_more():
    forward = forward_flops(LATE, GRID, mean_mask_share(TASK.objective), 4, 4)
    once = flops(shape=LATE)
    assert 2.6 * forward < once <= 3 * forward
    assert once < flops(shape=LATE, gradient_checkpointing=True) < once + forward


def test_flops_of_lora_and_of_a_pair():
    forward = forward_flops(TINY, GRID, mean_mask_share(TASK.objective), 4, 4)
    assert 2.6 * forward < flops() <= 3 * forward
    assert 1.6 * forward < flops(replace(TASK, lora=LoraConfig(rank=1))) < 2.4 * forward
    assert 7.2 * forward < flops(DPOTask(objective=DPOConfig(masking=TASK.objective))) <= 8 * forward


def test_texts_that_are_dropped_cost_nothing():
    half = replace(TASK, objective=replace(TASK.objective, text_drop=0.5))
    text = nn.Linear(1000, 1000, bias=False)
    saved = [flops(text_encoder=each) - flops(half, text_encoder=each) for each in (None, text)]
    assert saved[0] > 0
    assert saved[1] - saved[0] == pytest.approx(1e6 * TINY.text_length)


def test_a_pair_reads_its_text_four_times():
    task, text = DPOTask(objective=DPOConfig(masking=TASK.objective)), nn.Linear(1000, 1000, bias=False)
    read = flops(task, text_encoder=text) - flops(task)
    assert read == pytest.approx(4 * 2e6 * TINY.text_length)


def test_a_pair_costs_four_pictures_of_which_two_learn():
    task = DPOTask(objective=DPOConfig(masking=TASK.objective))
    known = replace(task, precompute=True)
    assert flops(task) / flops() == pytest.approx(8 / 3, rel=0.02)
    assert flops(known) / flops() == pytest.approx(2, rel=0.02)
    added, lora = replace(task, lora=LoraConfig(rank=1)), replace(TASK, lora=LoraConfig(rank=1))
    forward = flops(task) - flops(known)
    assert flops(added) == pytest.approx(2 * flops(lora) + forward, rel=0.02)
    assert flops(replace(added, precompute=True)) == pytest.approx(2 * flops(lora), rel=0.02)


def test_a_pair_whose_reference_is_known_reads_its_text_twice():
    text = nn.Linear(1000, 1000, bias=False)
    for changes, reads in (({"precompute": True}, 2), ({"lora": LoraConfig(rank=1)}, 4)):
        task = DPOTask(objective=DPOConfig(masking=TASK.objective), **changes)
        read = flops(task, text_encoder=text) - flops(task)
        assert read == pytest.approx(reads * 2e6 * TINY.text_length)


def test_text_encoders():
    text = build_text_encoder(TASK, 4096)
    assert sum(p.numel() for p in text.parameters()) == 4_762_310_656
    online = flops(text_encoder=text) - flops()
    assert online / TINY.text_length * 128 / 1e12 == pytest.approx(1.185, abs=0.001)
    trained = replace(TASK, text_encoder="new", train_text_encoder=True)
    assert build_text_encoder(trained, 9).config.d_model == 256
    small = build_text_encoder(TASK, 256)
    assert flops(trained, text_encoder=small) - flops() == pytest.approx(
        3 * (flops(text_encoder=small) - flops())
    )
    with pytest.raises(
        UserError, match=r"^text encoder: got text_width 9, allowed: 256 \(nano\), 4096[^\n]*$"
    ):
        build_text_encoder(TASK, 9)


@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize("shape", [TINY, LATE])
def test_memory_of_a_pass(shape, accelerator):
    base = peak(shape, accelerator=accelerator)
    assert 1.8 * base < peak(shape, samples=8, accelerator=accelerator) < 2.05 * base
    assert peak(shape, accelerator=accelerator, gradient_checkpointing=True) < 0.9 * base


def test_fewer_hidden_tokens_and_shorter_numbers_take_less_memory():
    assert peak(hidden=8) < peak()
    assert 1.5 * peak() < peak(dtype=FP32) < 2 * peak()


def test_fused_operators_keep_less():
    assert peak(LATE, accelerator=True) < 0.95 * peak(LATE, accelerator=False)


def test_gradients_are_not_part_of_the_pass():
    wide = replace(TINY, width=512, head_width=512)
    weights = state_bytes(build_student(TASK, wide, BF16, Features(32)), OptimizerConfig())["weights"]
    assert peak(wide, samples=1, hidden=1) < 0.8 * weights // 2


def test_a_pair_holds_two_pictures_and_a_reference_nothing_for_later():
    task = DPOTask(objective=DPOConfig(masking=TASK.objective))
    assert 1.6 * peak() < peak(task=task) < 3 * peak()


def test_a_trained_text_encoder_is_part_of_the_pass():
    task = replace(TASK, text_encoder="new", train_text_encoder=True)
    shape = replace(TINY, text_width=256)
    assert peak(shape, task, text_encoder=build_text_encoder(task, 256)) > 1.2 * peak(shape, task)


@pytest.mark.parametrize(("shape", "checkpointing"), [(TINY, True), (LATE, False)])
def test_the_count_is_that_of_a_real_pass(shape, checkpointing):
    transformer = LightGenTransformer(**asdict(shape))
    student = Student(transformer, RealFeatures(shape.text_width), train_text_encoder=False).train()
    transformer.gradient_checkpointing = checkpointing
    for parameter in student.parameters():
        parameter.register_post_accumulate_grad_hook(forget)
    objective, ledger, ids = MaskedObjective(TASK.objective), Ledger(), list(range(4))
    ledger.begin([student])
    with sdpa_kernel(SDPBackend.MATH), ledger:
        words = torch.zeros(4, shape.text_length, dtype=torch.int64)
        masking = draw_masking(TASK.objective, 0, ids, 16, transformer.head)
        batch = {"latents": torch.zeros(4, 4, 8, 8), "text_ids": words, "text_mask": words == 0, "ids": ids}
        loss, _ = objective(student, {**batch, "masking": masking}, 0)
        loss.backward()
    hidden = masking.noise.shape[2]
    counted = peak(shape, hidden=hidden, dtype=FP32, gradient_checkpointing=checkpointing)
    assert ledger.peak == pytest.approx(counted, rel=0.02)


class RealFeatures(Features):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("like", torch.zeros(width))


def forget(parameter: torch.Tensor) -> None:
    parameter.grad = None


def test_the_ledger_adds_what_is_made_and_takes_off_what_goes():
    ledger, held = Ledger(), nn.Linear(250, 1, bias=False)
    ledger.begin([held])
    with ledger:
        a = torch.zeros(250)
        b = a.view(5, 50).t() + 1
        c = held.weight.t()
        assert (ledger.now, ledger.peak) == (2000, 2000)
        del a
        b.add_(1)
        assert (ledger.now, ledger.peak) == (1000, 2000)
        d = b * 2
        assert (ledger.now, ledger.peak) == (2000, 2000)
    del b, c, d
    assert ledger.now == 0


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_is_as_large_as_the_optimizers(name):
    config = OptimizerConfig(name=name)
    student = Student(LightGenTransformer(**asdict(TINY)), Features(32), train_text_encoder=False)
    weights = dict(student.named_parameters())
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer = Optimizer(config, weights)
    optimizer.step(1.0)
    held = sum(t.numel() * t.itemsize for t in optimizer.state_tensors().values() if t.ndim)
    counted = state_bytes(build_student(TASK, TINY, BF16, Features(32)), config)
    assert counted["moments"] == held
    total = 4 * sum(weight.numel() for weight in weights.values())
    assert counted["weights"] == counted["gradients"] == counted["average"] == total


def test_only_what_learns_has_a_state():
    student = build_student(replace(TASK, lora=LoraConfig(rank=1)), TINY, BF16, Features(32))
    whole = build_student(TASK, TINY, BF16, Features(32))
    config = OptimizerConfig()
    assert 0 < state_bytes(student, config)["weights"] < 0.1 * state_bytes(whole, config)["weights"]


def test_counting_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    count = Count(task=replace(TASK, lora=LoraConfig(rank=1)), shape=LATE, grid=GRID)
    count.peak_bytes(2, 3, BF16, accelerator=True)
    assert torch.equal(before, torch.get_rng_state())
