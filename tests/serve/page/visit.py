"""A server process, and what a visitor of its page does and sees."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request

import numpy as np
from PIL import Image

READY = "document.body?.dataset.ready === 'true'"


class Server:
    """A server process that says where it listens."""

    def __init__(self, *options, **environment):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lightgen.cli.main", "serve", "--port", "0", "--threads", "1", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.said = []
        for line in self._process.stdout:
            self.said.append(line)
            if found := re.search(r"http://[\d.:]+", line):
                self.url = found[0] + "/"
                break
        else:
            raise AssertionError("".join(self.said))
        self._reader = threading.Thread(target=lambda: self.said.extend(self._process.stdout), daemon=True)
        self._reader.start()

    def metric(self, name):
        """Value of a metric."""
        with urllib.request.urlopen(self.url + "metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.M))

    def close(self):
        """End it; nothing that it said may be a traceback."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(timeout=60) == 0
        self._reader.join()
        assert "Traceback" not in "".join(self.said), "".join(self.said)


def ask(browser, prompt, **fields):
    """Fill the form and press Ctrl+Enter."""
    for name, value in {"prompt": prompt, **fields}.items():
        browser.eval(f"document.forms[0].elements.{name}.value = {json.dumps(value)}")
    browser.press("Enter", "Control")


def wait_for_pictures(browser, count, timeout_s=60):
    browser.wait(
        f"document.querySelectorAll('#results img').length === {count} && !generate.hidden", timeout_s
    )


def error(browser):
    return browser.eval("document.querySelector('#error').textContent")


def history(browser):
    """Records of the history, oldest first, with pictures as bytes."""
    found = browser.eval(
        """(async () => {
          const { readAll } = await import('./page/store.js');
          const text = async (blob) => {
            if (!blob) return null;
            const bytes = new Uint8Array(await blob.arrayBuffer());
            return btoa(bytes.reduce((all, each) => all + String.fromCharCode(each), ''));
          };
          return Promise.all((await readAll()).map(async (record) => ({
            settings: record.settings, facts: record.facts, blob: await text(record.blob),
            image: await text(record.parts?.image), mask: await text(record.parts?.mask),
          })));
        })()"""
    )
    for record in found:
        for name in ("blob", "image", "mask"):
            record[name] = record[name] and base64.b64decode(record[name])
    return found


def pixels(data, mode="RGB"):
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def open_picture(browser, path):
    """Give the page a file that has no settings, and edit it."""
    browser.choose("#file", path)
    browser.wait("!document.querySelector('#notice').hidden")
    browser.click("#agree")
    browser.wait("document.activeElement.id === 'mask'")


def drag_on_mask(browser, points):
    """Drag over the editor's canvas, by shares of its sides."""
    left, top, width, height = browser.box("#mask")
    browser.drag([(left + x * width, top + y * height) for x, y in points])
