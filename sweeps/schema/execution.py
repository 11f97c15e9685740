"""The fields of a study's `execution` section: how and where its stages run. None of them changes what is learned."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from retain.sweeps.schema.section import GROUNDWORK, Positive, PositiveFloat, Section, Size, shown_value

Text = str | int | float
OWN_OPTIONS = (
    *("array", "dependency", "job-name", "output", "error", "open-mode", "signal", "requeue", "no-requeue"),
    *("ntasks", "ntasks-per-node", "wrap", "parsable", "test-only", "wait"),
)
"""Options of sbatch that Retain must set itself."""
SAME_NAME = ("partition", "account", "qos", "constraint", "exclude", "gres")
OWN_FIELDS = {
    "time": "execution.slurm.minutes",
    "nodes": "execution.slurm.nodes",
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task"), "execution.devices"),
    "cpus-per-task": "the field cpus beside extra",
    "mem": "the field memory_gb beside extra",
    **{name: f"the field {name} beside extra" for name in SAME_NAME},
}
"""Options of sbatch that must be what Retain plans a job with, and the fields that set them."""


def check_variable(name: str) -> str:
    """The name of an environment variable. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("not a name of a variable; write letters, digits and underscores, with no digit first")
    return name


def check_text(value: Any) -> Any:
    """A value of an environment variable: text, or a number of a Python caller. Raises ValueError."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise ValueError(f"expected text (got {shown_value(value)}); write '' for an empty value")
    return value


def check_option(value: Any) -> Any:
    """A value of an option of sbatch: text, a number, or whether the option is given. Raises ValueError."""
    return value if isinstance(value, bool) else check_text(value)


def check_extra(options: dict[str, Any]) -> dict[str, Any]:
    """Options that Retain does not set itself. Raises ValueError."""
    for name in options:
        plain = name.strip("-").replace("_", "-")
        if plain in (*OWN_OPTIONS, *OWN_FIELDS):
            cure = f"write {OWN_FIELDS[plain]} instead" if plain in OWN_FIELDS else "remove it from extra"
            raise ValueError(f"Retain sets the option {name} of every job; {cure}")
    return options


class SiteOptions(Section):
    """The job options that both a study and a site's profile may set. The study's value takes precedence."""

    partition: str | None = None
    """The SLURM partition, or several separated by commas: SLURM takes the one that can start first. The default is the
    cluster's default partition."""
    account: str | None = None
    """The account to charge, as in sbatch. The default is the user's default account."""
    qos: str | None = None
    """The quality of service, as in sbatch. The default is the account's."""
    constraint: str | None = None
    """The node features that a job needs, as in sbatch. The default is none."""
    exclude: str | None = None
    """The nodes to avoid, as in sbatch. The default is none."""
    cpus: Positive = 2
    """The CPUs of each process. The default is one for training and one for reading batches."""
    memory_gb: PositiveFloat | None = None
    """The memory of one node in GB. The default is the site's."""
    gres: str | None = None
    """The option --gres, for sites that do not support --gpus-per-node, such as gpu:a100:{gpus}. {gpus} stands for the number
    of GPUs on one node. If the value does not contain the word gpu, --gpus-per-node is requested as well."""
    warning_seconds: Positive = 120
    """The number of seconds before the end of its walltime at which a job gets the signal to save a checkpoint and requeue. The
    default leaves time to write a large checkpoint to a slow disk."""
    at_a_time: Positive = 64
    """The number of tasks of one array that run at the same time. The default leaves room for other users."""
    setup: list[str] = []
    """Shell lines to run before a job starts, such as `module load`. A site's lines run before a study's."""
    environment: dict[Annotated[str, AfterValidator(check_variable)], Annotated[Text, BeforeValidator(check_text)]] = {}
    """Environment variables of the job. Values are kept as they are written, as in 12.10, and not expanded by the shell."""
    extra: Annotated[dict[str, Annotated[Text | bool, BeforeValidator(check_option)]], AfterValidator(check_extra)] = {}
    """Further options of sbatch, without the dashes; those that have a field are refused. true stands for an option without a
    value, false leaves the option out. Other values are kept as they are written."""


class Slurm(SiteOptions):
    """The resources that a stage requests from SLURM."""

    nodes: Positive = 1
    """The number of nodes of one stage. They share its devices evenly."""
    minutes: Positive | None = None
    """The walltime of one attempt in minutes; a longer stage takes several attempts. By default it is estimated from the speed
    of earlier runs."""


class DataJobs(SiteOptions):
    """What the jobs that prepare corpora request from SLURM. What is not given is that of other jobs, without GPUs."""

    minutes: Positive | None = None
    """The walltime of one attempt in minutes. The default is 240, or what site and partition allow."""


class DataExecution(Section):
    """How corpora are prepared: large ones in parts, by several processes here, or by SLURM jobs."""

    part: Annotated[Size, Field(ge=1000)] = 256_000_000
    """The bytes of a source that one part reads, such as 64M. A source of no more bytes is prepared by a single process. Parts
    of another size are prepared again. The default takes a core about a minute."""
    slurm: DataJobs = DataJobs()
    """The resources that the jobs request from SLURM, before those under `data` in the site's profile."""


class StageExecution(Section):
    """How one stage runs."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """The kind of device to train on. auto, the default, takes GPUs if there are any."""
    devices: Positive = 1
    """The number of devices of one stage, over all nodes. Each device has a process of its own."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """The precision of the training steps. auto, the default, is bf16 on GPUs. On CPUs it is fp32, unless steps of the stage's
    own shape are measured to be 1.15 times as fast in bf16: docs/speed.md has the rule, and `retain plan` the choice."""
    micro_batch: Positive | None = None
    """The number of sequences that a device processes at once. By default it is as many of the device's share of the batch as
    fit on a GPU, and the whole share on CPUs and with fsdp."""
    compile: Literal["auto", True, False] = "auto"
    """Whether to compile the training steps with torch.compile. auto, the default, compiles on GPUs, and on CPUs where the
    steps of a process are measured to repay it: docs/speed.md has the rule, and `retain plan` the choice."""
    threads: Positive = 1
    """The number of threads of one CPU process. Results with different numbers are not bit-identical, so the default is 1."""
    checkpointing: bool = False
    """Whether layers keep only their inputs and compute everything else again in the backward pass (activation checkpointing).
    It changes no result, takes about a third more time, and lets larger models or micro-batches fit. The default is false."""
    deterministic: bool = True
    """Whether every kernel is deterministic, so that a resumed or repeated run ends in the same bits. false lets torch choose
    faster kernels on GPUs, and the attempts of a run say so. Order and amount of the data are exact either way."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How processes divide the model: each holds all weights (ddp, which auto selects) or a part of them (fsdp)."""
    heldout_every: Positive | None = None
    """The number of steps between the held-out losses of the curves. By default they are computed only at the end."""
    log_every: Positive | None = None
    """The number of steps between the points of the training curves, each of which is a line in the run's log unless the line
    before is less than a second old. By default 10, and fewer in stages of less than 100 steps."""
    log: list[Literal["tensorboard", "csv", "wandb", "trackio"]] = ["tensorboard"]
    """The loggers that show a run's losses while it trains, each the same points as the store has. wandb and trackio need the
    extras of their names, and send nothing anywhere unless their own variables say so: docs/study.md has the details."""
    save_minutes: PositiveFloat = 10.0
    """The number of minutes between checkpoints, which is the most training that a kill without warning can lose."""
    save_steps: Positive | None = None
    """The number of steps between checkpoints, in addition to those of save_minutes. By default only the minutes count."""
    keep_states: bool = False
    """Whether a done run keeps its last checkpoints. By default they are deleted to free the disk."""
    pack: Positive = 1
    """The number of sibling stages that one process trains in sequence. Above 1, the default, short stages share the time that
    it takes to import libraries and to compile steps."""
    slurm: Slurm = Slurm()
    """The resources that the stage requests from SLURM."""


class Execution(StageExecution):
    """How the stages of a study run. These fields apply to all stages, and none of them enters a stage key."""

    stages: dict[str, StageExecution] = {}
    """Fields above that differ for one stage of the chain. By default all stages run alike."""
    parallel: Positive | None = None
    """The number of stages that run at the same time on this machine. By default as many as its cores or GPUs allow."""
    data: DataExecution = DataExecution()
    """How corpora are prepared."""
    on_end: str | None = None
    """A shell line to run once when the study ends, and once for each branch that fails before that, such as
    `echo "$RETAIN_SUMMARY" | mail -s "$RETAIN_STUDY" me@example.org`. The default is none. docs/study.md lists the variables of
    its environment."""

    def of_stage(self, name: str, site: SiteOptions | None = None) -> StageExecution:
        """How one stage runs: the fields for this stage, over those of the study, over those of the site.

        What stages need besides the stage before them (GROUNDWORK) runs as the study says, on one device.
        """
        own = self.stages.get(name, StageExecution())
        general = self.model_dump(exclude_unset=True, include=set(StageExecution.model_fields))
        fields = merge_nested(general, own.model_dump(exclude_unset=True))
        options = site.model_dump(exclude_unset=True, include=set(SiteOptions.model_fields)) if site else {}
        fields["slurm"] = merge_nested(options, fields.get("slurm", {}))
        if name in GROUNDWORK:
            fields["devices"] = fields["slurm"]["nodes"] = 1
        return StageExecution.model_validate(fields)

    def stages_at_a_time(self, chain: Iterable[str], cores: int) -> int:
        """The number of stages of a chain that train at the same time on a machine with so many cores and no GPUs."""
        most = max(stage.threads * stage.devices for stage in map(self.of_stage, chain))
        return self.parallel or max(1, cores // most)

    def of_data(self, site: SiteOptions | None = None, jobs: DataJobs | None = None) -> StageExecution:
        """How parts of corpora are prepared: by one process without GPUs, with the options for data over all others.

        site, jobs: the options of the site, and those for data there.
        """
        fields = self.of_stage("", site).slurm.model_dump(exclude_unset=True, exclude={"nodes", "minutes"})
        if "gpu" in (fields.get("gres") or ""):
            del fields["gres"]
        for options in (jobs, self.data.slurm):
            fields = merge_nested(fields, options.model_dump(exclude_unset=True)) if options else fields
        return StageExecution(accelerator="cpu", slurm=Slurm.model_validate(fields))

    @model_validator(mode="after")
    def check_devices(self) -> "Execution":
        # Stages without fields of their own run as the study says.
        for name in (*self.stages, ""):
            stage = self.of_stage(name)
            kind = name or "all"
            if stage.pack > 1 and stage.devices > 1:
                raise ValueError(
                    f"pack: {kind} stages on {stage.devices} devices cannot be packed, as a pack trains in one process; "
                    "remove pack, or set devices: 1"
                )
            if stage.devices % stage.slurm.nodes:
                of = f" of {name}" if name else ""
                raise ValueError(
                    f"slurm.nodes: {stage.slurm.nodes} nodes cannot share {stage.devices} devices{of} evenly; "
                    "set execution.devices, counted over all nodes, to a multiple of the nodes"
                )
        return self


def check_stage_names(execution: Execution, stages: Sequence[str]) -> None:
    """Raise ValueError for fields of a stage that is not in a study's chain."""
    for name in execution.stages:
        if name not in stages:
            raise ValueError(f"execution.stages.{name}: unknown stage; the stages are {', '.join(stages)}")


def merge_nested(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings. Values of `above` replace those of `below`; lists of shell lines (setup) are joined."""
    merged = dict(below)
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = merge_nested(merged[name], value)
        elif name == "setup":
            merged[name] = [*merged.get(name, []), *value]
        else:
            merged[name] = value
    return merged
