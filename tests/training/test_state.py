"""The train state on disk: whole or absent, told from a damaged one, and cut over any ranks."""

import json
import threading

import pytest
import torch
from safetensors import SafetensorError

from lightgen.core.errors import UserError
from lightgen.training import state
from lightgen.training.state import (
    Piece,
    State,
    drop_states_after,
    newest_step,
    open_state,
    prune_states,
    save_state,
)
from tests.training.toy import saved

TENSORS = {
    "model/w": torch.arange(6.0).view(2, 3).t(),  # not contiguous
    "ema/w": torch.tensor([0.1, -0.0, 3e38]),
    "optimizer/step": torch.tensor(7.0),
    "model/count": torch.tensor(5, dtype=torch.int64),
    "model/half": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
}
PARTS = ("model", "ema", "optimizer")
RANK = "rank-00000.safetensors"


def save(folder, step, tensors=TENSORS, notes=None):
    pieces = {name: Piece(tensor) for name, tensor in tensors.items()}
    return save_state(folder, step, pieces, notes or {})


def save_x(folder, step):
    return save(folder, step, {"model/x": torch.tensor([float(step)])})


def flip_byte(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    folder = tmp_path / "state"
    assert newest_step(folder) == 0
    notes = {"bad_steps": 2, "sums": {"loss": [0.1, 3.0]}, "elapsed_s": 1.5}
    assert save(folder, 12, notes=notes) == folder / "step-00000012"
    step, found = saved(folder, PARTS)
    assert step == 12 and found.keys() == TENSORS.keys()
    opened = open_state(folder, 12)
    assert opened.step == 12 and opened.notes == notes
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        blank = torch.full_like(tensor, 9)
        opened.read(name, Piece(blank))
        assert torch.equal(blank, tensor)
    assert sorted(opened.names("model")) == ["count", "half", "w"]


def test_the_newest_states_are_kept(tmp_path):
    for step in (5, 90, 100, 1000):
        save_x(tmp_path, step)
        assert newest_step(tmp_path) == step
    assert prune_states(tmp_path, 2, None) == [1000, 100]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000100", "step-00001000"]
    assert saved(tmp_path, PARTS)[1]["model/x"].item() == 1000


@pytest.mark.parametrize(
    ("last", "every", "kept"),
    [
        (1, None, [70]),
        (3, None, [50, 60, 70]),
        (99, None, [10, 20, 30, 40, 50, 60, 70]),
        (1, 30, [30, 60, 70]),
        (2, 20, [20, 40, 60, 70]),
        (1, 7, [70]),
        (2, 1, [10, 20, 30, 40, 50, 60, 70]),
    ],
)
def test_the_last_states_stay_and_every_so_many(tmp_path, last, every, kept):
    for step in range(10, 80, 10):
        save_x(tmp_path, step)
        said = prune_states(tmp_path, last, every)  # after each save, so that all were the newest once
        found = [int(path.name.removeprefix("step-")) for path in sorted(tmp_path.iterdir())]
        assert sorted(said) == found
    assert found == kept and newest_step(tmp_path) == 70


@pytest.mark.parametrize("name", [RANK, "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, name, damage):
    for step in (1, 2):
        save(tmp_path, step)
    for step in (2, 1):
        path = tmp_path / f"step-{step:08d}" / name
        if damage == "flip":
            flip_byte(path, position=3)
        elif damage == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-3] if damage == "cut" else b"")
        if step == 2:
            assert newest_step(tmp_path) == 1
    with pytest.raises(UserError) as caught:
        newest_step(tmp_path)
    assert "2 saved states are damaged" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "5", '{"step": 2}', '{"step": null, "sha256": 5}', "null"])
def test_a_meta_file_of_another_form_counts_as_damage(tmp_path, text):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-00000002" / "state.json").write_text(text)
    assert newest_step(tmp_path) == 1


def test_no_byte_of_the_meta_file_may_change(tmp_path):
    for step in (1, 2):
        save(tmp_path, step, {"x": torch.zeros(1)}, notes={"skipped": 3})
    meta = tmp_path / "step-00000002" / "state.json"
    whole = meta.read_bytes()
    for position, byte in enumerate(whole):
        meta.write_bytes(whole[:position] + bytes([byte ^ 1]) + whole[position + 1 :])
        assert newest_step(tmp_path) == 1 or json.loads(meta.read_bytes()) == json.loads(whole), position


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("save_file", OSError(28, "No space left on device")),
        ("save_file", SafetensorError("I/O error (os error 28)")),
        ("json_bytes", OSError(28, "No space left on device")),
        ("sync_directory", OSError(28, "No space left on device")),
    ],
)
def test_a_failed_save_leaves_the_old_state_and_no_litter(tmp_path, monkeypatch, where, error):
    save(tmp_path, 1)

    def fail(*arguments, **settings):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(state, where, fail)
        with pytest.raises(type(error)):
            save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert newest_step(tmp_path) == 1
    save(tmp_path, 2)
    assert newest_step(tmp_path) == 2


def test_a_save_that_was_killed_does_not_count(tmp_path, monkeypatch):
    save(tmp_path, 1)

    class Killed(BaseException):
        pass

    def kill(path):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(state, "sync_directory", kill)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert newest_step(tmp_path) == 1
    save(tmp_path, 2)
    assert newest_step(tmp_path) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3, {"model/x": torch.zeros(1)})
    save(tmp_path, 3, {"model/x": torch.ones(1)})
    assert saved(tmp_path, PARTS) == (3, {"model/x": torch.ones(1)})


TABLE, VECTOR, COUNT = torch.arange(14.0).view(7, 2), torch.arange(3.0), torch.tensor(4.0)


def rows(tensor, rank, num):
    """Rows of a tensor that a rank of several holds, as torch cuts them; none where there are too few."""
    size = -(-len(tensor) // num)
    start = min(len(tensor), rank * size)
    return Piece(tensor[start : start + size].clone(), start, len(tensor))


def pieces_of(rank, num):
    cut = {"ema/table": rows(TABLE, rank, num), "ema/vector": rows(VECTOR, rank, num)}
    kept = {name: piece for name, piece in cut.items() if piece.tensor.numel()}
    return {**cut, "ema/count": Piece(COUNT)} if rank == 0 else kept


class Exchange:
    """What every rank told, by rank, among threads."""

    def __init__(self, num):
        self.told, self.barrier = [b""] * num, threading.Barrier(num, timeout=30)

    def of(self, rank):
        def exchange(told):
            self.told[rank] = told
            self.barrier.wait()
            heard = list(self.told)
            self.barrier.wait()
            return heard

        return exchange


def save_on_ranks(folder, step, num):
    """What each rank was given back, or the error that it raised."""
    exchange, outcomes = Exchange(num), [None] * num

    def save_one(rank):
        try:
            outcomes[rank] = save_state(
                folder, step, pieces_of(rank, num), {"by": rank}, rank=rank, exchange=exchange.of(rank)
            )
        except (OSError, SafetensorError) as error:
            outcomes[rank] = error

    ranks = [threading.Thread(target=save_one, args=(rank,)) for rank in range(num)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    return outcomes


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_rows_cut_over_files_are_read_back_in_another_cut(tmp_path, num):
    outcomes = save_on_ranks(tmp_path, 6, num)
    assert outcomes == [tmp_path / "step-00000006", *[None] * (num - 1)]
    files = {path.name for path in outcomes[0].iterdir()}
    ranks = {rank for rank in range(num) if pieces_of(rank, num)}
    assert files == {"state.json", *(f"rank-{rank:05d}.safetensors" for rank in ranks)}
    assert newest_step(tmp_path) == 6
    found = State(outcomes[0])
    assert found.notes == {"by": 0} and sorted(found.names("ema")) == ["count", "table", "vector"]
    wholes = {"ema/table": TABLE, "ema/vector": VECTOR, "ema/count": COUNT}
    for name, whole in wholes.items():
        assert torch.equal(found.full(name), whole)
        blank = Piece(torch.full_like(whole, -1))
        found.read(name, blank)  # on one rank, uncut
        assert torch.equal(blank.tensor, whole)
    for again in (1, 2, 3, 4, 7, 9):
        for rank in range(again):
            for name in ("ema/table", "ema/vector"):
                expected = rows(wholes[name], rank, again)
                blank = Piece(torch.full_like(expected.tensor, -1), expected.start, expected.total)
                found.read(name, blank)
                assert torch.equal(blank.tensor, expected.tensor), (again, rank, name)


def test_what_was_saved_uncut_is_read_in_parts(tmp_path):
    save(tmp_path, 1, {"ema/table": TABLE})
    for rank in range(3):
        expected = rows(TABLE, rank, 3)
        blank = Piece(torch.full_like(expected.tensor, -1), expected.start, expected.total)
        open_state(tmp_path, 1).read("ema/table", blank)
        assert torch.equal(blank.tensor, expected.tensor)


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize(
    "blank",
    [
        Piece(torch.zeros(8, 2)),
        Piece(torch.zeros(6, 2)),
        Piece(torch.zeros(7, 3)),
        Piece(torch.zeros(7, 1)),
        Piece(torch.zeros(2, 7, 2)),
        Piece(torch.zeros(())),
        Piece(torch.zeros(4, 2), 4, 8),
        Piece(torch.zeros(3, 2), 0, 6),
        Piece(torch.zeros(4, 3), 0, 7),
    ],
    ids=lambda piece: f"{list(piece.tensor.shape)}-{piece.start}-{piece.total}",
)
def test_a_tensor_of_another_size_is_refused(tmp_path, num, blank):
    save_on_ranks(tmp_path, 1, num)
    with pytest.raises(UserError) as caught:
        open_state(tmp_path, 1).read("ema/table", blank)
    assert "no 'ema/table' of this size" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no 'ema/other'"):
        open_state(tmp_path, 1).read("ema/other", Piece(torch.zeros(7, 2)))


def test_rows_that_no_rank_saved_are_missed(tmp_path):
    save_state(tmp_path, 1, {"ema/table": rows(TABLE, 0, 2)}, {})
    first, second = rows(TABLE, 0, 2), rows(TABLE, 1, 2)
    open_state(tmp_path, 1).read("ema/table", first)
    for blank in (second, Piece(torch.zeros(7, 2)), Piece(torch.zeros(3, 2), 2, 7)):
        with pytest.raises(UserError, match="no 'ema/table' of this size"):
            open_state(tmp_path, 1).read("ema/table", blank)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_write_fails_all_and_leaves_no_litter(tmp_path, monkeypatch, failing):
    save_on_ranks(tmp_path, 1, 2)
    written = state.save_file

    def fail(tensors, path, **settings):
        if f"rank-{failing:05d}" in path.name:
            raise SafetensorError("I/O error (os error 28)")
        written(tensors, path, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", fail)
        outcomes = save_on_ranks(tmp_path, 2, 2)
    assert isinstance(outcomes[failing], SafetensorError)
    assert isinstance(outcomes[1 - failing], OSError) and "another rank" in str(outcomes[1 - failing])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert save_on_ranks(tmp_path, 2, 2)[0] == tmp_path / "step-00000002"
    assert newest_step(tmp_path) == 2


def test_states_that_could_not_be_used_do_not_count_as_the_newest(tmp_path):
    for step in (1, 2, 3):
        save_state(tmp_path, step, {"weights/x": Piece(torch.zeros(1))}, {})
    (tmp_path / "step-00000003" / "state.json").write_text("{}")
    assert newest_step(tmp_path) == 2
    drop_states_after(tmp_path, 2)
    assert prune_states(tmp_path, 1, None) == [2]
