"""Bad samples: found, noted and counted once, replaced by the same others whatever was known, capped."""

import json
import os
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightgen.core.draws import numpy_draws, torch_draws
from lightgen.core.errors import UserError
from lightgen.data.images import ImageRecord, ImageShards, encode_image, write_image_shard
from lightgen.data.latents import CorruptSample, LatentShards
from lightgen.data.order import Order
from lightgen.data.quarantine import Quarantine, blaming, renaming

TOTAL, BATCH = 500, 20
BAD = {17: "its mean is not finite", 101: "not JSON", 230: "its caption is blank", 377: "expected an object"}
BAD |= {499: "the file is cut short"}


def _write(folder: Path) -> LatentShards:
    """Five shards of 100 rows, of which 1 % are bad, one since its shard was opened."""
    folder.mkdir()
    lines = [json.dumps({"caption": f"row {i}"}) for i in range(TOTAL)]
    lines[101], lines[230], lines[377] = '{"caption": "row', '{"caption": " "}', '{"text": "row 377"}'
    mean = torch.randn(TOTAL, 2, 2, 2, generator=torch_draws(0, "test")).bfloat16()
    mean[17, 1, 0, 1] = torch.nan
    for first in range(0, TOTAL, 100):
        path = folder / f"{first:03d}.safetensors"
        save_file({"mean": mean[first : first + 100].clone()}, path)
        path.with_suffix(".jsonl").write_text("".join(line + "\n" for line in lines[first : first + 100]))
    shards = LatentShards(folder)
    last = folder / "400.safetensors"
    os.truncate(last, last.stat().st_size - 4)
    return shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> LatentShards:
    return _write(tmp_path_factory.mktemp("data") / "latents")


ORDER = Order([[range(TOTAL)]], BATCH, 3, held_out=25)
STEPS = range(25)  # more than an epoch of all that are trained on


def _noted(folder: Path) -> list[int]:
    lines = chain.from_iterable(path.read_text().splitlines() for path in sorted(folder.glob("*.jsonl")))
    return [json.loads(line)["sample"] for line in lines]


def _read_all(quarantine: Quarantine, shards: LatentShards, steps: Any = STEPS) -> dict[int, Any]:  # noqa: ANN401
    return {step: quarantine.read(ORDER.ids(step), shards.gather) for step in steps}


def _same(left: dict[int, Any], right: dict[int, Any]) -> bool:
    return left.keys() == right.keys() and all(
        left[step][0] == right[step][0]
        and torch.equal(left[step][1][0], right[step][1][0])
        and left[step][1][2] == right[step][1][2]
        for step in left
    )


def test_one_percent_of_bad_samples_is_found_noted_and_replaced(
    shards: LatentShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quarantine = Quarantine(tmp_path / "bad", ORDER, TOTAL, 0.01)
    assert quarantine.count == 0
    trained = {sample for sample in BAD if sample not in ORDER.held_out[0]}
    assert len(trained) >= 4
    for step, (chosen, (mean, _, rows)) in _read_all(quarantine, shards).items():
        ids = ORDER.ids(step)
        assert len(chosen) == len(mean) == len(rows) == BATCH and not set(chosen) & set(BAD)
        for sample, used, row in zip(ids, chosen, rows, strict=True):
            assert used == (_expected(sample) if sample in BAD else sample)
            assert row["caption"] == f"row {used}"
        assert torch.isfinite(mean).all()
    assert quarantine.count == len(trained) and sorted(_noted(tmp_path / "bad")) == sorted(trained)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(trained)
    for sample in trained:
        line = next(line for line in told if line.startswith(f"sample {sample}: "))
        assert BAD[sample] in line and line.endswith(f"sample {_expected(sample)} takes its place")


def _expected(sample: int) -> int:
    """The first good one of the chain, with all knowledge."""
    return next(other for k in range(1, TOTAL) if (other := ORDER.stand_in(sample, k)) not in BAD)


def test_what_was_known_before_changes_nothing(shards: LatentShards, tmp_path: Path) -> None:
    first = _read_all(Quarantine(tmp_path / "a", ORDER, TOTAL, 0.01), shards)
    resumed = Quarantine(tmp_path / "a", ORDER, TOTAL, 0.01, rank=3)
    assert resumed.count == len(_noted(tmp_path / "a")) and _same(_read_all(resumed, shards), first)
    backwards = _read_all(Quarantine(None, ORDER, TOTAL, 0.01), shards, reversed(STEPS))
    assert _same(dict(sorted(backwards.items())), first)
    for known in numpy_draws(0, "known").integers(2, size=(10, len(BAD))).astype(bool):
        folder = tmp_path / "".join(map(str, known.astype(int)))
        folder.mkdir(exist_ok=True)
        lines = [
            json.dumps({"sample": s, "reason": "?"}) + "\n" for s, k in zip(BAD, known, strict=True) if k
        ]
        (folder / "0.jsonl").write_text("".join(lines))
        assert _same(_read_all(Quarantine(folder, ORDER, TOTAL, 0.01), shards), first)


def test_the_batch_of_a_sample_changes_nothing(shards: LatentShards) -> None:
    quarantine = Quarantine(None, ORDER, TOTAL, 0.01)
    for step in STEPS:
        alone = [Quarantine(None, ORDER, TOTAL, 0.01).read([i], shards.gather)[0][0] for i in ORDER.ids(step)]
        assert quarantine.read(ORDER.ids(step), shards.gather)[0] == alone


class _Rows:
    """Reads ids of which some are bad."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.asked = bad, []

    def __call__(self, ids: list[int]) -> list[int]:
        self.asked.append(list(ids))
        for i in ids:
            if i in self.bad:
                raise CorruptSample(i, "made up")
        return [10 * i for i in ids]


def test_a_chain_is_followed_over_bad_stand_ins(capsys: pytest.CaptureFixture[str]) -> None:
    order = Order([[range(50)], [range(50, 90)]], 4, 0)
    links = [order.stand_in(60, k) for k in range(1, 40)]
    rows = _Rows({60, *links[:5], 3})
    chosen, values = Quarantine(None, order, 90, 1.0).read([links[9], 60, links[8]], rows)
    assert chosen == [links[9], links[5], links[8]] and values == [10 * i for i in chosen]
    told = capsys.readouterr().err.splitlines()
    for bad, good, line in zip([60, *links[:5]], links[:6], told, strict=True):
        assert line == f"sample {bad}: made up; it is left out, sample {good} takes its place"
    assert all(50 <= i < 90 for i in chain.from_iterable(rows.asked))


def test_known_samples_are_not_read_again() -> None:
    rows = _Rows({2, 5})
    quarantine = Quarantine(None, _order(20), 20, 0.5)
    quarantine.read([1, 2, 5], rows)
    rows.asked.clear()
    quarantine.read([5, 2, 7, 2], rows)
    assert len(rows.asked) == 1 and not set(rows.asked[0]) & {2, 5} and rows.asked[0][1] == rows.asked[0][3]


def _order(size: int) -> Order:
    return Order([[range(size)]], 4, 0)


@pytest.mark.parametrize(
    ("total", "share", "allowed"), [(400, 0.01, 4), (100, 0.29, 29), (99, 0.01, 0), (50, 0.0, 0)]
)
def test_more_bad_samples_than_allowed_end_the_run(
    tmp_path: Path, total: int, share: float, allowed: int
) -> None:
    rows = _Rows(set(range(total)))
    quarantine = Quarantine(tmp_path / "bad", _order(total), total, share)
    with pytest.raises(UserError) as error:
        quarantine.read([0], rows)
    assert str(error.value) == (
        f"samples: got {allowed + 1} bad of {total} (listed in {tmp_path / 'bad'}), "
        f"allowed: {allowed}, a share of {share:g}"
    )
    assert len(rows.asked) == allowed + 1 and not isinstance(error.value, CorruptSample)
    with pytest.raises(UserError, match="allowed"):
        Quarantine(tmp_path / "bad", _order(total), total, share, rank=1)
    assert Quarantine(tmp_path / "bad", _order(total), total, 1.0).count == allowed + 1


def test_shards_above_the_cap_end_the_run(shards: LatentShards) -> None:
    with pytest.raises(UserError, match=r"^samples: got 3 bad of 500, allowed: 2, a share of 0\.004$"):
        _read_all(Quarantine(None, ORDER, TOTAL, 0.004), shards)


def test_where_all_are_bad_nothing_is_tried_for_ever() -> None:
    for size, held_out in ((1, 0), (6, 0), (6, 2)):
        order = Order([[range(size)]], 1, 0, held_out)
        with pytest.raises(UserError, match="samples .* of its size are bad"):
            Quarantine(None, order, size, 1.0).read(order.ids(0), _Rows(set(range(size))))


def test_held_out_samples_and_others_never_stand_in_for_each_other() -> None:
    order = Order([[range(30)]], 4, 1, held_out=6)
    held = order.held_out[0]
    quarantine = Quarantine(None, order, 30, 0.5)
    bad = {*held[:3], *[i for i in range(30) if i not in held][:8]}
    assert set(quarantine.read(held, _Rows(bad))[0]) == set(held) - bad
    trained = [i for i in range(30) if i not in held]
    assert set(quarantine.read(trained, _Rows(bad))[0]) == set(trained) - bad


def test_ranks_see_what_others_have_found(tmp_path: Path) -> None:
    first, second = (Quarantine(tmp_path, _order(40), 40, 0.1, rank=rank) for rank in range(2))
    first.read([1, 2], _Rows({1}))
    second.read([5, 6, 7], _Rows({5, 7}))
    assert second.count == 3, "both files count once this rank finds one"
    first.read([1, 9], _Rows({9, 1}))
    assert first.count == 4 and sorted(path.name for path in tmp_path.iterdir()) == ["0.jsonl", "1.jsonl"]
    second.read([9, 1], _Rows({1, 9}))
    assert second.count == 4 and _noted(tmp_path).count(9) == 2, "the same sample counts once"
    third = Quarantine(tmp_path, _order(40), 40, 0.1, rank=2)
    assert third.count == 4
    with pytest.raises(UserError, match="got 5 bad of 40"):
        third.read([30], _Rows({30}))


def test_a_torn_or_damaged_line_is_as_if_never_written(tmp_path: Path) -> None:
    bad_lines = b'\xff\n[2]\n{"sample": "3"}\n{"sample": true}\n'
    (tmp_path / "0.jsonl").write_bytes(b'{"sample": 1}\n' + bad_lines + b'{"sample": 4}\n{"sample": 5')
    (tmp_path / "7.jsonl").write_bytes(b'{"sample": 8, "reason": "b"}\n{"sample": 9, "re')
    quarantine = Quarantine(tmp_path, _order(100), 100, 0.1)
    assert quarantine.count == 3
    quarantine.read([5], _Rows({5}))
    assert quarantine.count == 4
    assert (tmp_path / "0.jsonl").read_text(errors="replace").splitlines()[-2:] == [
        '{"sample": 4}',
        '{"sample": 5, "reason": "made up"}',
    ]
    with (tmp_path / "7.jsonl").open("ab") as file:
        file.write(b'ason": "c"}\n')
    quarantine.read([6], _Rows({6}))
    assert quarantine.count == 6, "a line that was being written is read once it is whole"


def test_threads_find_the_same_once(shards: LatentShards, tmp_path: Path) -> None:
    expected = _read_all(Quarantine(None, ORDER, TOTAL, 0.01), shards)
    quarantine = Quarantine(tmp_path, ORDER, TOTAL, 0.01)
    start, results = threading.Barrier(4), []

    def work() -> None:
        start.wait()
        results.append(_read_all(quarantine, shards))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(_same(each, expected) for each in results)
    assert len(_noted(tmp_path)) == len(set(_noted(tmp_path))) == quarantine.count


def test_a_folder_is_not_needed(tmp_path: Path) -> None:
    quarantine = Quarantine(None, _order(10), 10, 0.1)
    assert quarantine.read([4], _Rows({4}))[0] != [4] and quarantine.count == 1
    with pytest.raises(UserError, match=r"^samples: got 2 bad of 10, allowed: 1, a share of 0\.1$"):
        quarantine.read([5], _Rows({5}))


def test_a_gather_that_blames_another_sample_is_a_programmer_error() -> None:
    def wrong(ids: list[int]) -> Tensor:
        raise CorruptSample(8, "not asked for")

    with pytest.raises(AssertionError, match="not asked for sample 8"):
        Quarantine(None, _order(10), 10, 1.0).read([4], wrong)


def _images(folder: Path) -> Iterator[ImageRecord]:
    for i in range(6):
        pixels = numpy_draws(0, "test", i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        yield ImageRecord(f"{i:03d}", pixels, {"prompt": f"image {i}"})


def test_damaged_images_are_bad_samples(tmp_path: Path) -> None:
    write_image_shard(tmp_path / "a.tar", _images(tmp_path))
    data = (tmp_path / "a.tar").read_bytes()
    picture = encode_image(list(_images(tmp_path))[2].image)
    (tmp_path / "a.tar").write_bytes(
        data.replace(picture[50:90], bytes(40)).replace(b'"image 4"', b'"image 4\n')
    )
    images = ImageShards(tmp_path)

    def gather(ids: list[int]) -> list[str]:
        keys = []
        for i in ids:
            with blaming(i):
                keys.append(images[i].key)
        return keys

    order, folder = _order(6), tmp_path / "bad"
    chosen, keys = Quarantine(folder, order, 6, 0.4).read(list(range(6)), gather)
    assert sorted(_noted(folder)) == [2, 4] and keys == [f"{i:03d}" for i in chosen]
    assert "a.tar: record '002'" in (folder / "0.jsonl").read_text()
    (tmp_path / "a.tar").unlink()
    with pytest.raises(CorruptSample, match=r"^sample 1: a\.tar: No such file or directory$"):
        gather([1])
    with pytest.raises(KeyError), blaming(3):
        raise KeyError("a mistake in the program stays what it is")


def test_a_bad_row_is_a_bad_pair() -> None:
    pairs = {0: (4, 5), 1: (6, 7), 2: (8, 9)}

    def gather(ids: list[int]) -> list[int]:
        rejected = {pairs[i][1]: i for i in ids}
        with renaming(rejected):
            return _Rows({7})(list(rejected))

    assert sorted(Quarantine(None, Order([[range(3)]], 1, 0), 3, 0.4).read([0, 1], gather)[0]) in (
        [0, 0],
        [0, 2],
    )
    with pytest.raises(CorruptSample, match="^sample 1: made up$"):
        gather([0, 1, 2])
