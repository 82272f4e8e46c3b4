"""Editing on the page, and settings that come back from files."""

import base64

import numpy as np
import pytest

from lightgen.stages.picture_files import write_picture
from tests.serve.page.visit import READY, ask, drag_on_mask, history, open_picture, pixels, wait_for_pictures

pytestmark = pytest.mark.slow


def test_a_brushed_mask_is_all_that_changes(browser, photo):
    open_picture(browser, photo)
    drag_on_mask(browser, [(0.3, 0.4), (0.4, 0.4), (0.5, 0.4), (0.55, 0.4)])
    browser.click("label[for=eraser]")
    drag_on_mask(browser, [(0.55, 0.3), (0.55, 0.5)])
    drag_on_mask(browser, [(0.3, 0.4), (0.5, 0.4)])
    browser.click("#undo")
    ask(browser, "a photo of a yellow bird")
    wait_for_pictures(browser, 1)
    (record,) = history(browser)
    assert record["image"] == photo.read_bytes()  # as it was, to the byte
    before, after = pixels(record["image"]), pixels(record["blob"])
    mask = pixels(record["mask"], "L")
    assert set(np.unique(mask)) == {0, 255}
    assert 0.01 < (mask == 255).mean() < 0.4
    assert (before[mask == 0] == after[mask == 0]).all()
    assert (before[mask == 255] != after[mask == 255]).any(axis=1).mean() > 0.5


def test_dragged_edges_grow_the_picture(browser, photo):
    open_picture(browser, photo)
    left, top, width, height = browser.box(".handle[data-side=right]")
    middle = (left + width / 2, top + height / 2)
    scale = browser.eval("document.querySelector('#mask').clientWidth / 128")
    browser.drag([middle, (middle[0] + 20 * scale, middle[1]), (middle[0] + 30 * scale, middle[1])])
    browser.eval("document.querySelector('#top').focus()")
    browser.press("ArrowUp")
    browser.press("Tab")  # numbers count when they are left
    assert (
        browser.eval("['left', 'right', 'top', 'bottom'].map((side) => window[side + ''].value ?? '')[1]")
        == "32"
    )
    ask(browser, "a photo of a yellow bird")
    wait_for_pictures(browser, 1)
    (record,) = history(browser)
    after = pixels(record["blob"])
    assert after.shape == (96 + 16, 128 + 32, 3)
    assert (after[16:, :128] == pixels(photo.read_bytes())).all()
    assert pixels(record["image"], "RGBA")[:16, :, 3].max() == 0


def test_settings_are_restored_from_a_picture(browser, tmp_path):
    facts = {"prompt": "a photo of two dogs", "negative_prompt": "a cat", "seed": 41, "model": "other"}
    facts |= {"width": 160, "height": 96, "preset": "balanced", "num_iterations": 9, "guidance_scale": 2.5}
    write_picture(tmp_path / "made.png", np.zeros((96, 160, 3), np.uint8), facts)
    data = base64.b64encode((tmp_path / "made.png").read_bytes()).decode()
    browser.eval(
        f"""(() => {{
          const bytes = Uint8Array.from(atob('{data}'), (letter) => letter.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], 'made.png', {{ type: 'image/png' }}));
          for (const kind of ['dragenter', 'dragover', 'drop']) {{
            const told = {{ dataTransfer, bubbles: true, cancelable: true }};
            document.body.dispatchEvent(new DragEvent(kind, told));
          }}
        }})()"""
    )
    browser.wait("document.forms[0].elements.prompt.value === 'a photo of two dogs'")
    names = ("negative", "size", "seed", "preset", "steps", "guidance")
    found = {name: browser.eval(f"document.forms[0].elements.{name}.value") for name in names}
    wanted = {"negative": "a cat", "size": "160x96", "seed": "41", "preset": "balanced"}
    assert found == {**wanted, "steps": "9", "guidance": "2.5"}
    assert browser.eval("document.querySelector('#model').value") == "other"
    browser.press("Enter", "Control")
    wait_for_pictures(browser, 1)
    first = history(browser)[0]
    assert {name: first["facts"][name] for name in facts} == facts
    # What the page saves brings its own picture back.
    (tmp_path / "saved.png").write_bytes(first["blob"])
    browser.open(browser.eval("location.href"), READY)
    browser.choose("#file", tmp_path / "saved.png")
    browser.wait("document.forms[0].elements.seed.value === '41'")
    browser.press("Enter", "Control")
    browser.wait("document.querySelector('#gallery').childElementCount === 2")
    assert (pixels(history(browser)[1]["blob"]) == pixels(first["blob"])).all()
