"""Doctor: what this machine has and what is missing, and what a run of training would need."""

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from lightgen.core.artifact import Artifact
from lightgen.core.device import free_disk, free_memory
from lightgen.core.errors import UserError
from lightgen.core.provenance import library_versions
from lightgen.ports.nano.font import draw_glyph, find_font
from lightgen.stages.budget import text_flops, text_is_fixed
from lightgen.stages.checkpoint import NANO, SHIPPED_STUDENTS, open_checkpoint, open_detector
from lightgen.stages.plan import Plan
from lightgen.stages.setting import Setting

Finding = tuple[str, str, bool]
_WIDTH = 36


def doctor() -> Iterator[Finding]:
    """(What, finding, whether all is well) of each thing that lightgen needs."""
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", True
    versions = library_versions()
    yield (
        "libraries",
        ", ".join(f"{n} {v}" for n, v in versions.items() if n not in ("python", "lightgen")),
        True,
    )
    yield "device", _device(), True
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors", True
    yield "memory", _memory(), True
    yield "disk", f"{_size_or_unknown(free_disk(Path.cwd()))} free in this directory", True
    yield _checked("emoji font", _font)
    for word in SHIPPED_STUDENTS:
        yield _checked(f"weights {word}", lambda word=word: _weights(open_checkpoint(word)))
    yield _checked("weights nano-detector", lambda: _weights(open_detector(NANO)))


def _checked(what: str, find: Callable[[], str]) -> Finding:
    try:
        return what, find(), True
    except UserError as error:
        return what, str(error), False


def _device() -> str:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        counted = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        return f"{counted} (CUDA {torch.version.cuda})"
    return f"CPU ({torch.backends.cpu.get_cpu_capability()})"


def _memory() -> str:
    found = [f"{_size_or_unknown(free_memory())} of RAM free"]
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        total = torch.cuda.get_device_properties(device).total_memory
        found.append(f"GPU {number} {_size_or_unknown(free_memory(device))} of {size(total)} free")
    return ", ".join(found)


def _font() -> str:
    draw_glyph("\N{RED APPLE}")
    return str(find_font())


def _weights(artifact: Artifact) -> str:
    total = sum(entry["bytes"] for entry in artifact.manifest["files"].values())
    return f"{size(total)}, whole, digest {artifact.digest[:12]}"


def budget(plan: Plan, *, images: int, mfu: float, folder: Path) -> Iterator[tuple[str, bool]]:
    """(Line, whether all is well) on memory, disk and time of a run.

    Args:
        plan: the run on its hardware.
        images: in the data.
        mfu: share of the device's peak that training reaches.
        folder: where the run would be.
    """
    yield from _head(plan)
    yield "", True
    yield from _memory_of_a_rank(plan)
    yield "", True
    yield from _disk(plan, images, folder)
    yield "", True
    yield from ((line, True) for line in _time(plan, mfu))


def _head(plan: Plan) -> Iterator[tuple[str, bool]]:
    setting, hardware = plan.wanted, plan.hardware
    place = "here" if hardware.is_here else "planned"
    each = f"{_size_or_unknown(hardware.memory)} free" + (" on each" if setting.ranks > 1 else "")
    yield f"for {setting.ranks} x {hardware.name} ({place}), {each}, {_peak(hardware.peak)}", True
    shape, frozen = plan.shape, plan.frozen
    learns = f"{plan.trained / 1e6:,.1f} M parameters"
    if frozen:
        learns += f", {frozen / 1e6:,.1f} M are frozen"
    yield _row("learns", learns), True
    yield _row("model", f"width {shape.width}, text of {shape.text_length} x {shape.text_width}"), True
    yield _row("pictures", f"{plan.px} px = {plan.grid[0]} x {plan.grid[1]} tokens"), True
    rank = "rank" if setting.ranks == 1 else "ranks"
    passes = plan.passes(setting)
    step = f"{plan.fit.global_batch_size:,} {plan.samples} = {setting.ranks} {rank} x {passes} "
    step += f"{'pass' if passes == 1 else 'passes'} of {setting.micro_batch_size:,}"
    yield _row("optimizer step", step), True


def _memory_of_a_rank(plan: Plan) -> Iterator[tuple[str, bool]]:
    setting = plan.wanted
    parts, room = plan.parts(setting), plan.room(setting.ranks)
    yield "memory of a rank", True
    other = plan.pass_bytes(setting.micro_batch_size, not setting.gradient_checkpointing)
    word = "without" if setting.gradient_checkpointing else "with"
    notes = {plan.pass_name(setting): f" ({size(other)} {word} gradient checkpointing)"}
    for what, count in parts.items():
        yield _row(what, size(count) + notes.get(what, "")), True
    yield _row("together", size(sum(parts.values()))), True
    if room is None:
        yield _row("free", "unknown"), True
        return
    yield _row("room", f"{size(room)}, 95 % of what is free for each rank"), True
    missing = plan.missing(setting)
    if missing <= 0:
        yield _row("fits", f"yes, {size(-missing)} to spare"), True
    else:
        yield _row("fits", f"NO, {size(missing)} too much"), False
        yield from ((line, True) for line in _advice(plan))
    if plan.hardware.is_gpu:
        yield _ram(plan)


def _ram(plan: Plan) -> tuple[str, bool]:
    """RAM that the ranks on a machine with GPUs take together, at most."""
    need, note = plan.saved, "a state while it is saved"
    if plan.wanted.offload:
        need, note = 2 * need + plan.sizes["gradients"], f"the state, gradients, and {note}"
    free = free_memory() if plan.hardware.is_here else None
    well = free is None or free >= need
    lack = "" if well else f", TOO MUCH for {size(free or 0)}"
    return _row("RAM of the machine", f"{size(need)} ({note}){lack}"), well


def _advice(plan: Plan) -> Iterator[str]:
    found = [setting.options(plan.wanted) for setting in plan.advice()]
    for number, options in enumerate(found):
        yield _row("these options fit" if number == 0 else "or these", options)
    if not found:
        least = Setting(
            ranks=plan.wanted.ranks, micro_batch_size=1, gradient_checkpointing=True, shards=plan.wanted.ranks
        )
        need = size(sum(plan.parts(least).values()))
        yield _row("nothing fits", f"passes of 1, checkpointing and {least.shards} shards need {need}")


def _disk(plan: Plan, images: int, folder: Path) -> Iterator[tuple[str, bool]]:
    run, steps = plan.run, plan.fit.num_steps
    kept = run.keep_last + (0 if run.keep_every is None else steps // run.keep_every)
    # one more while the next is written; a checkpoint for each state, and the last one
    states, checkpoints = (kept + 1) * plan.saved, (kept + 2) * plan.exported
    yield "disk", True
    yield _row(f"latents of {images:,} images", f"{size(images * plan.latent_bytes())}, mean and std"), True
    if plan.cached_text:
        most = "" if not plan.shape.text_masked else "at most "
        features = f"{most}{size(images * plan.text_bytes())}, fewer where captions repeat"
        yield _row(f"text features of {images:,} captions", features), True
    yield _row(f"{kept + 1} train states", f"{size(states)}, {size(plan.saved)} each"), True
    what = f"{size(checkpoints)}, {size(plan.exported)} each with text encoder, without autoencoder"
    yield _row(f"{kept + 2} checkpoints", what), True
    free = free_disk(folder)
    if plan.hardware.is_here and free is not None:
        well = free >= states + checkpoints
        yield (
            _row("free here", f"{size(free)}{'' if well else ', TOO LITTLE for states and checkpoints'}"),
            well,
        )


def _time(plan: Plan, mfu: float) -> Iterator[str]:
    once, again = plan.flops
    steps, batch, hardware = plan.fit.num_steps, plan.fit.global_batch_size, plan.hardware
    samples, total = steps * batch, steps * batch * (once + again)
    noun = plan.samples.removesuffix("s")
    yield "time"
    text = "without a text encoder" if plan.cached_text else "text encoder included"
    yield _row("forward and backward", f"{flop(once)} per {noun}, counted, {text}")
    if again:
        yield _row("computed twice (checkpointing)", f"{flop(again)} per {noun}")
    yield _row(f"{steps:,} steps", f"{samples:,} {plan.samples}, {flop(total)}")
    if hardware.peak is None:
        yield _row("peak", f"of {hardware.name} unknown: no time")
        return
    devices = plan.wanted.ranks if hardware.is_gpu else 1
    speed = mfu * hardware.peak * devices
    name = "GPU" if hardware.is_gpu else "CPU"
    used = f"{mfu:.0%} of {_peak(hardware.peak)}"
    yield _row(f"at {used}", f"{speed / devices / (once + again):,.3g} {plan.samples}/s for each {name}")
    seconds = total / speed
    whole = f"on {devices} {name}, {seconds * devices / 86_400:,.3g} {name}-days"
    yield _row("in all", f"{duration(seconds)} {whole}")
    if text_is_fixed(plan.task) and not plan.cached_text:
        left = seconds * (1 - text_flops(plan.task, plan.shape, plan.text_encoder) / (once + again))
        days = f"{duration(left)}, {left * devices / 86_400:,.3g} {name}-days"
        yield _row("with text features (encode)", f"{days}, and {size(plan.text_bytes())} for each caption")


def size(count: int) -> str:
    """Bytes in the unit that suits them."""
    unit, power = ("TiB", 40) if count >= 2**40 else ("GiB", 30) if count >= 2**30 / 10 else ("MiB", 20)
    value = count / 2**power
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def flop(count: float) -> str:
    """Floating-point operations in the unit that suits them."""
    for unit, power in (("ZFLOP", 21), ("EFLOP", 18), ("PFLOP", 15), ("TFLOP", 12)):
        if count >= 10**power:
            return f"{count / 10**power:,.3g} {unit}"
    return f"{count / 1e9:,.3g} GFLOP"


def duration(seconds: float) -> str:
    """Time in the unit that suits it."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds:,.3g} s"


def _peak(peak: float | None) -> str:
    return "peak unknown" if peak is None else f"{flop(peak)}/s"


def _size_or_unknown(count: int | None) -> str:
    return "unknown" if count is None else size(count)


def _row(what: str, value: str) -> str:
    return f"  {what:<{_WIDTH}} {value}"
