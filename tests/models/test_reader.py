from types import SimpleNamespace

import torch
from torch import nn

from lightgen.models.reader import Reader

KINDS = {"class": 3, "color": 2}
IDS = torch.tensor([[1, 2, 3], [4, 0, 0]])


class Fake(nn.Module):
    """Encoder whose features are those of the words alone, zero where the mask is."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.words(input_ids) * attention_mask[:, :, None])


def test_each_kind_is_read_from_the_features():
    encoder = Fake()
    reader = Reader(encoder, 4, KINDS, seed=0)
    features, said = reader(IDS, IDS > 0)
    assert torch.equal(features[0], encoder.words(IDS[0])) and not features[1, 1:].any()
    assert {kind: logits.shape for kind, logits in said.items()} == {"class": (2, 3, 3), "color": (2, 3, 2)}
    sum(logits.square().sum() for logits in said.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in reader.parameters())


def test_readouts_follow_from_the_seed_and_touch_no_global_draws():
    before = torch.get_rng_state()
    one, same, other = (Reader(Fake(), 4, KINDS, seed).readouts["class"].weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    torch.set_rng_state(before)
    first = Fake().words.weight
    torch.set_rng_state(before)
    Reader(nn.Identity(), 4, KINDS, seed=0)
    assert torch.equal(Fake().words.weight, first)
