import json
from dataclasses import replace

from lightgen.core.artifact import open_artifact
from lightgen.models.shape import TransformerConfig
from lightgen.stages.checkpoint import autoencoder_digest, part_digest
from lightgen.stages.encode import EncodeConfig
from lightgen.stages.nano_weights import NanoWeightsConfig, nano_weights
from lightgen.stages.tasks import AutoencoderTask, DetectorTask, LanguageTask, PretrainTask, TrainConfig
from lightgen.training.config import FitConfig
from tests.stages.toy import toy_distill

FIT = FitConfig(num_steps=2, global_batch_size=2, precision="fp32")
SMALL = TransformerConfig(
    width=32, num_heads=2, encoder_layers=1, decoder_layers=1, head_width=32, head_layers=1
)


def test_the_chain_ends_in_files_to_ship(tmp_path):
    config = NanoWeightsConfig(
        scenes=toy_distill(4),
        judged_scenes=replace(toy_distill(4), seed=5),
        autoencoder=TrainConfig(task=AutoencoderTask(), fit=FIT),
        language=TrainConfig(task=LanguageTask(), fit=FIT),
        detector=TrainConfig(task=DetectorTask(), fit=FIT),
        encode=EncodeConfig(),
        student=TrainConfig(task=PretrainTask(model=SMALL), fit=FIT),
        measured_prompts=6,
    )
    weights = nano_weights(config, tmp_path / "out")
    assert sorted(path.name for path in weights.iterdir()) == ["nano", "nano-detector"]
    shipped = open_artifact(weights / "nano", "checkpoint")
    latents = open_artifact(tmp_path / "out" / "latents", "latents")
    assert latents.manifest["autoencoder"] == autoencoder_digest(shipped), "encoded by what is shipped"
    reader, student = (
        open_artifact(tmp_path / "out" / "language"),
        open_artifact(tmp_path / "out" / "student"),
    )
    assert part_digest(student, "text_encoder") == part_digest(reader, "text_encoder"), "it stayed frozen"
    quality = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert set(quality) == {"psnr_db", "right_renders", "round_trips", "wrong_renders"}
    assert 0 < quality["psnr_db"] < 40
    before = shipped.digest
    assert nano_weights(config, tmp_path / "out") == weights
    assert open_artifact(weights / "nano").digest == before
