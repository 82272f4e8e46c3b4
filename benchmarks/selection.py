"""What it costs to find near-duplicates and to select diverse rows, by the number of rows.

    python benchmarks/selection.py [--sizes 10000 100000 1000000] [--dim 64] [--share .1]
        [--tasks hashes embeddings random balanced k-center facility] [--out FILE] [--json]

Rows are points around centres of chance, of unequal crowds, in float16 on disk, as a stage reads them; one in
five is a near copy of an earlier one. Hashes are of 64 bits, one in five within 2 bits of an earlier one. A
selection takes the share of the rows. Each case runs in a process of its own, so that memory is its own: the
peak of the process, less what it held before the work (libraries; the rows lie in a file). `growth` is the
exponent between one size and the next: 1 is linear, 2 quadratic. `found` is the share of the copies that were
found, `kept` the rows that stay.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from lightgen.core.device import peak_memory
from lightgen.core.draws import numpy_draws
from lightgen.core.provenance import code_commit, library_versions
from lightgen.data.duplicates import embedding_duplicates, hash_duplicates
from lightgen.data.select import select

TASKS = ("hashes", "embeddings", "random", "balanced", "k-center", "facility")
MIN_COSINE, MAX_BITS = 0.95, 4
COPIES = 5  # one row of so many is a copy


def main() -> None:
    """Print a line for each case, or all as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", nargs=2, metavar=("TASK", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        task, path = arguments.case
        sys.stdout.write(json.dumps(measure(task, Path(path), arguments.share)) + "\n")
        return
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sorted(arguments.sizes):
            files = write_rows(Path(folder), size, arguments.dim)
            for task in arguments.tasks:
                row = run_case(task, files["hashes" if task == "hashes" else "rows"], arguments.share)
                before = [each for each in cases if each["task"] == task]
                if before:
                    row["growth"] = growth(before[-1], row)
                cases.append(row)
                if not arguments.json:
                    sys.stdout.write(f"{json.dumps(row)}\n")
                    sys.stdout.flush()
            for path in files.values():
                path.unlink()
    report = {
        "dim": arguments.dim,
        "share": arguments.share,
        "min_cosine": MIN_COSINE,
        "max_bits": MAX_BITS,
        "cases": cases,
        "commit": code_commit(),
        "versions": library_versions(),
    }
    text = json.dumps(report, indent=1)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    if arguments.json:
        sys.stdout.write(text + "\n")


def growth(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Exponent by which seconds grow with rows."""
    rows = math.log(second["rows"] / first["rows"])
    return round(math.log(max(second["seconds"], 1e-3) / max(first["seconds"], 1e-3)) / rows, 2)


def write_rows(folder: Path, size: int, dim: int) -> dict[str, Path]:
    """Files of `size` embeddings float16 [size, dim] and hashes uint64 [size]; the last fifth are copies."""
    random, copies = numpy_draws(0, "benchmark rows", size, dim), size // COPIES
    centres = random.standard_normal((max(8, round(size**0.5)), dim)).astype(np.float32)
    shares = 1 / np.arange(1, len(centres) + 1)
    crowd = random.choice(len(centres), size, p=shares / shares.sum())
    rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.float16, (size, dim))
    step = 1 << 16
    for start in range(0, size, step):
        at = slice(start, min(start + step, size))
        part = centres[crowd[at]]
        rows[at] = part + 0.8 * random.standard_normal(part.shape, np.float32)
    for start in range(size - copies, size, step):
        at = slice(start, min(start + step, size))
        part = rows[start - (size - copies) : at.stop - (size - copies)].astype(np.float32)
        rows[at] = part + 0.15 * random.standard_normal(part.shape, np.float32)
    rows.flush()
    hashes = random.integers(0, 2**63, size, dtype=np.uint64) * np.uint64(2)
    flips = np.uint64(1) << random.integers(0, 64, (2, copies)).astype(np.uint64)
    hashes[size - copies :] = hashes[:copies] ^ flips[0] ^ flips[1]
    np.save(folder / "hashes.npy", hashes)
    return {"rows": folder / "rows.npy", "hashes": folder / "hashes.npy"}


def run_case(task: str, path: Path, share: float) -> dict[str, Any]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--share", str(share), "--case", task, str(path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def measure(task: str, path: Path, share: float) -> dict[str, Any]:
    """Seconds and peak bytes of one task on a file of rows or hashes."""
    import faiss  # before the clock starts

    given = np.load(path, mmap_mode="r")
    size = len(given)
    before, start = peak_bytes(), time.perf_counter()
    more: dict[str, Any] = {}
    if task in ("hashes", "embeddings"):
        stands = (
            hash_duplicates(np.asarray(given), MAX_BITS)
            if task == "hashes"
            else embedding_duplicates(given, MIN_COSINE)
        )
        seconds, copies = time.perf_counter() - start, size // COPIES
        dropped = stands != np.arange(size)
        more = {"found": round(float(dropped[size - copies :].mean()), 4), "kept": int(size - dropped.sum())}
    else:
        chosen = select(given, max(1, round(share * size)), task)  # pyright: ignore[reportArgumentType]
        seconds, more = time.perf_counter() - start, {"kept": len(chosen)}
    return {
        "task": task,
        "rows": size,
        "seconds": round(seconds, 3),
        "peak_mib": round((peak_bytes() - before) / 2**20, 1),
        "threads": faiss.omp_get_max_threads(),
        **more,
    }


def peak_bytes() -> int:
    """Most bytes held by this process; Linux counts those of its parent, too, unless asked in this way."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return peak_memory("cpu")


if __name__ == "__main__":
    main()
