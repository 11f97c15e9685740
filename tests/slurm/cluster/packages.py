"""The Debian packages of SLURM: whether a cluster can run here, and how to install what it takes."""

import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLURM = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
ACCOUNTING = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "mariadb": "mariadb-client-core",
}
POLICY = Path("/usr/sbin/policy-rc.d")


def search_path() -> str:
    """The caller's PATH, and the folders of system daemons, which an ordinary user's PATH lacks."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def missing(accounting: bool = True) -> list[str]:
    """The packages whose programs are not on this machine."""
    needed = SLURM | ACCOUNTING if accounting else SLURM
    return sorted({package for program, package in needed.items() if not shutil.which(program, path=search_path())})


def why_not(accounting: bool = True) -> str | None:
    """In one sentence why no cluster can run on this machine, with the cure; None if one can."""
    absent = missing(accounting)
    if absent and not shutil.which("apt-get"):
        return f"no SLURM here: {', '.join(absent)} missing, and no apt-get to install them with"
    if absent and os.geteuid() != 0:
        return (
            f"no SLURM here: {', '.join(absent)} missing; as root, run: python -m tests.slurm.cluster.cluster install"
        )
    return _listens_outside()


def _listens_outside() -> str | None:
    # SLURM binds either to every address or to the one that the host's own name has: it has no setting for another.
    name = socket.gethostname()
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(name, None, socket.AF_INET)}
    except OSError:
        addresses = set()
    if addresses and all(address.startswith("127.") for address in addresses):
        return None
    found = ", ".join(sorted(addresses)) or "no address"
    return f"SLURM would not stay on loopback: {name} resolves to {found}; put '127.0.1.1 {name}' first in /etc/hosts"


def install(accounting: bool = True) -> None:
    """Install what is missing, as root, without any of it being started."""
    if reason := why_not(accounting):
        raise RuntimeError(reason)
    if not missing(accounting):
        return
    with open("/run/retain-slurm-install.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if packages := missing(accounting):
            with _services_kept_still():
                apt_get("update", check=False)
                apt_get("install", "--yes", "--no-install-recommends", *packages, check=True)
    if packages := missing(accounting):
        raise RuntimeError(f"apt-get installed no program of {', '.join(packages)}")


@contextmanager
def _services_kept_still() -> Iterator[None]:
    """Have Debian's packages ask a policy that forbids starting their services, unless the machine has its own."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def apt_get(*arguments: str, check: bool) -> None:
    """One call of apt-get that asks nothing. Raises RuntimeError where it fails and `check` is true."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *arguments]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
