import pytest

from lightgen.core.errors import UserError
from lightgen.stages import doctor as stage
from lightgen.stages.doctor import doctor


def test_what_is_there_and_what_is_missing(toy, monkeypatch):
    def no_weights(_):
        raise UserError("nano: no weights came with this copy")

    monkeypatch.setattr(stage, "open_checkpoint", no_weights)
    monkeypatch.setattr(stage, "open_detector", lambda _: toy.detector)
    found = {what: (finding, fine) for what, finding, fine in doctor()}
    assert list(found)[:4] == ["python", "libraries", "device", "threads"]
    assert "torch" in found["libraries"][0]
    assert found["weights nano"] == ("nano: no weights came with this copy", False)
    assert toy.detector.digest[:12] in found["weights nano-detector"][0]


def test_a_missing_font_is_a_finding(monkeypatch):
    monkeypatch.setenv("LIGHTGEN_EMOJI_FONT", "/no/such/file.ttf")
    what, finding, fine = next(each for each in doctor() if each[0] == "emoji font")
    assert not fine
    assert "/no/such/file.ttf" in finding


@pytest.mark.parametrize("what", ["weights nano", "weights nano-detector"])
def test_the_shipped_weights_are_whole(what):
    assert {name: fine for name, _, fine in doctor()}[what]
