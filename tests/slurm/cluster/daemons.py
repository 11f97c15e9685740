"""Start the daemons of a cluster one by one, and talk to them."""

import secrets
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.slurm.cluster.configuration import Cluster

PATIENCE_S = 120.0
"""How long to wait for what takes seconds on a quiet machine."""


def call(cluster: Cluster, *command: str | Path, seconds: float = 60) -> str:
    """What a command of this cluster's user prints; CalledProcessError, with its complaint, if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        env=cluster.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    if done.returncode != 0:
        error = subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
        error.add_note(done.stderr.strip())
        raise error
    return done.stdout


def succeeds(cluster: Cluster, *command: str | Path) -> bool:
    """Whether a command ends well within five seconds."""
    try:
        call(cluster, *command, seconds=5)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    """Return once the condition holds; TimeoutError, saying what was awaited, if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def start_munge(cluster: Cluster) -> None:
    """Start munged with a key of its own."""
    key = cluster.folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    places = {
        "key-file": key,
        "socket": cluster.munge_socket,
        "seed-file": cluster.folder / "munge" / "seed",
        "pid-file": cluster.folder / "run" / "munged.pid",
        "log-file": cluster.folder / "log" / "munged.log",
    }
    _start(cluster, "munged", "--force", *(f"--{option}={place}" for option, place in places.items()))
    wait_until(lambda: succeeds(cluster, "munge", "--no-input", f"--socket={cluster.munge_socket}"), "munged answers")


def start_accounting(cluster: Cluster) -> None:
    """Start the database and slurmdbd, and enter the cluster, its user and their limits."""
    database = cluster.folder / "db" / "socket"
    temporary = cluster.folder / "db" / "tmp"
    temporary.mkdir()
    # A starting mariadbd deletes every temporary table in its tmpdir, also those of other servers.
    own = (
        "--no-defaults",
        f"--user={cluster.user}",
        f"--datadir={cluster.folder / 'db' / 'data'}",
        f"--tmpdir={temporary}",
    )
    call(cluster, "mariadb-install-db", *own, "--auth-root-authentication-method=normal", "--skip-test-db")
    settings = (
        f"--socket={database}",
        f"--pid-file={cluster.folder / 'run' / 'mariadbd.pid'}",
        "--skip-networking",
        "--skip-log-bin",
        "--innodb-buffer-pool-size=128M",
        "--innodb-log-file-size=32M",
        "--innodb-lock-wait-timeout=900",
        "--innodb-flush-log-at-trx-commit=0",
    )
    _start(cluster, "setsid", "--fork", "mariadbd", *own, *settings)
    client = ("mariadb", "--no-defaults", f"--socket={database}", "--user=root")
    wait_until(lambda: succeeds(cluster, *client, "--execute=CREATE DATABASE IF NOT EXISTS slurm"), "mariadbd answers")
    # slurmdbd has no setting for the database's socket; the client library in it reads this variable.
    _start(cluster, "slurmdbd", MYSQL_UNIX_PORT=str(database))
    wait_until(lambda: succeeds(cluster, "sacctmgr", "--noheader", "list", "cluster"), "slurmdbd answers")
    entries = (("cluster", cluster.name), ("account", "retain"), ("user", cluster.user, "account=retain"))
    for entry in entries:
        call(cluster, "sacctmgr", "--immediate", "--quiet", "add", *entry)
    if limit := cluster.site.max_submit:
        setting = ("qos", "normal", "set", f"MaxSubmitJobsPerUser={limit}")
        call(cluster, "sacctmgr", "--immediate", "--quiet", "modify", *setting)


def start_controller(cluster: Cluster) -> None:
    """Start slurmctld, and wait until it answers."""
    _start(cluster, "slurmctld")
    wait_until(lambda: succeeds(cluster, "scontrol", "ping"), "slurmctld answers")


def start_slurmd(cluster: Cluster, node: str) -> None:
    """Start one node's slurmd, without waiting until slurmctld knows it."""
    (cluster.folder / "spool" / node).mkdir(exist_ok=True)
    _start(cluster, "slurmd", "-N", node, SLURM_CONF=str(cluster.folder / f"{node}.conf"))


def _start(cluster: Cluster, *command: str, **variables: str) -> None:
    """Start a daemon that detaches itself."""
    with open(cluster.folder / "log" / "start.log", "ab") as log:
        done = subprocess.run(
            command,
            env=cluster.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            timeout=60,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} does not start")
