"""Commands as another user: tests run as root, which may do everything, so these give up what root may."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.retain import COMMAND, environment

needs_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="only root can be several users, with setpriv of util-linux",
)
COLLEAGUE, GROUP = 42_420, 42_421
"""A user who owns files, and the group that shares a store."""
MEMBER = ("setpriv", f"--groups={GROUP}", "--inh-caps=-all", "--bounding-set=-all")
"""The user of these tests without privileges, as a member of the group: that user owns the interpreter."""
NAMELESS = (
    *("setpriv", "--reuid=42422", "--regid=42422", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
"""A user whom the system does not know, and who may read everything, as the interpreter may be in root's home."""


def retain_as(
    user: Sequence[str], *arguments: str | Path, code: int | None = 0, without: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run one verb as a user, with the umask of a group; `without` names environment variables that are unset."""
    variables = {name: value for name, value in environment().items() if name not in without}
    command = [*user, *COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, umask=0o002, timeout=600, check=False)
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def give_to(owner: int, folder: Path) -> None:
    """Make a user the owner of everything in a folder; groups and modes stay."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner, -1, follow_symlinks=False)
