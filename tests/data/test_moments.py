import torch

from lightgen.data.moments import Moments, together


def test_the_variance_is_that_of_what_is_drawn():
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(6, 3, 4, 5, generator=random).bfloat16() * torch.tensor([1, 4, 0.1])[:, None, None]
    std = torch.rand(6, 3, 4, 5, generator=random).bfloat16()
    found = Moments.of(mean, std)
    noise = torch.randn(20_000, *mean.shape, generator=random)
    drawn = mean + std * noise
    flat = drawn.permute(2, 0, 1, 3, 4).flatten(1)
    torch.testing.assert_close(torch.tensor(found.mean), flat.mean(dim=1), atol=0.01, rtol=0.01)
    torch.testing.assert_close(torch.tensor(found.std), flat.std(dim=1), atol=0.01, rtol=0.01)
    assert found.count == 6 * 20


def test_parts_in_any_order_give_the_same_digits():
    random = torch.Generator().manual_seed(1)
    parts = [
        Moments.of(10.0**k * torch.randn(3, 2, 4, 4, generator=random), torch.rand(3, 2, 4, 4))
        for k in range(-3, 4)
    ]
    assert together(parts) == together(reversed(parts)) == together([together(parts)])
    assert together(parts).count == sum(part.count for part in parts)


def test_a_channel_that_is_constant_has_no_spread():
    found = Moments.of(torch.full((5, 1, 3, 3), 0.1), None)
    assert found.std[0] < 1e-8 and abs(found.mean[0] - 0.1) < 1e-8


def test_they_come_back_from_json():
    found = Moments.of(torch.ones(2, 3, 2, 2), torch.ones(2, 3, 2, 2))
    assert Moments.from_json({name: each for name, each in vars(found).items()}) == found
