"""Numbers of others: each has a source, and is what its own tasks say it is."""

import pytest

from lightgen.core.prompt import TAGS
from lightgen.evals.published import published


def test_overall_scores_are_the_means_of_their_tasks() -> None:
    """GenEval's overall is the plain mean of six tasks; printed numbers are rounded, some by .01."""
    for each in published("GenEval"):
        assert each.source.startswith("arXiv ")
        if each.tasks:
            assert set(each.tasks) == set(TAGS)
            assert each.overall == pytest.approx(sum(each.tasks.values()) / 6, abs=0.0101), each.model


def test_the_papers_headline_is_there() -> None:
    assert {each.model: each.overall for each in published("GenEval")}["LightGen 0.7B, 512 px"] == 0.62
    assert all(0.5 < each.overall < 1 for each in published("DPG-Bench"))
    assert published("nano-GenEval") == ()
