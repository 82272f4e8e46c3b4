"""The train state on disk: whole or absent, and told apart from a damaged one."""

import json

import pytest
import torch
from safetensors import SafetensorError

from lightgen.core.errors import UserError
from lightgen.training import state
from lightgen.training.state import load_newest_state, save_state

TENSORS = {
    "model/w": torch.arange(6.0).view(2, 3).t(),  # not contiguous
    "ema/w": torch.tensor([0.1, -0.0, 3e38]),
    "optimizer/step": torch.tensor(7.0),
    "model/count": torch.tensor(5, dtype=torch.int64),
    "model/half": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
}


def flip_byte(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def step_of(folder):
    found = load_newest_state(folder)
    return found and found[0]


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    folder = tmp_path / "state"
    assert load_newest_state(folder) is None
    save_state(folder, 12, TENSORS)
    found = load_newest_state(folder)
    assert found is not None and found[0] == 12 and found[1].keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[1][name].dtype == tensor.dtype and torch.equal(found[1][name], tensor)


def test_the_newest_states_are_kept(tmp_path):
    for step in (5, 90, 100, 1000):
        save_state(tmp_path, step, {"x": torch.tensor([float(step)])})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000100", "step-00001000"]
    found = load_newest_state(tmp_path)
    assert found is not None and found[0] == 1000 and found[1]["x"].item() == 1000


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, name, damage):
    for step in (1, 2):
        save_state(tmp_path, step, TENSORS)
    for step in (2, 1):
        path = tmp_path / f"step-{step:08d}" / name
        if damage == "flip":
            flip_byte(path, position=3)
        elif damage == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-3] if damage == "cut" else b"")
        if step == 2:
            assert step_of(tmp_path) == 1
    with pytest.raises(UserError) as caught:
        load_newest_state(tmp_path)
    assert "2 saved states are damaged" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "5", '{"step": 2}', '{"step": null, "sha256": 5}', "null"])
def test_a_meta_file_of_another_form_counts_as_damage(tmp_path, text):
    for step in (1, 2):
        save_state(tmp_path, step, TENSORS)
    (tmp_path / "step-00000002" / "state.json").write_text(text)
    assert step_of(tmp_path) == 1


def test_no_byte_of_the_meta_file_may_change(tmp_path):
    for step in (1, 2):
        save_state(tmp_path, step, {"x": torch.zeros(1)})
    meta = tmp_path / "step-00000002" / "state.json"
    whole = meta.read_bytes()
    for position, byte in enumerate(whole):
        meta.write_bytes(whole[:position] + bytes([byte ^ 1]) + whole[position + 1 :])
        found = load_newest_state(tmp_path)
        assert found is not None
        assert found[0] == 1 or json.loads(meta.read_bytes()) == json.loads(whole), position


@pytest.mark.parametrize("where", ["save_file", "_sync"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error (os error 28)")]
)
def test_a_failed_save_leaves_the_old_state_and_no_litter(tmp_path, monkeypatch, where, error):
    save_state(tmp_path, 1, TENSORS)

    def fail(*arguments, **settings):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(state, where, fail)
        with pytest.raises(type(error)):
            save_state(tmp_path, 2, TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert step_of(tmp_path) == 1
    save_state(tmp_path, 2, TENSORS)
    assert step_of(tmp_path) == 2


def test_a_save_that_was_killed_does_not_count(tmp_path, monkeypatch):
    save_state(tmp_path, 1, TENSORS)

    class Killed(BaseException):
        pass

    def kill(path):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(state, "_sync", kill)
        with pytest.raises(Killed):
            save_state(tmp_path, 2, TENSORS)
    assert step_of(tmp_path) == 1
    save_state(tmp_path, 2, TENSORS)
    assert step_of(tmp_path) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_saving_a_step_again_replaces_it(tmp_path):
    save_state(tmp_path, 3, {"x": torch.zeros(1)})
    save_state(tmp_path, 3, {"x": torch.ones(1)})
    found = load_newest_state(tmp_path)
    assert found is not None and found[1]["x"].item() == 1
