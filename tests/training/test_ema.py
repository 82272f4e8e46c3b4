"""The average of the weights against its recursion in double precision."""

import torch

from lightgen.training.ema import Ema


def test_the_average_follows_its_closed_form():
    average, expected = Ema({"w": torch.tensor([1.0])}, 0.9), 1.0
    for step in range(200):
        average.update({"w": torch.tensor([float(step % 7)])}, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step % 7)
    torch.testing.assert_close(average.tensors["w"].item(), expected, rtol=1e-5, atol=0)


def test_early_averages_forget_faster():
    average = Ema({"w": torch.tensor([1.0])}, 0.999)
    average.update({"w": torch.tensor([0.0])}, 0)
    torch.testing.assert_close(average.tensors["w"], torch.tensor([0.1]))


def test_it_starts_as_a_copy_that_does_not_share_memory():
    weight = torch.tensor([2.0], requires_grad=True)
    average = Ema({"w": weight}, 0.9)
    with torch.no_grad():
        weight.zero_()
    assert average.tensors["w"].item() == 2 and not average.tensors["w"].requires_grad


def test_small_steps_of_bf16_tensors_are_not_lost():
    average = Ema({"w": torch.zeros(1, dtype=torch.bfloat16)}, 0.999)
    expected = 0.0
    for step in range(10_000, 11_000):
        average.update({"w": torch.ones(1, dtype=torch.bfloat16)}, step)
        expected = 0.999 * expected + 0.001
    assert average.tensors["w"].dtype == torch.float32
    torch.testing.assert_close(average.tensors["w"].item(), expected, rtol=1e-4, atol=0)
