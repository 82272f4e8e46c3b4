"""A classifier of the user's says which pictures are shown."""

import numpy as np
import pytest

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.stages.picture_safety import LIMIT, open_picture_check
from tests.ports.toy_vit import save_vit


def test_pictures_are_shown_that_the_classifier_finds_less_probable_than_not(tmp_path, monkeypatch):
    from lightgen.ports.safety import ViTSafetyChecker

    save_vit(tmp_path)
    may_be_shown = open_picture_check(tmp_path)
    image = numpy_draws(0, "test-check").integers(0, 256, (40, 24, 3), dtype=np.uint8)
    assert may_be_shown(image) in (True, False)
    for share in (0.0, LIMIT - 0.01, LIMIT, 1.0):
        monkeypatch.setattr(ViTSafetyChecker, "unsafe", lambda self, images, share=share: np.array([share]))
        assert may_be_shown(image) is (share < LIMIT)


def test_what_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(UserError):
        open_picture_check(tmp_path)
