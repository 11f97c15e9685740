"""A real SLURM on this machine, without systemd: controller, accounting and nodes, all of them on loopback.

python -m tests.slurm.cluster.cluster install          # once, as root
python -m tests.slurm.cluster.cluster up
eval "$(python -m tests.slurm.cluster.cluster env)"
sbatch --gres=gpu:2 --wrap 'echo $CUDA_VISIBLE_DEVICES'
python -m tests.slurm.cluster.cluster down
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

from tests.slurm.cluster import daemons
from tests.slurm.cluster.configuration import Cluster, Site, configure, opened, reserved_ports
from tests.slurm.cluster.daemons import call, wait_until
from tests.slurm.cluster.packages import install, why_not
from tests.slurm.cluster.processes import Process, kill, kill_as_one, processes, send

__all__ = [
    "Cluster",
    "Site",
    "call",
    "down",
    "forget_jobs",
    "install",
    "kill_controller",
    "kill_node",
    "opened",
    "ready_nodes",
    "resume_nodes",
    "running",
    "start_controller",
    "start_node",
    "status",
    "stop_controller",
    "up",
    "wait_until",
    "why_not",
]

REPOSITORY = Path(__file__).parents[3]
READY = ("idle", "mixed", "allocated", "completing")
GIVEN_UP = ("down", "drain", "fail", "unknown")
"""How the states of a node begin in which it takes no job until somebody resumes it."""


def up(folder: Path, site: Site | None = None) -> Cluster:
    """Start a cluster whose state is in this folder, which must be absent or empty: all of it, or nothing."""
    site = site or Site()
    if reason := why_not(site.accounting):
        raise RuntimeError(reason)
    with reserved_ports() as port:
        cluster = configure(folder, port, site)
        try:
            _start_all(cluster)
        except BaseException as error:
            error.add_note(last_log_lines(cluster))
            down(cluster)
            raise
    return cluster


def _start_all(cluster: Cluster) -> None:
    daemons.start_munge(cluster)
    if cluster.site.accounting:
        daemons.start_accounting(cluster)
    daemons.start_controller(cluster)
    for node in cluster.nodes:
        daemons.start_slurmd(cluster, node)
    wait_until(lambda: ready_nodes(cluster) == set(cluster.nodes), "all nodes ready")


def down(cluster: Cluster, keep_logs: bool = False) -> None:
    """Kill every daemon and every process of the jobs, also those that detached themselves; delete the state."""
    kill_as_one(cluster.folder)
    if not keep_logs:
        shutil.rmtree(cluster.folder, ignore_errors=True)
        return
    for entry in cluster.folder.iterdir():
        if entry.is_symlink() or entry.is_file():
            entry.unlink()
        elif entry.name != "log":
            shutil.rmtree(entry)


@contextmanager
def running(folder: Path, site: Site | None = None) -> Iterator[Cluster]:
    """A cluster that ends with the block, or with this process, however that dies; its logs stay."""
    guard = [sys.executable, "-m", "tests.slurm.cluster.cluster", "--folder", str(folder.resolve()), "guard"]
    with subprocess.Popen(guard, stdin=subprocess.PIPE, cwd=REPOSITORY, start_new_session=True):
        cluster = up(folder, site)
        try:
            yield cluster
        finally:
            down(cluster, keep_logs=True)


def node_states(cluster: Cluster) -> dict[str, str]:
    """The state of each node in sinfo's words, with a * while it does not respond; {} while slurmctld does not."""
    if not processes(cluster.folder, _is_controller):
        return {}
    try:
        lines = call(cluster, "sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T", seconds=5)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split() for line in lines.splitlines())


def ready_nodes(cluster: Cluster) -> set[str]:
    """The nodes that take jobs or run them; none while slurmctld does not answer."""
    return {node for node, state in node_states(cluster).items() if state in READY}


def kill_node(cluster: Cluster, node: str, noticed: bool = True) -> None:
    """Kill a node with its jobs as a power cut does: nothing of it reports anything.

    noticed: it is set down at once, and its jobs are requeued; otherwise slurmctld finds out after half a minute.
    """
    if noticed:
        send(signal.SIGSTOP, processes(cluster.folder, lambda process: process.node == node))
        call(cluster, "scontrol", "update", f"nodename={node}", "state=down", "reason=killed")
    kill_as_one(cluster.folder, lambda process: process.node == node)


def start_node(cluster: Cluster, node: str) -> None:
    """Start a node that was killed, or one that slurmctld has given up, and wait until it takes jobs."""
    for _ in range(2):
        if not processes(cluster.folder, lambda process: process.node == node and process.name == "slurmd"):
            daemons.start_slurmd(cluster, node)
        with suppress(TimeoutError):
            return _wait_for_nodes(cluster, {node})
        # A slurmd that slurmctld no longer hears is of no more use.
        kill_as_one(cluster.folder, lambda process: process.node == node)
    raise TimeoutError(f"node {node} does not come back: {node_states(cluster)}\n{last_log_lines(cluster)}")


def resume_nodes(cluster: Cluster, nodes: Collection[str]) -> None:
    """Resume those of these nodes that slurmctld has set down or drained, as an operator would."""
    states = node_states(cluster)
    for node in states.keys() & set(nodes):
        if states[node].startswith(GIVEN_UP):
            with suppress(subprocess.CalledProcessError):
                call(cluster, "scontrol", "update", f"nodename={node}", "state=resume")


def _wait_for_nodes(cluster: Cluster, nodes: Collection[str]) -> None:
    def ready() -> bool:
        resume_nodes(cluster, nodes)
        return set(nodes) <= ready_nodes(cluster)

    wait_until(ready, f"nodes {', '.join(sorted(nodes))} ready")


def stop_controller(cluster: Cluster) -> None:
    """Stop slurmctld as for an upgrade: it saves its state."""
    send(signal.SIGTERM, processes(cluster.folder, _is_controller))
    wait_until(lambda: not processes(cluster.folder, _is_controller), "slurmctld stopped")


def kill_controller(cluster: Cluster) -> None:
    """Kill slurmctld: what it learnt in the last seconds is lost."""
    kill(cluster.folder, _is_controller)


def start_controller(cluster: Cluster) -> None:
    """Start slurmctld again, and wait until it knows the living nodes."""
    alive = {process.node for process in processes(cluster.folder, lambda process: process.name == "slurmd")}
    daemons.start_controller(cluster)
    _wait_for_nodes(cluster, {node for node in alive if node})


def forget_jobs(cluster: Cluster) -> None:
    """Restart slurmctld as on a new disk: it knows no job, ends those that run, and gives out their ids once more."""
    stop_controller(cluster)
    for saved in (cluster.folder / "state").glob("job_state*"):
        saved.unlink()
    start_controller(cluster)
    wait_until(lambda: not processes(cluster.folder, lambda it: not it.is_daemon), "unknown jobs ended")


def status(cluster: Cluster) -> dict[str, bool]:
    """Whether each daemon lives; of a node, whether it takes jobs."""
    alive = {process.name for process in processes(cluster.folder)}
    accounting = ("mariadbd", "slurmdbd") if cluster.site.accounting else ()
    ready = ready_nodes(cluster)
    return {name: name in alive for name in ("munged", *accounting, "slurmctld")} | {
        node: node in ready for node in cluster.nodes
    }


def last_log_lines(cluster: Cluster, count: int = 8) -> str:
    """The end of every log, for the message of a failure."""
    tails = []
    for log in sorted(cluster.folder.glob("log/*.log")):
        lines = log.read_text(errors="replace").splitlines()
        tails.append("\n".join([f"== {log.name}", *lines[-count:]]))
    return "\n".join(tails)


def _is_controller(process: Process) -> bool:
    return process.name == "slurmctld"


NODE_COMMANDS: dict[str, Callable[[Cluster, str], None]] = {"kill-node": kill_node, "start-node": start_node}
CONTROLLER_COMMANDS: dict[str, Callable[[Cluster], None]] = {
    "stop-controller": stop_controller,
    "start-controller": start_controller,
    "kill-controller": kill_controller,
}


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 if all went well, 1 if not, or if `status` finds something down."""
    asked = _parser().parse_args(arguments)
    if asked.command == "install":
        install()
        return 0
    if asked.command == "guard":
        sys.stdin.read()
    cluster = opened(asked.folder)
    if asked.command == "up":
        given = {field.name: getattr(asked, field.name) for field in fields(Site)}
        cluster = cluster or up(asked.folder, Site(**given))
        print(f"{cluster.site.nodes} nodes, logs in {cluster.folder / 'log'}")
    elif asked.command in ("down", "guard"):
        if cluster:
            down(cluster, keep_logs=asked.command == "guard")
    elif not cluster:
        print(f"no cluster in {asked.folder}", file=sys.stderr)
        return 1
    elif asked.command == "env":
        print("export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in cluster.variables.items()))
    elif asked.command == "status":
        found = status(cluster)
        for name, is_up in found.items():
            print(f"{name:10} {'up' if is_up else 'down'}")
        return 0 if all(found.values()) else 1
    elif asked.command in NODE_COMMANDS:
        if asked.node not in cluster.nodes:
            print(f"no node {asked.node}: there are {', '.join(cluster.nodes)}", file=sys.stderr)
            return 1
        NODE_COMMANDS[asked.command](cluster, asked.node)
    else:
        CONTROLLER_COMMANDS[asked.command](cluster)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.slurm.cluster.cluster", description="A real SLURM on this machine."
    )
    default = Path(tempfile.gettempdir()) / f"retain-slurm-{os.getuid()}"
    parser.add_argument("--folder", type=Path, default=default, help="its state, logs and sockets (%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    starting = commands.add_parser("up", help="start a cluster, unless there is one in the folder")
    for field in fields(Site):
        option, meaning = f"--{field.name.replace('_', '-')}", f"{field.metadata['meaning']} (%(default)s)"
        if isinstance(field.default, bool):
            starting.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default, help=meaning)
        else:
            starting.add_argument(option, type=int, default=field.default, help=meaning, metavar="N")
    others = {
        "install": "install the Debian packages, as root",
        "down": "end all of it, and delete the folder",
        "status": "say what is up; exits with 1 if something is down",
        "env": "print the line to eval before sbatch",
        "stop-controller": "stop slurmctld, which saves its state",
        "start-controller": "start slurmctld again",
        "kill-controller": "kill slurmctld, which loses its last seconds",
    }
    for name, text in others.items():
        commands.add_parser(name, help=text)
    commands.add_parser("guard")
    for name, text in (("kill-node", "kill a node and its jobs"), ("start-node", "start a killed node again")):
        commands.add_parser(name, help=text).add_argument("node", metavar="NODE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
