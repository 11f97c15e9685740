"""Packages that only some features need, and the extra of Retain that installs them."""

import importlib.util

from retain.sweeps.base.errors import MissingResourceError


def is_installed(package: str) -> bool:
    """Whether a package can be imported. A folder of that name, such as the wandb/ that W&B writes, does not count."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def require_extra(extra: str, packages: tuple[str, ...], what: str, otherwise: str = "") -> None:
    """Raise MissingResourceError if one of the packages of an extra is missing.

    what: what needs them; otherwise: what else the user may do.
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingResourceError(
            f"{what}: {' and '.join(missing)} {verb} not installed; "
            f"run pip install 'retain-lm[{extra}]'{', or ' + otherwise if otherwise else ''}"
        )
