"""Where the tensors of a file lie, and files that are refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightgen.core.errors import UserError
from lightgen.data.tensor_file import read_entries


def test_bytes_are_where_the_entry_says(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.arange(6, dtype=torch.float32).view(2, 3), "a": torch.ones(5, dtype=torch.bfloat16)}
    save_file(tensors, path, {"note": "x"})
    found = read_entries(path, ["c"], ["a", "b"])
    assert list(found) == ["a", "b"]
    assert (found["a"].dtype, found["a"].shape, found["b"].dtype) == ("BF16", [5], "F32")
    data = path.read_bytes()[found["b"].start :][:24]
    assert np.frombuffer(data, np.float32).tolist() == [0, 1, 2, 3, 4, 5]


def test_other_tensors_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"^a.safetensors: got tensors 'a', allowed: mean or mean, std$"):
        read_entries(path, ["mean"], ["mean", "std"])


def test_a_header_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, path, {"note": "x" * (1 << 20)})
    with pytest.raises(UserError, match=r"^a.safetensors: header of \d+ bytes, allowed: up to 1048576$"):
        read_entries(path, ["a"])


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", lambda data: b"\xff" * 64])
def test_a_file_that_is_not_whole_is_refused(tmp_path, change):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_entries(path, ["a"])
