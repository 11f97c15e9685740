"""Lay the package out for type checkers: .typing/retain/ links to the folders that setuptools maps into it.

An installed checkout resolves `retain.sweeps` by a hook of setuptools that type checkers do not run.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("sweeps", "datamodules", "lightning_modules", "launchers", "results")


def main() -> None:
    package = ROOT / ".typing" / "retain"
    package.mkdir(parents=True, exist_ok=True)
    links = {name: ROOT / name for name in FOLDERS} | {path.name: path for path in (ROOT / "retain").glob("*.py*")}
    for name, target in links.items():
        link = package / name
        if not link.is_symlink():
            link.symlink_to(target)


if __name__ == "__main__":
    main()
