"""How and where stages run: the study's `execution`, field by field; nothing of it changes what is learned."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from retain.sweeps.schema.section import Positive, Section


class SiteOptions(Section):
    """What a study and a site's profile may both say about jobs; the study's word counts."""

    partition: str | None = None
    """Several, separated by commas: SLURM takes whichever starts first."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """Nodes to keep away from."""
    cpus: Positive = 2
    """Per process."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Of one node."""
    gres: str | None = None
    """Where the site does not understand --gpus-per-node: its own words, for instance gpu:a100:{gpus}, where {gpus} is
    how many GPUs a stage takes of one node. Without the word gpu in it, --gpus-per-node is asked for beside it."""
    warning_seconds: Positive = 120
    """How long before the walltime's end a job is told to save and go back to the queue."""
    at_a_time: Positive = 64
    """Tasks of one array that run at a time."""
    setup: list[str] = []
    """Shell lines before the job's own, such as modules to load; a site's come before a study's."""
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str | int | float] = {}
    """Environment variables of the job, taken literally."""
    extra: dict[str, str | int | bool] = {}
    """More options of sbatch, without the dashes."""


class Slurm(SiteOptions):
    """What a stage asks of SLURM; sizes are those of one node."""

    nodes: Positive = 1
    """They share the stage's devices evenly."""
    minutes: Positive | None = None
    """Walltime of one attempt; a longer stage takes several. Without it, from the speed of earlier runs."""


def parse_choice(value: Any) -> Any:
    """auto, true or false. Raises ValueError."""
    if value == "auto" or isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is neither auto nor true nor false")


class StageExecution(Section):
    """How one stage runs."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Positive = 1
    """Devices, so processes, of one stage."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    micro_batch: Positive | None = None
    """Sequences that one device takes at a time; without it, as many of its share of the batch as a GPU has room for (all
    of it on CPUs and with fsdp)."""
    compile: Annotated[Literal["auto"] | bool, PlainValidator(parse_choice)] = "auto"
    """Whether torch.compile makes the training steps' code: auto compiles on GPUs. On a CPU it pays for stages of minutes
    (benchmarks/results/training.md)."""
    threads: Positive = 1
    """Threads of one CPU process; another number may change the last bits of a sum."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How the processes of one stage share it: each with all weights (ddp, the default) or with a part of them (fsdp)."""
    heldout_every: Positive | None = None
    """Steps between the held-out losses of the curves; without it they are taken at the end only."""
    save_minutes: Annotated[float, Field(gt=0)] = 10.0
    """Minutes between resumable states: what a kill without warning loses at most."""
    save_steps: Positive | None = None
    """Steps between resumable states, beside the minutes."""
    keep_states: bool = False
    """Keep the last resumable states of a done run."""
    pack: Positive = 1
    """Short siblings that one process trains, one after the other: libraries are imported, and steps compiled, once."""
    slurm: Slurm = Slurm()


class Execution(StageExecution):
    """What cannot change what a run is: it never enters a stage key. The fields hold for all stages."""

    stages: dict[Literal["pretrain", "posttrain", "finetune"], StageExecution] = {}
    """What is different for one kind of stage: any of the fields above."""
    parallel: Positive | None = None
    """Stages side by side on this machine; without it, as many as its cores or GPUs allow."""

    def of_stage(self, kind: str, site: SiteOptions | None = None) -> StageExecution:
        """How stages of one kind run: the site's options, over them the study's, over them those of this kind."""
        own = next((stage for name, stage in self.stages.items() if name == kind), StageExecution())
        general = self.model_dump(exclude_unset=True, include=set(StageExecution.model_fields))
        fields = overlaid(general, own.model_dump(exclude_unset=True))
        options = site.model_dump(exclude_unset=True, include=set(SiteOptions.model_fields)) if site else {}
        fields["slurm"] = overlaid(options, fields.get("slurm", {}))
        return StageExecution.model_validate(fields)

    @model_validator(mode="after")
    def packs_are_of_one_process(self) -> "Execution":
        for kind in ("pretrain", "posttrain", "finetune"):
            stage = self.of_stage(kind)
            if stage.pack > 1 and stage.devices > 1:
                raise ValueError(
                    f"pack: {kind} stages on {stage.devices} devices cannot share a process one after the other; "
                    "leave pack out, or set devices: 1"
                )
        return self

    @model_validator(mode="after")
    def nodes_share_the_devices(self) -> "Execution":
        for kind in ("pretrain", "posttrain", "finetune"):
            stage = self.of_stage(kind)
            if stage.devices % stage.slurm.nodes:
                of = f" of {kind}" if kind in self.stages else ""
                raise ValueError(
                    f"slurm.nodes: {stage.slurm.nodes} nodes cannot share {stage.devices} devices{of} evenly; "
                    "choose execution.devices, all nodes counted, so that they divide it"
                )
        return self


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one: the upper's values count, mappings are merged, shell lines (setup) follow each other."""
    made = dict(below)
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(made.get(name), Mapping):
            made[name] = overlaid(made[name], value)
        elif name == "setup":
            made[name] = [*made.get(name, []), *value]
        else:
            made[name] = value
    return made
