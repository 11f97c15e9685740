"""Install the locked packages and Retain itself into the Python that runs this: `python tools/install.py [test] [docs]`.

torch may come from two builds: the index's, which on Linux needs the CUDA packages of cuda.lock, and a CPU build in a folder
that PIP_FIND_LINKS names. If the lock lists the hashes of both, pip takes the index's build even where it would prefer the CPU
build without hashes. So this script first asks pip which build it prefers, and then allows only that one.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
TORCH = re.compile(r"^torch==.*?(?=^\S)", re.MULTILINE | re.DOTALL)


def torch_build(pin: str) -> tuple[str, bool]:
    """SHA-256 of the file that pip takes for this pin, and whether it needs CUDA packages."""
    command = [*PIP, "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", pin]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (choice,) = report["install"]
    needs = choice["metadata"].get("requires_dist", [])
    cuda = sys.platform == "linux" and any(need.startswith(("nvidia-", "cuda-")) for need in needs)
    return choice["download_info"]["archive_info"]["hashes"]["sha256"], cuda


def main() -> int:
    demo = (LOCKS / "demo.lock").read_text()
    torch = TORCH.search(demo)
    assert torch is not None, "requirements/demo.lock pins no torch; run tools/lock.py"
    pin = torch[0].split()[0]
    digest, cuda = torch_build(pin)
    if digest not in torch[0]:
        cure = "add the hash to MORE_HASHES in tools/lock.py, and run it"
        print(
            f"requirements/demo.lock: pip prefers a build of {pin} with another hash, {digest}; {cure}", file=sys.stderr
        )
        return 1
    with tempfile.TemporaryDirectory() as folder:
        narrowed = Path(folder) / "demo.lock"
        narrowed.write_text(TORCH.sub(f"{pin} --hash=sha256:{digest}\n", demo))
        more = [LOCKS / f"{name}.lock" for name in (*sys.argv[1:], *(["cuda"] if cuda else []))]
        files = [word for lock in (narrowed, *more) for word in ("-r", str(lock))]
        # The locks name every package; looking for dependencies, pip would ask for hashes of extras too.
        subprocess.run([*PIP, "install", "--quiet", "--no-deps", "--require-hashes", *files], check=True)
    # setuptools, which builds Retain itself, is among the locked packages.
    subprocess.run([*PIP, "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
