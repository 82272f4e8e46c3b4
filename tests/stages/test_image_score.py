import numpy as np
import pytest

from lightgen.core.artifact import begin_artifact
from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.evals.statistics import BootstrapConfig
from lightgen.ports.scorer import ScorerConfig
from lightgen.stages import image_score as module
from lightgen.stages.engine import LOCAL
from lightgen.stages.image_score import image_scores, mean_score
from lightgen.stages.inputs import open_images
from lightgen.stages.scorer import ScorerPlace, find_scorer
from tests.ports.toy_clip import save_clip


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARD", 5)
    return find_scorer(ScorerConfig(model=str(save_clip(tmp_path / "clip")), batch_size=2))


def run(toy, place, out):
    workspace = begin_artifact(out, "report", {}, [])
    with workspace:
        images = open_images([toy.images.path])
        return image_scores(LOCAL, workspace, "work/clip", place, images, toy.images.path, "toy")


def test_scores_of_all_images(toy, place, tmp_path):
    images, scorer = open_images([toy.images.path]), place.load()
    wanted = [scorer.score(images[i].image[None], [images.meta(i)["prompt"]])[0] for i in range(12)]
    found = run(toy, place, tmp_path / "a")
    assert found.dtype == np.float64 and np.std(wanted) > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    names = sorted(path.name for path in (tmp_path / ".a.partial" / "work" / "clip").iterdir())
    assert names == ["scores-00000.json", "scores-00001.json"]  # of three whole batches each


def test_a_killed_run_goes_on(toy, place, tmp_path, monkeypatch):
    wanted = run(toy, place, tmp_path / "whole")
    seen, scorer = [], place.load()

    class Killed:
        def score(self, images, prompts):
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.append(len(images))
            return scorer.score(images, prompts)

    monkeypatch.setattr(ScorerPlace, "load", lambda _: Killed())
    with pytest.raises(KeyboardInterrupt):
        run(toy, place, tmp_path / "a")
    monkeypatch.setattr(ScorerPlace, "load", lambda _: scorer)
    monkeypatch.setattr(scorer, "score", counted := Counted(scorer.score))
    np.testing.assert_array_equal(run(toy, place, tmp_path / "a"), wanted)
    assert counted.calls == 3


class Counted:
    def __init__(self, call):
        self.call, self.calls = call, 0

    def __call__(self, *given):
        self.calls += 1
        return self.call(*given)


def test_scores_that_are_not_finite_are_refused(toy, place, tmp_path, monkeypatch):
    class Odd:
        def score(self, images, prompts):
            return np.full(len(images), np.nan, np.float32)

    monkeypatch.setattr(ScorerPlace, "load", lambda _: Odd())
    with pytest.raises(UserError, match="record '.*': its score is not finite"):
        run(toy, place, tmp_path / "a")


def test_the_interval_is_over_prompts():
    """Ten images of one prompt say little more than one, where the prompt decides the score."""
    levels = numpy_draws(0, "levels").normal(0.8, 0.1, 40)
    alone = mean_score("clip-score", levels, [f"prompt {i}" for i in range(40)])
    many = mean_score("clip-score", levels.repeat(10), [f"prompt {i}" for i in range(40) for _ in range(10)])
    assert alone.value == pytest.approx(levels.mean()) == many.value
    assert (alone.prompts, alone.images, many.prompts, many.images) == (40, 40, 40, 400)
    np.testing.assert_allclose(many.interval, alone.interval, rtol=1e-9)
    low, high = alone.interval
    assert low < alone.value < high
    assert high - low == pytest.approx(2 * 1.96 * levels.std() / np.sqrt(40), rel=0.15)


def test_images_count_alike_whatever_their_prompts():
    found = mean_score("clip-score", np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"])
    assert found.value == 0.75 and found.to_json()["name"] == "clip-score"
    assert found.interval == (0.0, 1.0)
    narrow = mean_score("clip-score", np.array([1.0, 0.5]), ["a", "b"], BootstrapConfig(resamples=200))
    assert narrow.interval == (0.5, 1.0)
    with pytest.raises(UserError, match="clip-score: got no images"):
        mean_score("clip-score", np.zeros(0), [])
