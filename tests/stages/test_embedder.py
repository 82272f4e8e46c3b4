import numpy as np
import pytest

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.ports.embedding import EmbedderConfig
from lightgen.stages.embedder import find_embedder, measure_diversity
from tests.ports.toy_encoders import save_encoder


def test_nano_needs_nothing_but_the_shipped_files():
    place = find_embedder(EmbedderConfig())
    assert set(place.identity()) == {"nano", "detector"}
    embedder = place.load()
    assert embedder.embed_texts(["a dog"]).shape == (1, embedder.dim)
    assert embedder.embed_images(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, embedder.dim)


def test_an_embedder_is_its_files_wherever_they_lie(tmp_path):
    config = EmbedderConfig(kind="sentence", model=str(save_encoder("bert", tmp_path / "a")))
    place = find_embedder(config)
    other = find_embedder(EmbedderConfig(kind="sentence", model=str(save_encoder("bert", tmp_path / "b"))))
    assert place.identity() == other.identity() and "model.safetensors" in place.identity()
    assert place.load().embed_texts(["a", "b"]).shape == (2, 32)
    config_file = tmp_path / "b" / "config.json"
    config_file.write_text(config_file.read_text() + "\n")
    assert place.identity() != other.identity()


def test_what_is_not_here_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="hf download owner/of-nothing"):
        find_embedder(EmbedderConfig(kind="clip", model="owner/of-nothing"))
    with pytest.raises(UserError, match="no such file or folder"):
        find_embedder(EmbedderConfig(kind="dinov2", model=str(tmp_path / "x")))
    with pytest.raises(UserError, match="no model.safetensors"):
        find_embedder(EmbedderConfig(kind="dinov2", model=str(tmp_path)))
    with pytest.raises(UserError, match="batch-size: got 0"):
        find_embedder(EmbedderConfig(batch_size=0))


def test_diversity_by_the_cells_of_a_reference():
    pool = numpy_draws(0, "pool").standard_normal((600, 8)).astype(np.float32)
    narrow = pool[np.argsort(-pool[:, 0] / np.linalg.norm(pool, axis=1))[:100]]
    wide = pool[:100]
    found = {name: measure_diversity(each, 30, reference=pool) for name, each in (("n", narrow), ("w", wide))}
    assert found["n"].num_cells == found["w"].num_cells == 30
    assert found["n"].coverage < 0.7 < 0.85 < found["w"].coverage
    assert found["n"].vendi < found["w"].vendi and found["n"].entropy < found["w"].entropy
    assert measure_diversity(pool, 30, reference=pool).coverage == 1
    own = measure_diversity(pool, 30)
    assert own.coverage is None and own.num_cells == 30 and own.entropy is not None
    assert measure_diversity(pool[:3]).num_cells == 3
