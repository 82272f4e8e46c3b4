"""Speed of encode against that of the bare autoencoder, on the same images, and where its time goes.

python benchmarks/encode.py --rounds 5 --json
python benchmarks/encode.py --autoencoder kl --px 512 --images 2000 --batch 16 --precision bf16

The bare autoencoder encodes batches that lie ready in memory; encode reads tars, decodes, encodes, brings
latents to the CPU, adds their moments up and writes shards. Both take turns in one process, in an order that
turns round; the ratio is the median over rounds. `parts` are seconds per image of each part run alone, one
after the other in one thread: what they would sum up to without reading ahead. Peak memory is of the process.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from lightgen.core.device import peak_memory
from lightgen.core.provenance import code_commit, library_versions
from lightgen.data.images import ImageRecord, write_image_shard
from lightgen.data.latents import write_latent_shard
from lightgen.data.moments import Moments
from lightgen.data.picture import decode_image, fit
from lightgen.ports.autoencoder import DiffusersAutoencoder, load_autoencoder
from lightgen.ports.nano.emoji import EmojiTeacher
from lightgen.ports.nano.language import draw_prompt
from lightgen.stages.checkpoint import NANO, open_checkpoint
from lightgen.stages.encode_images import Encoder, ImagePass, Unit, write_unit
from lightgen.stages.inputs import ImageInputs, open_images


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--autoencoder", choices=("nano", "kl", "sd3.5"), default="nano")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--px", type=int, default=128, help="side that images are encoded in")
    parser.add_argument("--source-px", type=int, help="side of the images on disk (default: --px)")
    parser.add_argument("--format", choices=("png", "jpg"), default="png")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    found = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(found, Path(folder))
    sys.stdout.write(json.dumps(report, indent=1) + "\n" if found.json else as_text(report))


def measure(found: argparse.Namespace, folder: Path) -> dict:
    """All numbers."""
    source_px = found.source_px or found.px
    (folder / "images").mkdir()
    write_image_shard(folder / "images" / "a.tar", records(found.images, source_px), found.format)
    inputs = open_images([folder / "images"])
    how = ImagePass(found.batch, found.precision, "never", 1024)
    encoder = Encoder(how, build(found.autoencoder))
    unit = Unit(range(found.images), (found.px,), ((found.px, found.px),))
    ready = [fit(inputs[i].image, found.px, found.px) for i in range(found.images)]
    batches = [ready[i : i + found.batch] for i in range(0, found.images, found.batch)]

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                encoder.encode(batch)
            wait(encoder.device)

    def whole() -> None:
        write_unit(encoder, inputs, unit, folder, "00000", lambda n: None)

    bare(), whole()  # what is made on first use
    times: dict[str, list[float]] = {"bare": [], "encode": []}
    for number in range(found.rounds):
        pair = [("bare", bare), ("encode", whole)]
        for name, run in pair if number % 2 == 0 else pair[::-1]:
            times[name].append(seconds(run))
    ratios = [a / b for a, b in zip(times["bare"], times["encode"], strict=True)]
    parts = alone(found, inputs, encoder, batches, folder)
    return {
        "autoencoder": found.autoencoder,
        "px": found.px,
        "source_px": source_px,
        "format": found.format,
        "images": found.images,
        "batch": found.batch,
        "precision": found.precision,
        "device": torch.cuda.get_device_name(0) if encoder.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "bare_images_per_s": round(found.images / statistics.median(times["bare"]), 2),
        "encode_images_per_s": round(found.images / statistics.median(times["encode"]), 2),
        "share_of_bare": round(statistics.median(ratios), 4),
        "shares_of_bare": [round(each, 4) for each in sorted(ratios)],
        "ms_per_image": {name: round(1e3 * each / found.images, 3) for name, each in parts.items()},
        "share_of_parts": {name: round(each / sum(parts.values()), 4) for name, each in parts.items()},
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_device_mib": None
        if encoder.device.type == "cpu"
        else round((peak_memory(encoder.device) or 0) / 2**20),
        "versions": library_versions(),
        "commit": code_commit(),
    }


def alone(
    found: argparse.Namespace, inputs: ImageInputs, encoder: Encoder, batches: list, folder: Path
) -> dict[str, float]:
    """Seconds of each part for all images, in one thread."""
    files = [inputs.encoded(i).data for i in range(found.images)]
    images = [decode_image(data) for data in files]
    outputs = [tuple(each.cpu() for each in encoder.encode(batch)) for batch in batches]
    mean, std = (torch.cat(each) for each in zip(*outputs, strict=True))
    rows = [
        {"caption": "a dog", "key": str(i), "height": found.px, "width": found.px}
        for i in range(found.images)
    ]

    def encode() -> None:
        for batch in batches:
            encoder.encode(batch)
        wait(encoder.device)

    return {
        "read": seconds(lambda: [inputs.encoded(i) for i in range(found.images)]),
        "decode": seconds(lambda: [decode_image(data) for data in files]),
        "resize": seconds(lambda: [fit(image, found.px, found.px) for image in images]),
        "encode": seconds(encode),
        "moments": seconds(lambda: [Moments.of(*each) for each in outputs]),
        "write": seconds(
            lambda: write_latent_shard(
                folder / "alone.safetensors", mean, std if bool(std.any()) else None, rows
            )
        ),
    }


def records(images: int, px: int):  # noqa: ANN201  (a generator)
    """Scenes of the emoji teacher; larger than 128 px, scaled up with noise, so that files are as large."""
    teacher, noise = EmojiTeacher(), np.random.default_rng(0)
    for i in range(images):
        prompt = draw_prompt(0, i, "train").prompt
        image = teacher.generate([prompt], [i], 128, 128)[0]
        if px != 128:
            image = fit(image, px, px).astype(np.int16) + noise.integers(-8, 9, (px, px, 3))
            image = image.clip(0, 255).astype(np.uint8)
        yield ImageRecord(f"{i:06d}", image, {"prompt": prompt})


def build(name: str) -> DiffusersAutoencoder:
    """The shipped autoencoder, or one of random weights of SD3.5's class: small, or of its size."""
    if name == "nano":
        return load_autoencoder(open_checkpoint(NANO).path / "vae")
    torch.manual_seed(0)
    widths = (128, 256, 512, 512) if name == "sd3.5" else (16, 32, 64, 64)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=2 if name == "sd3.5" else 1,
        norm_num_groups=32 if name == "sd3.5" else 8,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return DiffusersAutoencoder(vae)


def seconds(run: Callable[[], object]) -> float:
    """Time that a run takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Return when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def as_text(report: dict) -> str:
    """Lines for a person."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in report["share_of_parts"].items())
    return (
        f"{report['autoencoder']} {report['px']} px on {report['device']}: bare "
        f"{report['bare_images_per_s']} images/s, encode {report['encode_images_per_s']} images/s, "
        f"{report['share_of_bare']:.1%}\nparts alone: {shares}\npeak memory {report['peak_rss_mib']} MiB\n"
    )


if __name__ == "__main__":
    main()
