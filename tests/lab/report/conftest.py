"""A finished run, and a headless Chromium controlled by the Chrome DevTools Protocol."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from copd.config import load_config
from copd.run.commands import train

LAPTOP = Path(__file__).parents[3] / "configs" / "laptop.toml"
SHORT = {
    "recipe.rounds": "1",
    "recipe.rlvr_steps": "2",
    "recipe.opd_steps": "2",
    "rollout.num_prompts": "2",
    "rollout.group_size": "3",
    "rollout.max_completion_tokens": "12",
    "evaluation.num_problems": "6",
    "evaluation.num_samples": "2",
    "evaluation.every": "2",
    "engine.num_threads": "1",
}
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers have none, and the pages are ours
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
LAUNCH = (
    "import fcntl, os, sys\n"
    "read, write = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])\n"
    "os.dup2(read, 3); os.dup2(write, 4); os.execv(sys.argv[3], sys.argv[3:])\n"
)
"""Chromium reads commands from descriptor 3 and answers on 4."""

KEYS = {
    "ArrowDown": 40,
    "ArrowUp": 38,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "Tab": 9,
    "End": 35,
    "Home": 36,
}


class Browser:
    """One tab, driven by real mouse and key events."""

    def __init__(self, program: str, profile: Path) -> None:
        (child_in, self._out), (self._in, child_out) = os.pipe(), os.pipe()
        words = [program, *FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(child_in), str(child_out), *words],
            pass_fds=(child_in, child_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        self._rest, self._number, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = session["sessionId"]
        for part in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{part}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer; events in between are recorded."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds: float = 60.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, "Chromium does not answer"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path) -> None:
        """Load a file and clear the recorded events."""
        self.events.clear()
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 20.0) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def count(self, selector: str) -> int:
        """Return the number of matching elements."""
        return self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")

    def point(self, selector: str) -> tuple[float, float]:
        """Scroll an element into view and return its centre."""
        script = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        x, y = self.evaluate(script)
        return x, y

    def hover(self, selector: str) -> None:
        """Move the mouse onto an element."""
        x, y = self.point(selector)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Click an element."""
        x, y = self.point(selector)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            where: dict[str, Any] = {"x": x, "y": y, "button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", type=kind, **where)

    def press(self, *keys: str) -> None:
        """Type keys: names such as ArrowDown, or letters."""
        for key in keys:
            code = KEYS.get(key, ord(key[0].upper()))
            common: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code}
            text = {"text": key} if len(key) == 1 else {}
            self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def emulate(self, *, width: int = 1280, height: int = 900, **features: str) -> None:
        """Set the window size and media: `media="print"`, `scheme="dark"`."""
        size: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.send("Emulation.setDeviceMetricsOverride", **size, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": features.get("scheme", "light")}
        media = features.get("media", "")
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def pdf(self) -> bytes:
        """Return the page as printed."""
        answer = self.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(answer["data"])

    @property
    def errors(self) -> list[str]:
        """Messages of the console: errors, warnings, exceptions, refused loads."""
        self.evaluate("0")
        wrong = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [str(event["params"]) for event in self.events if event["method"] in wrong]

    @property
    def requests(self) -> list[str]:
        """URLs that the page requested, without data URIs."""
        self.evaluate("0")
        sent = (e for e in self.events if e["method"] == "Network.requestWillBeSent")
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]

    def close(self) -> None:
        """End the process."""
        self._session = None
        self.send("Browser.close")
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start Chromium, if it is installed."""
    program = next(filter(None, map(shutil.which, (*NAMES, MAC))), None)
    if program is None or subprocess.run([program, "--version"], capture_output=True).returncode:
        pytest.skip("needs Chromium: `make browser` installs it on Debian")
    own = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield own
    own.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of four steps: three domains, both stages, a merge."""
    root = tmp_path_factory.mktemp("runs") / "short"
    words = [word for key, value in SHORT.items() for word in (f"--{key}", value)]
    return train(load_config(LAPTOP, [*words, "--output_dir", str(root)]))
