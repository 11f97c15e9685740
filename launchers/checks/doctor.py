"""`retain doctor`: what this machine offers, what that means for Retain, and the cure if something is missing."""

import contextlib
import errno
import grp
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retain.launchers.checks.doctor_cluster import Cluster, cluster_findings, read_cluster
from retain.launchers.checks.doctor_nodes import ProbeReport, probe_findings, probe_partitions
from retain.launchers.checks.doctor_speed import default_findings
from retain.launchers.checks.finding import MISSING, NOTE, OK, Finding
from retain.launchers.jobs.resources import find_site
from retain.launchers.slurm.client import has_slurm
from retain.sweeps.base.errors import MissingResourceError, StudyError, os_reason
from retain.sweeps.base.files import sync_path
from retain.sweeps.base.processes.names import usable_cores
from retain.sweeps.base.units import counted, format_bytes
from retain.sweeps.schema.sites import Site, read_sites, sites_file

LOWEST_PYTHON = (3, 11)
NEEDED = ("torch", "lightning", "transformers", "tokenizers", "safetensors", "datasets", "submitit", "tensorboard")
LITTLE_ROOM = 5 * 10**9
"""Bytes free on the store's disk, below which the doctor says so."""
SHARED = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "panfs", "wekafs", "orangefs", "pvfs2", "fuse.")
"""The beginnings of the types of file systems that several machines may share."""


def examine(store: Path, site: str | None, probe: bool) -> dict[str, Any]:
    """The document of `retain doctor --json`; `probe` submits a job to each partition. Raises StudyError for an unknown site.

    Leaves nothing in the store or on SLURM.
    """
    profile, site_finding = _site(site)
    ray = Finding("Ray", OK, _version("ray") or "not installed; only searches need it: pip install 'retain-lm[search]'")
    gpus = gpu_finding()
    findings = [python_finding(), *package_findings(), gpus, *default_findings(store, gpus.level == OK), ray]
    findings += [*store_findings(store), site_finding]
    cluster: Cluster | None = None
    probes: list[ProbeReport] | None = None
    if has_slurm():
        try:
            cluster = read_cluster()
            findings += cluster_findings(cluster)
            if probe:
                probes = probe_partitions(cluster.partitions, existing_folder(store), profile)
                findings += probe_findings(probes)
        except MissingResourceError as error:
            findings.append(Finding("SLURM", MISSING, str(error).removeprefix("SLURM: ")))
    else:
        what = "sbatch and squeue are not on PATH: studies can train here, but not be submitted"
        findings.append(Finding("SLURM", NOTE, what))
        if probe:
            findings.append(Finding("probe", MISSING, "there is no SLURM to probe; log in where sbatch is on PATH"))
    return {
        "ok": not any(finding.level == MISSING for finding in findings),
        "host": socket.gethostname(),
        "store": str(store.absolute()),
        "findings": [asdict(finding) for finding in findings],
        "slurm": cluster and cluster.as_json(),
        "probes": None if probes is None else [asdict(report) for report in probes],
    }


def python_finding() -> Finding:
    text = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < LOWEST_PYTHON:
        return Finding("Python", MISSING, f"{text}; Retain needs {'.'.join(map(str, LOWEST_PYTHON))} or newer")
    return Finding("Python", OK, text)


def package_findings(needed: Sequence[str] = NEEDED) -> list[Finding]:
    """One finding for the installed packages, one for each missing package."""
    versions = {name: _version(name) for name in needed}
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    cure = f"not installed in {sys.prefix}; reinstall Retain: pip install retain-lm"
    missing = [Finding(name, MISSING, cure) for name, version in versions.items() if not version]
    return [*([Finding("packages", OK, installed)] if installed else []), *missing]


def gpu_finding() -> Finding:
    """The GPUs that torch finds; importing torch takes seconds."""
    try:
        import torch

        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        return Finding("GPUs", MISSING, f"torch cannot be used ({type(error).__name__}: {reason}); reinstall it")
    if not names:
        cores = counted(usable_cores(), "CPU core")
        return Finding("GPUs", NOTE, f"none here: studies train on {cores}; jobs use the GPUs of their nodes")
    return Finding("GPUs", OK, ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)))


def _version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def store_findings(store: Path) -> list[Finding]:
    """The disk of the store, and whether its file system supports leases and atomic writes."""
    try:
        place = existing_folder(store)
    except PermissionError as error:
        return [
            Finding("store", MISSING, f"{error.filename}: no permission to read it; ask its owner, or choose another")
        ]
    if not place.is_dir():
        return [Finding("store", MISSING, f"{store}: {place} is a file; choose another with --store or RETAIN_STORE")]
    free = shutil.disk_usage(place).free
    room = f"{format_bytes(free)} free for {store.absolute()}"
    disk = Finding("disk", OK, room)
    if free <= LITTLE_ROOM:
        disk = Finding("disk", NOTE, f"{room}, which is little; free some space, or choose another disk with --store")
    kind = file_system(place)
    if lack := file_system_lacks(place):
        return [disk, Finding("store", MISSING, f"{place} ({kind}): {lack}; choose another with --store")]
    what = f"{place} ({kind}) supports the links, renames and file times that leases need"
    if has_slurm() and not kind.startswith(SHARED):
        what += "; jobs need it at the same path on every node, which --probe checks"
        return [disk, Finding("store", NOTE, what), *sharing_findings(store)]
    return [disk, Finding("store", OK, what), *sharing_findings(store)]


def sharing_findings(store: Path) -> list[Finding]:
    """What a store needs so that several people can use it, and what they cannot read or write; empty if it does not exist."""
    if not store.is_dir():
        return []
    mode, group = store.stat().st_mode, _group(store.stat().st_gid)
    cure = f"chmod -R g+rwX {store}; find {store} -type d -exec chmod g+s {{}} +"
    if not mode & stat.S_IWGRP:
        what = "only its owner writes there; to share it with a group, let all set umask 002, and its owner run"
        return [Finding("sharing", OK, f"{what} chgrp -R GROUP {store}; {cure}"), *_closed_findings(store, cure)]
    mask = os.umask(0)
    os.umask(mask)
    if not mode & stat.S_ISGID:
        lack = f"new folders do not get its group {group}; its owner runs {cure}"
    elif mask & 0o070 and not _has_default_acl(store):
        lack = f"your umask {mask:03o} hides new files from its group {group} or protects them; set umask 002"
    else:
        shared = Finding("sharing", OK, f"the group {group} shares the store")
        return [shared, *_closed_findings(store, cure)]
    return [Finding("sharing", NOTE, lack), *_closed_findings(store, cure)]


def _closed_findings(store: Path, cure: str) -> list[Finding]:
    """What you cannot read or write in the folders of the store and of its runs; not the compile cache, which is private."""
    folders = [place for place in store.iterdir() if place.is_dir() and place.name != "cache"]
    closed = [place for place in folders if not os.access(place, os.R_OK | os.W_OK | os.X_OK)]
    weights = (file for place in folders if place not in closed for file in place.glob("model/*.safetensors"))
    closed += [file for file in weights if not os.access(file, os.R_OK)]
    if not closed:
        return []
    owners = ", ".join(sorted({_owner(place) for place in closed}))
    what = f"you cannot read or write {counted(len(closed), 'place')} there, such as {closed[0]}"
    return [Finding("sharing", NOTE, f"{what}; ask {owners} to run {cure}")]


def _has_default_acl(folder: Path) -> bool:
    """Whether new files of a folder get their mode from an access control list, and not from the umask."""
    try:
        return "system.posix_acl_default" in os.listxattr(folder)
    except (AttributeError, OSError):
        return False


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _owner(place: Path) -> str:
    try:
        return place.owner()
    except KeyError:
        return str(place.stat().st_uid)


def existing_folder(store: Path) -> Path:
    """The store, or the nearest folder above it that exists."""
    return next(place for place in (store.absolute(), *store.absolute().parents) if place.exists())


def file_system_lacks(place: Path) -> str | None:
    """What the store needs and the file system of a folder cannot do; None if it can do everything."""
    trial = place / f".doctor.{os.getpid()}.{os.urandom(6).hex()}"
    try:
        trial.mkdir()
        return _failed_operation(trial)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not trial.exists():
            return "you have no permission to write there"
        return f"{os_reason(error)} ({error.__class__.__name__}), where links, renames and fsync must work"
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _failed_operation(trial: Path) -> str | None:
    """Try every operation that the store relies on in an empty folder. Raises OSError for one that is not supported."""
    one, two = trial / "one", trial / "two"
    one.write_text("1")
    two.write_text("2")
    os.link(one, trial / "three")
    try:
        os.link(two, trial / "three")
        return "link replaces an existing file, so two processes could train one run"
    except FileExistsError:
        pass
    two.replace(one)
    if one.read_text() != "2" or two.exists():
        return "rename does not replace a file atomically"
    os.utime(one, ns=(10**18, 10**18))
    if one.stat().st_mtime_ns != 10**18:
        return "it does not keep the file times that are set, which heartbeats need"
    (trial / "folder").mkdir()
    (trial / "folder").rename(trial / "renamed")
    sync_path(trial)
    return None


def file_system(place: Path) -> str:
    """The type of the file system of a folder, as the kernel names it; `unknown` if the kernel does not say."""
    best, kind = "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mount, type_, *_ = line.split(" ")
            mount = mount.replace("\\040", " ")
            if place.resolve().is_relative_to(mount) and len(mount) >= len(best):
                best, kind = mount, type_
    return kind


def _site(wanted: str | None) -> tuple[Site | None, Finding]:
    """The profile of sites.yaml that applies here, and what to say about it."""
    try:
        chosen = find_site(wanted)
    except StudyError as error:
        if wanted is not None:
            raise
        return None, Finding("site", MISSING, str(error))
    if chosen is not None:
        name, profile = chosen
        fields = json.dumps(profile.model_dump(exclude_unset=True, exclude={"match"}))
        return profile, Finding("site", OK, f"{name} in {sites_file()}: {fields}")
    known = read_sites()
    what = f"none of {', '.join(known)} matches this machine" if known else "no profiles yet"
    return None, Finding("site", OK, f"{what} ({sites_file()}): only the study's execution.slurm applies")
