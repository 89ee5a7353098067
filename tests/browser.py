"""Chromium without a window, told what to do through a pipe: pages as people see them, and what the page complains of.

The DevTools protocol: JSON objects that end in a zero byte, on file descriptors 3 (to the browser) and 4 (from it).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps", "--no-default-browser-check", "--hide-scrollbars", "--mute-audio",
    # Whatever the page asks for by name has no address; this machine has.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--proxy-server=direct://",
)  # fmt: skip
PATIENCE = 120.0  # seconds for one answer, on a busy machine


class Browser:
    """One page. complaints: what its console, its exceptions and its policy said; asked: every address it asked for."""

    def __init__(self, to: int, come: int) -> None:
        self._to, self._come = to, come
        self._left, self._number, self._session = b"", 0, ""
        self.complaints: list[str] = []
        self.asked: list[str] = []

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask, and wait for the answer; what happens meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._come], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._come, 1 << 16)
            assert read, "the browser is gone"
            self._left += read
        message, self._left = self._left.split(b"\0", 1)
        return json.loads(message)

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str([each.get("value", each.get("description")) for each in params["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def look(self, width: int, height: int, dark: bool) -> None:
        """The window's size in CSS pixels, and the colours that its owner prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: Path | str) -> None:
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, down and up, in what has the focus."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def write(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page, all of it or what the window shows."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A fresh browser whose profile lies in `profile`. Fails where Chromium is missing."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "chromium is missing: scripts/native-tools"
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()

    def ends() -> None:
        """Beyond the reach of each other, as an end may be 3 or 4 already."""
        ours, theirs = os.dup(to_read), os.dup(from_write)
        os.dup2(ours, 3)
        os.dup2(theirs, 4)

    home = {**os.environ, "HOME": str(profile)}
    command = [program, *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
    with open(profile / "log", "wb") as log:
        process = subprocess.Popen(command, env=home, preexec_fn=ends, pass_fds=(3, 4), stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, start_new_session=True)  # fmt: skip
    os.close(to_read)
    os.close(from_write)
    try:
        found = Browser(to_write, from_read)
        found.attach()
        yield found
    finally:
        with suppress(OSError):
            os.write(to_write, b'{"id": 0, "method": "Browser.close"}\0')
        os.close(to_write)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # a group of its own, started above
            process.wait()
        os.close(from_read)
