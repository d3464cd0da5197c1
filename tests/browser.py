"""A headless Chromium that tests drive as a person would: open, click, type, look."""

import json
import os
import pathlib
import select
import shutil
import subprocess

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# Of keys that are no characters.
_CODES = {
    "Tab": 9,
    "Enter": 13,
    " ": 32,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


class Browser:
    """One page of a browser, driven over its debugging pipe.

    `events` are all events since the page was opened; every request, console message
    and failed load is one.
    """

    def __init__(self, profile: pathlib.Path):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = [*_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        # The browser reads commands at descriptor 3 and answers at 4.
        script = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *flags],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read), os.close(to_write)
        self._buffer, self._last, self._session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params):
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 60)
            found = os.read(self._read, 1 << 20) if ready else b""
            assert found, "the browser does not answer"
            self._buffer += found
        message, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(message)
        if "method" in message:
            self.events.append(message)
        return message

    def wait(self, method: str):
        """Waits for an event of a name and takes it out."""
        while True:
            for event in self.events:
                if event["method"] == method:
                    self.events.remove(event)
                    return event["params"]
            self._next()

    def size(self, *, width: int, height: int = 900, dark: bool = False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1},
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str):
        self.events.clear()
        self.call("Page.navigate", url=address)
        self.wait("Page.loadEventFired")

    def reload(self):
        self.call("Page.reload")
        self.wait("Page.loadEventFired")

    def evaluate(self, code: str):
        """Runs code, waits for what it promises, and returns its value."""
        answer = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, condition: str, *, seconds: float = 30):
        """Waits until an expression holds; it is asked for at every drawn frame."""
        held = self.evaluate(
            "new Promise((resolve) => { const end = performance.now() + "
            f"{1000 * seconds}; const ask = () => {{ if ({condition}) resolve(true);"
            "else if (performance.now() > end) resolve(false);"
            "else setTimeout(ask, 10); }; ask(); })"
        )
        assert held, f"not within {seconds} s: {condition}"

    def click(self, selector: str, *, touch: bool = False):
        """Clicks at the middle of an element, as a mouse or a finger does."""
        x, y = self.evaluate(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "one.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = one.getBoundingClientRect();"
            "return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        if touch:
            points = [{"x": x, "y": y}]
            self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=points)
            self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            return
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                **{"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1},
            )

    def press(self, key: str):
        """Presses a key: a character, or a name such as `Enter`."""
        code = _CODES.get(key) or ord(key.upper())
        text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        common = {"key": key, "windowsVirtualKeyCode": code}
        kind = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=kind, text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str):
        self.call("Input.insertText", text=text)

    def keep_downloads(self, folder: pathlib.Path):
        self.call(
            "Browser.setDownloadBehavior",
            **{"behavior": "allow", "downloadPath": str(folder), "eventsEnabled": True},
        )

    def downloaded(self):
        """Waits until a download is complete."""
        while self.wait("Browser.downloadProgress")["state"] != "completed":
            pass

    def close(self):
        self._process.terminate()
        self._process.wait()
        os.close(self._write), os.close(self._read)
