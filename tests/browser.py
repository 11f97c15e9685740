"""A real headless Chromium, driven through its DevTools protocol over a pipe, without port, driver or network."""

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
    "--no-sandbox",  # root cannot use it
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
    """Why no browser can run on this machine and what to do, in one sentence; None if one can."""
    if shutil.which(PROGRAM):
        return None
    if not shutil.which("apt-get"):
        return f"no browser: {PROGRAM} is not installed, and there is no apt-get to install it"
    if os.geteuid() != 0:
        return f"no browser: {PROGRAM} is not installed; as root, run: apt-get install {PACKAGE}"
    return None


def install() -> None:
    """Install Chromium as root, unless it is installed."""
    if reason := why_not():
        raise RuntimeError(reason)
    with open("/run/retain-browser-install.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shutil.which(PROGRAM):
            apt_get("update", check=False)
            apt_get("install", "--yes", "--no-install-recommends", PACKAGE, check=True)


class Page:
    """One page. `requests`: the address of everything it requested; `errors`: its errors and warnings."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.unread, self.last_id = b"", 0
        self.session: str | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.loaded = False

    def open(self, path: Path) -> None:
        """Load a file and wait for its load event."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self.loaded:
            self._record(self._next_message())

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of the protocol and return its result."""
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while (answer := self._next_message()).get("id") != self.last_id:
            self._record(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def centre(self, selector: str) -> tuple[float, float]:
        """Scroll an element into the window; return the centre of its visible part."""
        box = self.value(
            f"(() => {{const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect();"
            "return [b.left + b.width / 2, (Math.max(b.top, 0) + Math.min(b.bottom, innerHeight)) / 2]})()"
        )
        return float(box[0]), float(box[1])

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send a mouse event at a position in the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str) -> None:
        x, y = self.centre(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=27)

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            part = os.read(self.from_browser, 2**16)
            if not part:
                raise RuntimeError("the browser closed its pipe")
            self.unread += part
        message, _, self.unread = self.unread.partition(b"\0")
        return dict(json.loads(message))

    def _record(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.errors.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(parameters["entry"]["text"])


@contextmanager
def browser(folder: Path, width: int = 1200, height: int = 900) -> Iterator[Page]:
    """A browser with its profile in a new folder below `folder`; it is closed at the end of the block."""
    install()
    into_browser, to_browser = os.pipe()
    from_browser, out_of_browser = os.pipe()
    # The browser speaks the protocol on descriptors 3 and 4; its wrapper script passes them on.
    command_line = f'exec 3<&{into_browser} 4>&{out_of_browser}; exec "$@"'
    command = [
        *("bash", "-c", command_line, "bash", PROGRAM, *FLAGS),
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
    """Wait until the browser exits, which closing the pipe makes it do; then kill what is left of its session."""
    deadline = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_S)
