"""The page for everyone: by keyboard, on a phone, in the dark, without motion."""

import re

import numpy as np
import pytest

from tests.serve.page.visit import READY, ask, history, open_picture, pixels, wait_for_pictures

pytestmark = pytest.mark.slow
# Everything that can be seen and pressed, with its size.
TARGETS = """[...document.querySelectorAll('button, select, input, textarea')]
  .filter((e) => e.checkVisibility() && !['radio', 'range'].includes(e.type))
  .map((e) => [e.id || e.className, e.getBoundingClientRect()])
  .filter(([, box]) => box.height < 38 || box.width < 38)
  .map(([name]) => name)"""


def luminance(browser):
    color = browser.eval("getComputedStyle(document.body).backgroundColor")
    return sum(int(each) for each in re.findall(r"\d+", color)[:3]) / 765


def test_all_goes_by_keyboard(browser, photo):
    for _ in range(6):
        browser.press("Tab", "Shift")
        if browser.eval("document.activeElement.className") == "skip":
            break
    browser.press("Enter")
    assert browser.eval("document.activeElement.id") == "prompt"
    browser.write("a photo of a clock")
    reached = []
    while (name := browser.eval("document.activeElement.id")) != "generate":
        reached.append(name)
        browser.press("Tab")
        assert len(reached) < 20
        assert (
            browser.eval(
                "getComputedStyle(document.activeElement.matches('[type=radio]') ? "
                "document.activeElement.nextElementSibling : document.activeElement).outlineWidth"
            )
            == "3px"
        )
    assert {"prompt", "size", "count", "fast", "seed", "dice", "lock", "more"} <= set(reached)
    browser.press("Enter")
    assert browser.eval("document.activeElement.id") in ("cancel", "generate")
    wait_for_pictures(browser, 1)
    while browser.eval("document.activeElement.className") != "picture":
        browser.press("Tab")
    browser.press("Enter")
    browser.wait("document.querySelector('#viewer').open")
    for _ in range(20):
        browser.press("Tab")
        assert browser.eval(
            "document.activeElement === document.body || viewer.contains(document.activeElement)"
        )
    browser.press("Escape")
    browser.wait("!document.querySelector('#viewer').open")
    assert browser.eval("document.activeElement.className") == "picture"
    # A mask by arrow keys and space.
    open_picture(browser, photo)
    browser.wait("document.activeElement.id === 'mask'")
    browser.press(" ", hold=True)
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        browser.press(key)
    browser.let_go(" ")
    browser.press("ArrowLeft")
    browser.press("Enter", "Control")
    browser.wait("document.querySelector('#gallery').childElementCount === 2")
    mask = pixels(history(browser)[1]["mask"], "L") == 255
    rows, columns = np.nonzero(mask)
    assert mask.any()
    assert columns.max() - 64 > 64 - columns.min()  # it went to the right
    assert rows.max() - 48 > 48 - rows.min()  # and down


def test_a_phone_shows_all_of_it(browser, photo, server):
    browser.size(390, 844, mobile=True)
    browser.open(server.url, READY)

    def check(where):
        assert browser.eval("document.documentElement.scrollWidth") <= 390, where
        assert browser.eval(TARGETS) == [], where

    check("first visit")
    browser.click("#more")
    check("more")
    ask(browser, "a photo of a teddy bear", count="3")
    wait_for_pictures(browser, 3)
    check("results")
    browser.click("#results .picture")
    browser.wait("document.querySelector('#viewer').open")
    check("large view")
    browser.click("#change")
    browser.wait("!document.querySelector('#editor').hidden")
    check("editor")


def test_dark_colours_follow_the_system_and_the_visitor(browser):
    assert luminance(browser) > 0.9
    browser.prefer(prefers_color_scheme="dark")
    browser.wait("document.documentElement.dataset.theme === 'dark'")
    assert luminance(browser) < 0.15
    browser.click("#theme")
    assert luminance(browser) > 0.9
    browser.open(browser.eval("location.href"), READY)
    assert luminance(browser) > 0.9


def test_nothing_moves_where_motion_is_unwanted(browser):
    browser.prefer(prefers_reduced_motion="reduce")
    ask(browser, "a photo of a dog", steps="128", head="100", count="4")
    browser.wait("document.querySelector('#results canvas')?.dataset.shown")
    same = browser.eval(
        """(async () => {
          const canvas = document.querySelector('#results canvas');
          const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
          const state = () => `${canvas.dataset.known} ${canvas.dataset.shown}`;
          for (let i = 0; i < 100; i += 1) {
            const [before, pictures] = [state(), []];
            for (let k = 0; k < 6; k += 1) {
              await frame();
              if (k === 2 || k === 5) pictures.push(canvas.toDataURL());
            }
            if (before === state()) return pictures[0] === pictures[1];
          }
          return null;
        })()"""
    )
    assert same is True
    browser.press("Escape")
