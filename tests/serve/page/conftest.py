"""One server with two models for each file of tests, a fresh browser for each test."""

import shutil

import numpy as np
import pytest
from PIL import Image

from lightgen.stages.checkpoint import NANO, open_checkpoint
from tests.serve.page.browser import Browser
from tests.serve.page.visit import READY, Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    copy = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(open_checkpoint(NANO).path, copy)
    server = Server("--model", "nano", "--model", f"other={copy}")
    yield server
    server.close()


@pytest.fixture
def browser(server, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.size(1280, 900)
        browser.open(server.url, READY)
        yield browser
        assert browser.complaints == []


@pytest.fixture
def photo(tmp_path):
    """A picture that lightgen did not make."""
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    image = np.stack([np.tile(ramp, (96, 1)), np.full((96, 128), 90), np.tile(ramp[::-1], (96, 1))], axis=2)
    Image.fromarray(image.astype(np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"
