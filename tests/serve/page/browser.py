"""A headless Chromium, spoken to over two pipes in its DevTools protocol."""

import base64
import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
KEYS |= {"ArrowDown": 40, "Delete": 46}
MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


def find_browser() -> str:
    """Path of a Chromium; fails with a line that names what is missing."""
    for name in PROGRAMS:
        if path := shutil.which(name):
            return path
    raise AssertionError(f"tests of the page need a browser: found none of {', '.join(PROGRAMS)} on the PATH")


class Browser:
    """One browser with one tab; what the page complains of is in `complaints`."""

    def __init__(self, profile: Path) -> None:
        program = find_browser()
        into, self._to = os.pipe()
        self._from, out = os.pipe()
        # High numbers first: one of the pipes may have 3 or 4 itself.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (into, out)]

        def place() -> None:
            """The browser reads its descriptor 3 and writes its descriptor 4."""
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in ends:
            os.close(end)
        os.close(into)
        os.close(out)
        self._count, self._session = 0, None
        self._answers: dict[int, queue.Queue] = {}
        self.complaints: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Answer to a command of the protocol."""
        self._count += 1
        number, answers = self._count, queue.Queue()
        self._answers[number] = answers
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answer = answers.get(timeout=60)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _listen(self) -> None:
        rest = b""
        while True:
            try:
                chunk = os.read(self._from, 1 << 16)
            except OSError:
                return
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\0")
            for each in whole:
                message = json.loads(each)
                if "id" in message:
                    self._answers.pop(message["id"]).put(message)
                elif message["method"] == "Runtime.exceptionThrown":
                    self.complaints.append(json.dumps(message["params"]["exceptionDetails"])[:600])
                elif message["method"] == "Log.entryAdded":
                    entry = message["params"]["entry"]
                    if entry["level"] == "error":
                        self.complaints.append(f"{entry['text']} {entry.get('url', '')}")

    def open(self, url: str, ready: str = "document.readyState === 'complete'") -> None:
        """Go to an address and wait until an expression is true there."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url)}) && ({ready})")

    def eval(self, expression: str) -> Any:
        """Value of an expression in the page, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, timeout_s: float = 30) -> None:
        """Return once the expression is true."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.eval(f"Boolean({expression})"):
                return
            time.sleep(0.02)
        raise AssertionError(f"never came true in {timeout_s} s: {expression}")

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        """Size of the window, and whether it is a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def prefer(self, **features: str) -> None:
        """What the system prefers, as prefers_color_scheme="dark"."""
        found = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=found)

    def press(self, key: str, *modifiers: str, hold: bool = False) -> None:
        """Press a key (and let it go, unless held)."""
        known = {"code": KEYS.get(key, ord(key[0].upper())), "text": key if len(key) == 1 else ""}
        known["text"] = "\r" if key == "Enter" else known["text"]
        event = {
            "key": key,
            "windowsVirtualKeyCode": known["code"],
            "modifiers": sum(MODIFIERS[name] for name in modifiers),
        }
        text = {"text": known["text"]} if known["text"] and not {"Control", "Meta"} & set(modifiers) else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **text, **event)
        if not hold:
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def let_go(self, key: str) -> None:
        """Let a held key go."""
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=KEYS.get(key, 0))

    def write(self, text: str) -> None:
        """Type a text where the focus is."""
        self.call("Input.insertText", text=text)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """(Left, top, width, height) of an element, scrolled into view."""
        return tuple(
            self.eval(
                f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
                "e.scrollIntoView({block: 'center', behavior: 'instant'});"
                "const b = e.getBoundingClientRect();"
                "return [b.left, b.top, b.width, b.height]; })()"
            )
        )

    def click(self, selector: str) -> None:
        """Click the middle of an element with a real pointer."""
        left, top, width, height = self.box(selector)
        self.drag([(left + width / 2, top + height / 2)])

    def drag(self, points: list[tuple[float, float]]) -> None:
        """Press at the first point, move through the others, let go at the last."""
        mouse = "Input.dispatchMouseEvent"
        self.call(mouse, type="mouseMoved", x=points[0][0], y=points[0][1])
        pressed = {"button": "left", "buttons": 1, "clickCount": 1}
        self.call(mouse, type="mousePressed", x=points[0][0], y=points[0][1], **pressed)
        for x, y in points[1:]:
            self.call(mouse, type="mouseMoved", x=x, y=y, button="left", buttons=1)
        self.call(mouse, type="mouseReleased", x=points[-1][0], y=points[-1][1], button="left", clickCount=1)

    def choose(self, selector: str, path: Path) -> None:
        """Put a file into a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def shot(self) -> bytes:
        """PNG of what the window shows."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
