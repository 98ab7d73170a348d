"""A headless Chromium, driven over the pipe of its DevTools protocol: pages, keys, pictures of them."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
#: Name -> code, number and text of keys that are no letters or digits.
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    " ": ("Space", 32, " "),
    "Backspace": ("Backspace", 8, ""),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
}
CONTROL = 2  # modifier


class Browser:
    """One tab of a browser. Its protocol: https://chromedevtools.github.io/devtools-protocol."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, os.fdopen(from_browser, "rb")
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Log.enable")

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            found = os.read(self._from.fileno(), 1 << 20)
            assert found, "the browser has ended"
            self._buffer += found
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> Any:
        """What a method of the protocol returns."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        os.write(
            self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def wait_for(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The next event of this name with these parameters, of those that came since a page was opened."""
        while True:
            for place, event in enumerate(self.events):
                if event.get("method") == method and event["params"].items() >= parameters.items():
                    del self.events[place]
                    return event["params"]
            self.events.append(self._receive())

    def open(self, page: Path, width: int = 1280, height: int = 800) -> None:
        """Open a file in a window of this size, and wait until it is loaded."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        self.wait_for("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """Of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key."""
        code, number, text = KEYS.get(key) or (f"Key{key.upper()}", ord(key.upper()), key)
        event = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        text = "" if modifiers else text
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def tap(self, selector: str) -> None:
        """Touch the middle of an element, which must be in the window."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{place}.scrollIntoView({{block: 'center'}})")
        x, y = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({place}.getBoundingClientRect())")
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def downloads(self, folder: Path) -> None:
        """Put what is saved into this folder."""
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with this folder for its profile."""
    (for_browser, to_browser), (from_browser, by_browser) = os.pipe(), os.pipe()
    command = ["bash", "-c", f'exec "$@" 3<&{for_browser} 4>&{by_browser}', "bash", str(CHROMIUM), *OPTIONS]
    with subprocess.Popen(
        [*command, f"--user-data-dir={profile}"],
        pass_fds=(for_browser, by_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(for_browser)
        os.close(by_browser)
        try:
            browser = Browser(to_browser, from_browser)
            yield browser
            browser.call("Browser.close")
        finally:
            process.kill()
            os.close(to_browser)
