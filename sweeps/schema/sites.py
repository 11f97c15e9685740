"""The user's profiles of SLURM sites: what every job there needs, written once, beside all studies.

# ~/.config/retain/sites.yaml, or the file that $RETAIN_SITES names
north:
  match: north*                  # a host's name, or SLURM's ClusterName
  partition: gpu,gpu-preempt     # whichever starts first
  account: me
  minutes: 1200                  # the longest walltime
"""

import fnmatch
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.execution import SiteOptions
from retain.sweeps.schema.read import load_yaml
from retain.sweeps.schema.section import Positive
from retain.sweeps.schema.validation_messages import first_sentence


class Site(SiteOptions):
    """One profile; a study's own `execution.slurm` counts more."""

    match: str | list[str] | None = None
    """Patterns, as a shell's, of host names or of SLURM's ClusterName, by which the profile is chosen on its own."""
    minutes: Positive | None = None
    """The longest walltime that the site allows; a default walltime is cut to it."""

    def matches(self, names: Iterable[str]) -> bool:
        """Whether one of a machine's names fits."""
        patterns = [self.match] if isinstance(self.match, str) else self.match or []
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def sites_file() -> Path:
    """Where the profiles are; the file need not exist."""
    if named := os.environ.get("RETAIN_SITES"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "retain" / "sites.yaml"


def read_sites(path: Path | None = None) -> dict[str, Site]:
    """The profiles by name; none where there is no file. Raises StudyError."""
    path = path or sites_file()
    if not path.exists():
        if "RETAIN_SITES" in os.environ and path == sites_file():
            raise StudyError(f"{path}: no such file; correct RETAIN_SITES, or unset it")
        return {}
    raw = load_yaml(path)
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(fields, dict) for fields in raw.values()):
        raise StudyError(f"{path}: it maps the name of each site to its fields; write `north: {{partition: gpu}}`")
    sites = {}
    for name, fields in raw.items():
        try:
            sites[str(name)] = Site.model_validate(fields)
        except ValidationError as error:
            raise StudyError(f"{path}: {name}.{first_sentence(error, Site)}") from None
    return sites


def choose_site(sites: Mapping[str, Site], wanted: str | None, names: Iterable[str]) -> tuple[str, Site] | None:
    """The profile of this name, or the one that fits one of the machine's names; None where none fits.

    Raises StudyError for an unknown name, and where several fit.
    """
    if wanted is not None:
        if wanted not in sites:
            known = f"the sites there are {', '.join(sites)}" if sites else "there is none yet"
            raise StudyError(f"--site {wanted}: not in {sites_file()}; {known}")
        return wanted, sites[wanted]
    names = list(names)
    fitting = [name for name, site in sites.items() if site.matches(names)]
    if len(fitting) > 1:
        raise StudyError(f"{sites_file()}: {' and '.join(fitting)} both match {' or '.join(names)}; choose with --site")
    return (fitting[0], sites[fitting[0]]) if fitting else None
