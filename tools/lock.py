"""Write requirements/*.lock from pyproject.toml: `pip install uv && python tools/lock.py [--upgrade]`.

Without --upgrade, packages that are pinned keep their versions, and only new requirements of pyproject.toml are looked up.

demo.lock holds Retain with its demo and its search, tasks.lock what measuring on tasks adds, test.lock what testing adds,
docs.lock what building the docs site adds, and cuda.lock what the index's build of torch needs on Linux beyond a CPU build.
Each pins every package with the hashes of all its files.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"

# uv sees the index's files only; builds of torch from elsewhere that we accept are listed here.
MORE_HASHES = {
    # torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl
    "torch==2.13.0": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"],
}
BASE = ("demo", "search")
"""The extras of demo.lock."""
EXTRAS = ("tasks", "test", "docs")
"""The extras, besides those, that have a lock of their own."""
CUDA = re.compile(r"^(nvidia-|cuda-|triton==)")


def compile_lock(*extras: str) -> list[str]:
    """One string a package, its hashes included, sorted by name."""
    command = ["uv", "pip", "compile", "pyproject.toml", "--universal", "--python-version", "3.11", "--quiet"]
    command += ["--generate-hashes", "--no-emit-index-url", "--no-annotate", "--no-header"]
    command += [word for extra in extras for word in ("--extra", extra)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        if "--upgrade" not in sys.argv:
            constraints.write("".join(f"{pin}\n" for pin in pinned()))
            constraints.flush()
        command += ["--constraints", constraints.name]
        return entries_of(command)


def pinned() -> list[str]:
    """`name==version ; marker` of every package in the locks."""
    texts = [lock.read_text() for lock in sorted(LOCKS.glob("*.lock"))]
    return [
        line.removesuffix(" \\") for text in texts for line in text.splitlines() if re.match(r"[a-z0-9][^ ]*==", line)
    ]


def entries_of(command: list[str]) -> list[str]:
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [with_more_hashes(entry) for entry in re.split(r"\n(?=[a-z])", text.strip())]


def with_more_hashes(entry: str) -> str:
    more = MORE_HASHES.get(entry.split(" ", 1)[0], [])
    return entry + "".join(f" \\\n    --hash=sha256:{digest}" for digest in more)


def versions(entries: list[str]) -> set[str]:
    """`name==version` of every package."""
    return {entry.split()[0] for entry in entries}


def main() -> int:
    demo = compile_lock(*BASE)
    locks = {
        "demo": [entry for entry in demo if not CUDA.match(entry)],
        "cuda": [entry for entry in demo if CUDA.match(entry)],
    }
    # One environment may hold all extras, so they must agree on the version of every package.
    everything = versions(compile_lock(*BASE, *EXTRAS))
    for extra in EXTRAS:
        entries = compile_lock(*BASE, extra)
        if differing := (versions(demo) - versions(entries)) | (versions(entries) - everything):
            print(f"the extra {extra} disagrees with the others on {sorted(differing)}", file=sys.stderr)
            return 1
        locks[extra] = [entry for entry in entries if entry not in set(demo)]
    for name, entries in locks.items():
        header = "# Written by tools/lock.py; do not edit.\n"
        (LOCKS / f"{name}.lock").write_text(header + "\n".join(entries) + "\n")
        print(f"requirements/{name}.lock: {len(entries)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
