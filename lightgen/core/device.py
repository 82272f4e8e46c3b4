"""What a processor can do at best, and what is free on this machine: memory and disk."""

import functools
import os
import platform
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lightgen.core.config import suggestion
from lightgen.core.errors import UserError

_TERA = 1e12
_MEASURE_S = 0.2


class _Peak(NamedTuple):
    """Dense matrix products in TFLOP/s: bf16 with sums in fp32, and plain fp32."""

    bf16: float
    fp32: float


# By a part of the name that torch.cuda.get_device_name gives.
# Source: NVIDIA's data sheets of the server cards, without sparsity and, where unnamed, of the SXM form; the
# white papers of the GA102, Ada and Blackwell chips for the others; AMD's data sheet of the MI300X.
_PEAKS = {
    "A10": _Peak(125.0, 31.2),
    "A30": _Peak(165.0, 10.3),
    "A40": _Peak(149.7, 37.4),
    "A100": _Peak(312.0, 19.5),
    "B200": _Peak(2250.0, 75.0),
    "H100": _Peak(989.4, 66.9),
    "H100 NVL": _Peak(835.0, 60.0),
    "H100 PCIe": _Peak(756.0, 51.2),
    "H200": _Peak(989.4, 66.9),
    "H200 NVL": _Peak(835.0, 60.0),
    "L4": _Peak(121.0, 30.3),
    "L40": _Peak(181.0, 90.5),
    "L40S": _Peak(362.0, 91.6),
    "MI300X": _Peak(1307.4, 163.4),
    "RTX 3090": _Peak(71.0, 35.6),
    "RTX 4090": _Peak(165.2, 82.6),
    "RTX 5090": _Peak(209.5, 104.8),
    "RTX 6000 Ada": _Peak(364.2, 91.1),
    "RTX A6000": _Peak(154.8, 38.7),
}
# Names under which a slower chip, or a part of one, is sold.
_OTHERS = re.compile(r"Laptop|Mobile|Max-Q|MIG |\bTi\b|\bD\b|SUPER", re.IGNORECASE)

# Memory in GiB that torch sees of a card, rounded down, by the names that `card` takes.
# Source: torch's own reports, as users of these cards posted them; 2 to 8 % below the data sheets.
_CARDS = {
    "A10": 22.0,
    "A100-40GB": 39.3,
    "A100-80GB": 79.1,
    "H100": 79.1,
    "H200": 139.7,
    "L4": 22.0,
    "L40S": 44.3,
    "RTX 3090": 23.6,
    "RTX 4090": 23.6,
    "RTX 5090": 31.3,
    "RTX A6000": 47.4,
}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a run is planned for.

    Attributes:
        name: of the device of each rank.
        is_gpu: whether it is one; else the ranks share a CPU and its memory.
        is_here: whether it is this machine's.
        memory: bytes free on each GPU, or in RAM; None where unknown.
        peak: FLOP/s of each GPU, or of the CPU, in the type asked for; None where unknown.
    """

    name: str
    is_gpu: bool
    is_here: bool
    memory: int | None
    peak: float | None


def find_hardware(gpu: str | None, dtype: torch.dtype) -> Hardware:
    """A GPU by its common name, or (None) what is here.

    Raises:
        UserError: no GPU of that name is known.
    """
    if gpu is not None:
        name, memory = card(gpu)
        peak = peak_flops(name, dtype)
        return Hardware(name=name, is_gpu=True, is_here=False, memory=memory, peak=peak)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_gpu = device.type == "cuda"
    return Hardware(
        name=torch.cuda.get_device_name(device) if is_gpu else "CPU",
        is_gpu=is_gpu,
        is_here=True,
        memory=free_memory(device),
        peak=peak_flops(device, dtype),
    )


def card(name: str) -> tuple[str, int]:
    """(Name, bytes of memory) of a common GPU, whether or not one is here; case and spaces do not matter.

    Raises:
        UserError: no GPU of that name is known.
    """
    known = {_squeezed(each): each for each in _CARDS}
    if _squeezed(name) not in known:
        hint = suggestion(name, _CARDS) or f", allowed: {', '.join(_CARDS)}"
        raise UserError(f"--gpu: unknown GPU {name!r}{hint}")
    found = known[_squeezed(name)]
    return found, int(_CARDS[found] * 2**30)


def peak_flops(device: str | torch.device, dtype: torch.dtype) -> float | None:
    """Most FLOP/s of dense matrix products in a type, one multiply-add counted as two; None where unknown.

    A GPU's is what its maker states; that of a CPU is measured once, with as many threads as torch uses now.

    Args:
        device: a device of this machine, or a GPU's name.
        dtype: bf16 or fp32; the latter without TF32.
    """
    if isinstance(device, torch.device):
        if device.type == "cpu":
            return _measured(dtype, torch.get_num_threads())
        if device.type != "cuda":
            return None
        device = torch.cuda.get_device_name(device)
    if _OTHERS.search(device):
        return None
    for part in sorted(_PEAKS, key=len, reverse=True):
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", device, re.IGNORECASE):
            peak = {torch.bfloat16: _PEAKS[part].bf16, torch.float32: _PEAKS[part].fp32}.get(dtype)
            return None if peak is None else peak * _TERA
    return None


@functools.cache
def _measured(dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of the best of a few matrix products, of growing size while time lasts."""
    best, began = 0.0, time.perf_counter()
    for side in (256, 512, 1024, 2048):
        a = torch.full((side, side), 0.5, dtype=dtype)
        torch.mm(a, a)
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(a, a)
            took = time.perf_counter() - start
            best = max(best, 2 * side**3 / max(took, 1e-9))
        if time.perf_counter() - began + 40 * took > _MEASURE_S:
            break  # the next size takes eight times as long
    return best


def multiplies_bf16(device: torch.device | str) -> bool:
    """Whether a device multiplies bf16 itself; CPUs that do not take several times as long as in fp32."""
    if torch.device(device).type != "cpu":
        return True
    # x86 without AVX-512 converts every factor; of others (Arm) nothing is known, so they keep what was asked
    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2") or not _is_x86()


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


def free_memory(device: torch.device | None = None) -> int | None:
    """Bytes that a process may still take: of a CUDA device, or (None, or a CPU) of this machine's RAM.

    RAM is what the system says is available, or less where a container has a limit; None where unknown.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "win32":
        return None
    found = [each for each in (_available(), _left_in_container()) if each is not None]
    return min(found, default=None)


def peak_memory(device: torch.device | str) -> int:
    """Most bytes held so far: on the accelerator since the last reset, else by the process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_disk(path: Path) -> int | None:
    """Bytes that may still be written below a path, which need not exist yet; None where unknown."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _available() -> int | None:
    """Bytes of RAM that are free or can be freed at once; without such a count, the free ones."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        entries = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(entries["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _left_in_container(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes below the limit of a Linux control group, its file cache counted as free; None: no limit."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        kept = (group / "memory.stat").read_text().split()
        cached = int(kept[kept.index("inactive_file") + 1])
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
    return max(0, limit - used + cached)


def _squeezed(name: str) -> str:
    return re.sub(r"[\s_-]|nvidia|geforce", "", name.lower())
