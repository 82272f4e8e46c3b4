"""The language objective on readers whose answer is known."""

import math

import pytest
import torch
from torch import nn

from lightgen.core.errors import UserError
from lightgen.objectives.language import NOT_ASKED, LanguageConfig, LanguageObjective, distance

SIZES = {"class": 4, "color": 3}
UNKNOWN = 9


class Fake(nn.Module):
    """Reader that says every label is as likely, and keeps what it was given."""

    def forward(self, text_ids, text_mask):
        self.text_ids = text_ids
        features = torch.ones(*text_ids.shape, 2)
        return features, {kind: torch.zeros(*text_ids.shape, size) for kind, size in SIZES.items()}


class Frozen(nn.Module):
    """Text encoder of features two on every word."""

    def forward(self, input_ids, attention_mask):
        self.input_ids = input_ids
        return type("Output", (), {"last_hidden_state": torch.full((*input_ids.shape, 2), 2.0)})


def captions(count=2):
    """Captions of six tokens: a name of two words, one of one word, </s> and a pad."""
    none = NOT_ASKED
    return {
        "text_ids": torch.tensor([[3, 4, 5, 6, 1, 0]]).repeat(count, 1),
        "text_mask": torch.tensor([[True, True, True, True, True, False]]).repeat(count, 1),
        "labels": {
            "class": torch.tensor([[none, none, 0, 3, none, none]]).repeat(count, 1),
            "color": torch.tensor([[none, none, 0, 1, none, none]]).repeat(count, 1),
        },
        "names": torch.tensor([[0, 1, 1, 2, 0, 0]]).repeat(count, 1),
        "ids": list(range(count)),
    }


def run(batch, learner=None, step=0, start=None, **settings):
    objective = LanguageObjective(LanguageConfig(**{"hide": 0.0, **settings}), UNKNOWN, start)
    return objective(learner or Fake(), batch, step)


def test_not_knowing_costs_the_logarithm_of_the_choices():
    loss, shown = run(captions())
    assert math.isclose(loss.item(), 2 * math.log(4) + 2 * math.log(3), rel_tol=1e-6)
    assert {name: value.tolist() for name, value in shown.items()} == {
        "accuracy_class": [2, 4],  # the first of equals is said, which is right of the first object
        "accuracy_color": [2, 4],
    }


def test_the_loss_is_a_mean_over_captions():
    batch = captions()
    for table in batch["labels"].values():
        table[1] = NOT_ASKED
    both, _ = run(batch)
    alone, _ = run(captions(1))
    nothing, shown = run({**batch, "labels": {k: t * 0 + NOT_ASKED for k, t in batch["labels"].items()}})
    assert math.isclose(both.item(), alone.item() / 2, rel_tol=1e-6)
    assert nothing == 0 and shown["accuracy_color"].tolist() == [0, 0], "no caption without labels is nan"


def test_names_are_hidden_whole_and_their_class_not_asked():
    learner, batch = Fake(), captions(400)
    _, shown = run(batch, learner, hide=0.3)
    hidden = learner.text_ids == UNKNOWN
    assert torch.equal(hidden[:, 1], hidden[:, 2]) and not hidden[:, [0, 4, 5]].any()
    shares = hidden[:, [1, 3]].float().mean(0)
    assert ((shares - 0.3).abs() < 0.08).all(), shares
    assert not torch.equal(hidden[:, 1], hidden[:, 3])
    assert shown["accuracy_class"][1] == 800 - hidden[:, [1, 3]].sum()
    assert shown["accuracy_color"][1] == 800
    assert batch["text_ids"].max() < UNKNOWN and (batch["labels"]["class"] >= 0).sum() == 800, "left as it is"


def test_what_is_hidden_follows_from_seed_step_and_caption():
    def hidden(batch, **settings):
        learner = Fake()
        run(batch, learner, hide=0.5, **settings)
        return learner.text_ids == UNKNOWN

    batch = captions(64)
    first = hidden(batch)
    assert torch.equal(first, hidden(batch))
    assert not torch.equal(first, hidden(batch, step=1))
    assert not torch.equal(first, hidden(batch, seed=1))
    last = {name: value[60:] for name, value in batch.items() if name != "labels"}
    labels = {kind: table[60:] for kind, table in batch["labels"].items()}
    assert torch.equal(first[60:], hidden({**last, "labels": labels})), "whatever else is in the batch"


def test_nothing_is_hidden_where_it_is_measured():
    learner = Fake().eval()
    _, shown = run(captions(), learner, hide=0.9)
    assert not (learner.text_ids == UNKNOWN).any()
    assert shown["accuracy_class"][1] == 4


def test_features_are_kept_by_their_relative_distance():
    start = Frozen()
    loss, shown = run(captions(), start=start, keep=8.0)
    without, _ = run(captions())
    assert math.isclose(shown["moved"], 0.25)
    assert math.isclose(loss - without, 8 * 0.25, rel_tol=1e-6)
    assert torch.equal(start.input_ids, captions()["text_ids"])


def test_padding_moves_nothing():
    kept = torch.full((2, 3, 4), 2.0)
    features, mask = kept.clone(), torch.tensor([[True, True, True], [True, False, False]])
    features[1, 1:] = 7
    assert distance(features, kept, mask) == 0
    features[0, 0] = 0
    assert math.isclose(distance(features, kept, mask), (1 / 3 + 0) / 2, rel_tol=1e-6)


@pytest.mark.parametrize("wrong", [{"keep": -1.0}, {"hide": 1.0}, {"hide": -0.1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="language: got keep .* allowed: keep from 0, hide from 0 to below 1"):
        LanguageConfig(**wrong).check()
