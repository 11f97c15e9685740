"""The user's profiles of SLURM sites: the options that every job at a site needs, whatever the study.

# ~/.config/retain/sites.yaml, or the file that $RETAIN_SITES names
north:
  match: north*                  # host name or SLURM's ClusterName
  partition: gpu,gpu-preempt     # SLURM takes the one that can start first
  account: me
  minutes: 1200                  # longest walltime
  data: {partition: cpu}         # for jobs that prepare corpora
"""

import fnmatch
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.files import user_path
from retain.sweeps.base.yaml_text import read_yaml
from retain.sweeps.schema.execution import DataJobs, SiteOptions
from retain.sweeps.schema.section import Positive, read_list, shown_value
from retain.sweeps.schema.validation_messages import validate


def check_patterns(value: Any) -> Any:
    """One pattern or a list of patterns. Raises ValueError."""
    if not all(isinstance(pattern, str) for pattern in read_list(value)):
        raise ValueError(f"expected a pattern or a list of patterns (got {shown_value(value)}); quote a number")
    return value


class Site(SiteOptions):
    """The profile of one site. A study's own `execution.slurm` takes precedence."""

    match: Annotated[str | list[str], BeforeValidator(check_patterns)] | None = None
    """Shell patterns of host names or of SLURM's ClusterName. A machine that matches takes this profile. By default the profile
    is taken only with --site."""
    minutes: Positive | None = None
    """The longest walltime that the site allows, in minutes. Estimated walltimes are cut to it. The default is no limit."""

    data: DataJobs = DataJobs()
    """The options of the jobs that prepare corpora, such as `{partition: cpu, minutes: 120}`. Other options are those
    of all jobs."""

    def matches(self, names: Iterable[str]) -> bool:
        """Whether one of a machine's names matches a pattern."""
        patterns = [self.match] if isinstance(self.match, str) else self.match or []
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def sites_file() -> Path:
    """The path of the file of profiles, which need not exist: a user may even have no home."""
    if named := os.environ.get("RETAIN_SITES"):
        return user_path(named, "RETAIN_SITES")
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "retain" / "sites.yaml"


def read_sites() -> dict[str, Site]:
    """The profiles by name; empty if there is no file. Raises StudyError if the file is invalid."""
    path = sites_file()
    if not path.exists():
        if os.environ.get("RETAIN_SITES"):
            raise StudyError(f"{path}: file not found; correct RETAIN_SITES, or unset it")
        return {}
    raw = read_yaml(path, ["*.environment", "*.extra"])
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(fields, dict) for fields in raw.values()):
        raise StudyError(f"{path}: expected a mapping from site names to fields; write `north: {{partition: gpu}}`")
    return {str(name): validate(Site, fields, f"{path}: {name}.") for name, fields in raw.items()}


def choose_site(sites: Mapping[str, Site], wanted: str | None, names: Iterable[str]) -> tuple[str, Site] | None:
    """The profile with the wanted name, or the one that matches the machine's names; None if none matches.

    Raises StudyError if the wanted name is unknown, or if several profiles match.
    """
    if wanted is not None:
        if wanted not in sites:
            known = f"the known sites are {', '.join(sites)}" if sites else "the file defines no site"
            raise StudyError(f"--site {wanted}: unknown site in {sites_file()}; {known}")
        return wanted, sites[wanted]
    names = list(names)
    matching = [name for name, site in sites.items() if site.matches(names)]
    if len(matching) > 1:
        raise StudyError(f"{sites_file()}: {' and '.join(matching)} match {' or '.join(names)}; choose one with --site")
    return (matching[0], sites[matching[0]]) if matching else None
