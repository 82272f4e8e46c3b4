"""Drawing on the page: pictures appear, are cancelled, kept, compared, and refused."""

import time

import pytest

from tests.serve.page.browser import Browser
from tests.serve.page.visit import READY, Server, ask, error, history, pixels, wait_for_pictures

pytestmark = pytest.mark.slow
KEY = "a-key-of-the-tests"


def test_a_picture_appears_while_it_is_decoded(browser):
    browser.eval(
        """window.seen = new Set(); window.shown = new Set();
        (function look() {
          const canvas = document.querySelector('#results canvas');
          if (canvas?.dataset.known) seen.add(canvas.dataset.known) && shown.add(canvas.toDataURL());
          requestAnimationFrame(look);
        })()"""
    )
    ask(browser, "a photo of a red apple", preset="exact", count="2")
    browser.wait("document.querySelector('#counted').textContent.includes('iteration')")
    wait_for_pictures(browser, 2)
    assert browser.eval("seen.size") >= 3
    assert browser.eval("shown.size") >= 3
    counts = [int(each.split("/")[0]) for each in browser.eval("[...seen]")]
    assert counts == sorted(counts)
    assert counts[-1] == 64
    assert "done" in browser.eval("live.textContent")
    records = history(browser)
    assert len(records) == 2
    seeds = [record["facts"]["seed"] for record in records]
    assert seeds[0] == seeds[1] + 1  # the newest is the first of the request
    for record in records:
        assert pixels(record["blob"]).shape == (128, 128, 3)
        assert record["facts"]["prompt"] == "a photo of a red apple"
        assert record["facts"]["preset"] == "exact"


def test_a_seed_that_is_kept_draws_the_same_again(browser):
    browser.click("#dice")
    for _ in range(2):
        ask(browser, "a photo of a pizza")
        wait_for_pictures(browser, 1)
    browser.click("#results [title=Vary]")
    browser.wait("document.querySelector('#gallery').childElementCount === 3")
    one, two, varied = history(browser)
    assert (pixels(one["blob"]) == pixels(two["blob"])).all()
    assert varied["settings"]["seed"] != one["settings"]["seed"]
    assert {**varied["settings"], "seed": 0} == {**one["settings"], "seed": 0}


@pytest.mark.parametrize("way", ["Escape", "button", "leaving"])
def test_cancelling_stops_the_server(browser, server, way):
    ask(browser, "a photo of a dog", count="8", steps="256", preset="exact")
    browser.wait("Number(document.querySelector('#results canvas').dataset.known?.split('/')[0] ?? 0) > 0")
    assert server.metric("lightgen_running") > 0
    if way == "Escape":
        browser.press("Escape")
    elif way == "button":
        browser.click("#cancel")
    else:
        browser.open("about:blank")
    end = time.monotonic() + 10
    while server.metric("lightgen_running") > 0:
        assert time.monotonic() < end, "the server still draws"
        time.sleep(0.05)
    if way != "leaving":
        browser.wait("!generate.hidden && document.querySelector('#results').childElementCount === 0")
        assert error(browser) == ""
        assert browser.eval("live.textContent") == "Cancelled"


def test_the_history_outlives_the_page(browser):
    ask(browser, "a photo of a cake", count="3")
    wait_for_pictures(browser, 3)
    browser.open(browser.eval("location.href"), READY)
    browser.wait("document.querySelectorAll('#gallery img').length === 3")
    assert browser.eval("document.forms[0].elements.prompt.value") == "a photo of a cake"
    browser.eval("document.querySelector('#gallery .bin').focus()")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#gallery img').length === 2")
    browser.click("#gallery .picture")
    browser.wait("document.querySelector('#viewer').open")
    assert browser.eval("document.querySelector('#settings').textContent.includes('a photo of a cake')")
    browser.click("#leave")
    browser.click("#forget")
    browser.click("#sure button[value=yes]")
    browser.wait("document.querySelectorAll('#gallery img').length === 0")
    assert history(browser) == []


def test_two_models_are_compared(browser):
    browser.click("#more")
    browser.eval("document.querySelector('#other').value = 'other'")
    ask(browser, "a photo of a boat at night")
    wait_for_pictures(browser, 2)
    one, two = history(browser)
    assert {one["facts"]["model"], two["facts"]["model"]} == {"nano", "other"}
    assert one["facts"]["seed"] == two["facts"]["seed"]
    assert (pixels(one["blob"]) == pixels(two["blob"])).all()  # `other` is a copy
    browser.click("label[for=above]")
    browser.eval("document.querySelector('#split').focus()")
    before = browser.eval("getComputedStyle(document.querySelector('#results .picture')).clipPath")
    browser.press("ArrowRight")
    assert browser.eval("getComputedStyle(document.querySelector('#results .picture')).clipPath") != before


def test_refusals_are_told_and_waited_for(browser):
    ask(browser, "a photo of a dog", guidance="50000")
    browser.wait("document.querySelector('#error').textContent.includes('guidance_scale')")
    browser.complaints.clear()  # the browser notes every answer that is no success
    browser.eval(
        """(() => {
          const asked = window.fetch;
          window.fetch = async () => {
            window.fetch = asked;
            const body = JSON.stringify({ error: { message: 'queue: full' } });
            return new Response(body, { status: 429, headers: { 'Retry-After': '2' } });
          };
        })()"""
    )
    ask(browser, "a photo of a dog", guidance="")
    browser.wait("document.querySelector('#error').textContent === 'queue: full'")
    assert browser.eval("document.querySelector('#generate').disabled")
    assert "Again in" in browser.eval("document.querySelector('#verb').textContent")
    browser.wait("!document.querySelector('#generate').disabled", timeout_s=5)
    browser.press("Enter", "Control")
    wait_for_pictures(browser, 1)


@pytest.mark.parametrize(("count", "failed"), [(3, (0,)), (2, (0, 1)), (1, (0,))])
def test_pictures_that_fail_leave_the_others(browser, count, failed):
    browser.eval(
        """((failed) => {
          const asked = window.fetch;
          window.fetch = async (...request) => {
            window.fetch = asked;
            const events = (await (await asked(...request)).text()).split('\\n\\n');
            const isBad = (text) => failed.some((index) => text.includes(`"index": ${index},`));
            const others = events.filter((text) => !isBad(text));
            const error = { message: 'the picture is bad' };
            const errors = failed.map((index) => `event: error\\ndata: ${JSON.stringify({ index, error })}`);
            return new Response([...errors, ...others].join('\\n\\n'));
          };
        })"""
        + f"({list(failed)})"
    )
    ask(browser, "a photo of a dog", count=str(count))
    browser.wait("document.querySelector('#error').textContent")
    wait_for_pictures(browser, count - len(failed))
    told = "the picture is bad"
    assert error(browser) == (told if count == 1 else f"{len(failed)} of {count} pictures failed: {told}")
    assert browser.eval("document.querySelectorAll('#results figure').length") == count
    captions = browser.eval(
        "[...document.querySelectorAll('#results .failed .told')].map((e) => e.textContent)"
    )
    assert captions == [told] * len(failed)
    assert len(history(browser)) == count - len(failed)
    ask(browser, "a photo of a cat", count="1")
    wait_for_pictures(browser, 1)
    assert error(browser) == ""


def test_a_key_is_asked_for_and_kept_for_the_tab(tmp_path):
    server = Server(LIGHTGEN_API_KEYS=KEY)
    try:
        with Browser(tmp_path / "profile") as browser:
            browser.open(server.url, "document.querySelector('#ask')?.open")
            browser.write(KEY)
            browser.press("Enter")
            browser.wait(READY)
            assert browser.eval(
                "[sessionStorage.length, JSON.stringify(localStorage).includes('a-key')]"
            ) == [1, False]
            ask(browser, "a photo of a dog")
            wait_for_pictures(browser, 1)
            browser.open(server.url, READY)
            assert not browser.eval("document.querySelector('#ask').open")
    finally:
        server.close()
