import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from lightgen.core.errors import UserError
from lightgen.ports import released_file
from lightgen.ports.released_file import read_released, read_state_dict

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -0.0])}
AVERAGE = {name: tensor / 2 for name, tensor in WEIGHTS.items()}


def released(**changes):
    """What the released code saves: weights, their average, and much that is no weight."""
    state = {"step": torch.tensor(3.0), "exp_avg": torch.ones(50), "exp_avg_sq": torch.ones(50)}
    return {
        "model": OrderedDict(WEIGHTS),
        "model_ema": OrderedDict(AVERAGE),
        "optimizer": {
            "state": {0: state},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95), "params": [0]}],
        },
        "args": argparse.Namespace(model="fluid_large", lr=None, batch=[1, 2], extra={"a": True}),
        "epoch": 8,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        **changes,
    }


def save(path, value, **settings):
    torch.save(value, path, **settings)
    return path


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def refused(tmp_path):
    def refuse(path, ema=True):
        with pytest.raises(UserError) as caught:
            read_released(path, ema)
        told = str(caught.value)
        assert "\n" not in told
        assert len(told) < 500
        assert told.startswith(f"{path}: ")
        return told.removeprefix(f"{path}: ")

    return refuse


def test_a_released_checkpoint(tmp_path):
    path = save(tmp_path / "checkpoint-8.pth", released())
    average, raw = read_released(path), read_released(path, ema=False)
    assert (average.part, raw.part) == ("model_ema", "model")
    assert same(average.tensors, AVERAGE)
    assert same(raw.tensors, WEIGHTS)


@pytest.mark.parametrize("ema", [True, False])
def test_weights_alone(tmp_path, ema):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    for path in (save(tmp_path / "a.pt", WEIGHTS), tmp_path / "a.safetensors"):
        found = read_released(path, ema)
        assert found.part == "all"
        assert same(found.tensors, WEIGHTS)


def test_parameters_are_tensors_too(tmp_path):
    found = read_released(save(tmp_path / "a.pt", {n: torch.nn.Parameter(t) for n, t in WEIGHTS.items()}))
    assert same({name: tensor.detach() for name, tensor in found.tensors.items()}, WEIGHTS)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_go(tmp_path, prefix):
    path = save(tmp_path / "a.pth", released(model_ema={prefix + n: t for n, t in AVERAGE.items()}))
    assert same(read_released(path).tensors, AVERAGE)


def test_a_name_twice(tmp_path, refused):
    path = save(tmp_path / "a.pth", {"module.a": torch.ones(1), "a": torch.ones(1)})
    assert refused(path) == "holds 'a' twice, with and without a prefix, allowed: once"


def test_an_absent_entry(tmp_path, refused):
    only = save(tmp_path / "a.pth", {"model": WEIGHTS, "epoch": 3})
    assert same(read_released(only, ema=False).tensors, WEIGHTS)
    assert "holds no model_ema, allowed: --raw" in refused(only)
    as_list = save(tmp_path / "b.pth", released(model_ema=list(AVERAGE.values())))
    assert "holds no model_ema, allowed: --raw" in refused(as_list)
    average = save(tmp_path / "c.pth", {"model_ema": WEIGHTS, "epoch": 3})
    assert "holds no model beside model_ema, allowed: without --raw" in refused(average, ema=False)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([torch.ones(1)], "holds a list"),
        ({"epoch": 3}, "all holds 'epoch', a int, allowed: named tensors"),
        ({"model": {3: torch.ones(1)}, "model_ema": {3: torch.ones(1)}}, "model_ema holds '3', a Tensor"),
        ({"a": torch.ones(2, 2).to_sparse()}, "'a' is no dense tensor"),
        ({"a": torch.ones(2, device="meta")}, "'a' is no dense tensor"),
        ({"a": torch.ones(1).expand(100_000)}, "claims 1 tensors of 400000 bytes"),
        (torch.nn.Linear(1, 1), "asks for 'torch.nn.modules.linear.Linear', allowed: tensors"),
        ({"a": torch.ones(1), "args": argparse.Action}, "asks for 'argparse.Action'"),
    ],
)
def test_other_contents(tmp_path, refused, value, told):
    assert told in refused(save(tmp_path / "a.pth", value))


class Runs:
    """A value whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Fills:
    """A value whose unpickling sets the attributes of another."""

    def __init__(self, function, arguments, state):
        self.call = function, arguments, state

    def __reduce__(self):
        return self.call


def hostile(canary):
    touch = f"open({str(canary)!r}, 'w').close()"
    return {
        "system": Runs(os.system, f"touch {canary}"),
        "eval": Runs(eval, f"__import__('os').mkdir({str(canary)!r})"),
        "exec": Runs(exec, touch),
        "open": Runs(open, str(canary), "w"),
        "load": Runs(torch.load, str(canary)),
        "getattr": Runs(getattr, argparse.Namespace, "mro"),
        "filetype": Runs(argparse.FileType("w"), str(canary)),
        "torch-save": Runs(torch.save, 1, str(canary)),
        "inner": Runs(argparse.Namespace, Runs(os.mkdir, str(canary))),
        "state": Fills(argparse.Namespace, (), {"a": Runs(os.mkdir, str(canary))}),
    }


@pytest.mark.parametrize("name", hostile(""))
@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_hostile_pickles_are_refused_and_do_not_run(tmp_path, refused, name, kind, monkeypatch):
    canary = tmp_path / "canary"
    value = released(args=hostile(canary)[name])
    path = tmp_path / "checkpoint.pth"
    if kind == "plain":
        path.write_bytes(pickle.dumps(value))
    else:
        save(path, value, _use_new_zipfile_serialization=kind == "zip")
    # asked for by name, weights only it is, whatever the environment says
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    told = refused(path)
    assert "asks for" in told if kind == "zip" else "is neither, allowed: a zip that torch.save wrote" in told
    assert not canary.exists()
    # it would have run
    if name in ("system", "eval", "exec", "open", "torch-save", "inner", "state"):
        monkeypatch.undo()
        with contextlib.suppress(TypeError):  # of what the call returns, once it has been made
            torch.load(path, weights_only=False) if kind != "plain" else pickle.loads(path.read_bytes())
        assert canary.exists()


def test_what_others_allowed_is_not_allowed_here(tmp_path, refused):
    path = save(tmp_path / "a.pth", released(args=argparse.Action))
    with torch.serialization.safe_globals([argparse.Action]):
        before = set(torch.serialization.get_safe_globals())
        assert "asks for 'argparse.Action'" in refused(path)
        assert set(torch.serialization.get_safe_globals()) == before
        assert torch.load(path, weights_only=True)["args"] is argparse.Action
    assert argparse.Namespace not in before


def test_an_archive_cut_anywhere_is_refused(tmp_path, refused):
    whole = save(tmp_path / "a.pth", released()).read_bytes()
    path = tmp_path / "cut.pth"
    for length in [0, 3, 9, 100, *range(0, len(whole), max(1, len(whole) // 23)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path)


def test_changed_bytes_are_refused_or_read_as_tensors(tmp_path):
    whole = bytearray(save(tmp_path / "a.pth", released()).read_bytes())
    path = tmp_path / "changed.pth"
    for at in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        try:
            found = read_released(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.tensors.values())


def test_other_archives(tmp_path, refused):
    plain = tmp_path / "a.txt"
    plain.write_text("text")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(plain)
    assert "is neither" in refused(tmp_path / "a.tar")
    assert "is neither" in refused(plain)
    assert "no such file" in refused(tmp_path / "absent.pth")
    assert "no such file" in refused(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(plain, "a/data.txt")
    assert "is no such archive" in refused(tmp_path / "a.zip")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script.pt")
    assert "is no such archive" in refused(tmp_path / "script.pt")


def test_an_archive_that_would_grow(tmp_path, refused):
    whole = save(tmp_path / "a.pth", released())
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "is no such archive" in refused(tmp_path / "b.pth")


def test_a_pickle_of_nested_lists_is_refused(tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".")
        archive.writestr("a/version", b"3\n")
    assert "is damaged or holds more than plain values" in refused(tmp_path / "a.pth")


def test_safetensors_are_looked_at_before_they_are_read(tmp_path, refused, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 10**6 + 1) + b"{")
    assert refused(path) == "got a header of 1000001 bytes, allowed: up to 1000000"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert "got a header of" in refused(path)
    path.write_bytes(struct.pack("<Q", 1000) + b"{}")
    assert "is damaged" in refused(path)
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert "is damaged" in refused(path)
    monkeypatch.setattr(released_file, "_MAX_TENSORS", 3)
    save_file({str(n): torch.ones(1) for n in range(4)}, path)
    assert refused(path) == "got 4 tensors, allowed: up to 3"


def test_a_strange_name_does_not_reach_the_terminal(tmp_path, refused):
    buffer = io.BytesIO()
    torch.save({"\x1b[2J" + "x" * 500: 3}, buffer)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    assert "\x1b" not in refused(tmp_path / "a.pth")


def test_the_old_format_is_read_of_the_one_file_that_is_pinned(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"w": torch.arange(3.0)}, path, _use_new_zipfile_serialization=False)
    pinned = hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(read_state_dict(path, pinned)["w"], torch.arange(3.0))
    for other in (None, "0" * 64):
        with pytest.raises(UserError, match="is neither, allowed: a zip that torch.save wrote"):
            read_state_dict(path, other)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is neither"):
        read_state_dict(path, pinned)
