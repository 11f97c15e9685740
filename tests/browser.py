"""A real headless Chromium, driven through its DevTools protocol over a pipe: no port, no driver, no network."""

import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.slurm.cluster.packages import apt_get

PROGRAM, PACKAGE = "chromium", "chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
PATIENCE_S = 60.0


def why_not() -> str | None:
    """In one sentence why no browser can run on this machine, with the cure; None if one can."""
    if shutil.which(PROGRAM):
        return None
    if not shutil.which("apt-get"):
        return f"no browser here: {PROGRAM} is missing, and no apt-get to install it with"
    if os.geteuid() != 0:
        return f"no browser here: {PROGRAM} is missing; as root, run: apt-get install {PACKAGE}"
    return None


def install() -> None:
    """Install Chromium as root, where it is missing."""
    if reason := why_not():
        raise RuntimeError(reason)
    with open("/run/retain-browser-install.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shutil.which(PROGRAM):
            apt_get("update", check=False)
            apt_get("install", "--yes", "--no-install-recommends", PACKAGE, check=True)


class Page:
    """One page. `requests`: the address of everything it asked for; `complaints`: its errors and warnings."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.out, self.into = to_browser, from_browser
        self.unread, self.number = b"", 0
        self.session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.loaded = False

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self.loaded:
            self._take(self._message())

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self.number:
            self._take(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def middle(self, selector: str) -> tuple[float, float]:
        """Scroll an element into the window; the middle of what is seen of it."""
        box = self.value(
            f"(() => {{const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect();"
            "return [b.left + b.width / 2, (Math.max(b.top, 0) + Math.min(b.bottom, innerHeight)) / 2]})()"
        )
        return float(box[0]), float(box[1])

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A mouse event at a place in the window, as a hand would make it."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str) -> None:
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=27)

    def picture(self, path: Path) -> None:
        """The window as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            part = os.read(self.into, 2**16)
            if not part:
                raise RuntimeError("the browser has ended")
            self.unread += part
        message, _, self.unread = self.unread.partition(b"\0")
        return dict(json.loads(message))

    def _take(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])


@contextmanager
def browser(folder: Path, width: int = 1200, height: int = 900) -> Iterator[Page]:
    """A browser with its profile in a new folder below `folder`; it ends with the block."""
    install()
    into_browser, to_browser = os.pipe()
    from_browser, out_of_browser = os.pipe()
    # The protocol is on the descriptors 3 and 4 of the browser; its wrapper script hands them on.
    handed = f'exec 3<&{into_browser} 4>&{out_of_browser}; exec "$@"'
    command = [
        *("bash", "-c", handed, "bash", PROGRAM, *FLAGS),
        *(f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"),
    ]
    process = subprocess.Popen(
        command,
        pass_fds=(into_browser, out_of_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(into_browser)
    os.close(out_of_browser)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)
        os.close(from_browser)
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself once the pipe is closed; what is left of its session after a while is killed."""
    deadline = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_S)
