"""The study file, field by field; unknown fields are refused."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from sweeps.corpora import template_pieces, with_published
from sweeps.models import PRESETS, Architecture
from sweeps.units import parse_size

Size = Annotated[int, BeforeValidator(parse_size)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


_WITH_BOOLEANS = (bool, bool | None, Literal["auto"] | bool)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as booleans, which would pass for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation not in _WITH_BOOLEANS:
            raise ValueError(f"{'yes' if value else 'no'} is not a value for this field; write a number or a text")
        return value


class Corpus(Section):
    """Where documents come from: `package:`, `files:`, `hf:` or `published:` (with `files:`, local ones in that format)."""

    published: str | None = None
    """One of sweeps.corpora: it fills in all fields that are not given."""
    package: str | None = None
    files: str | list[str] | None = None
    hf: str | None = None
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    text: str = "text"
    """The field that holds a document, in jsonl, parquet and hf sources."""
    template: str | None = None
    """Instead of `text`: how the fields of a record are joined, for instance "{inputs}\\n{targets}"."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """Where a plain text file is cut into documents; without it a file is one document."""
    in_turn: Positive = 1
    """Parts that an hf source is read in, a document of each in turn, so that a budget of tokens takes from all of it."""
    tokens: Size | None = None
    """Stop reading once the training split holds this many tokens; without it the whole source is read."""
    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """The share of documents, chosen by their hash, that is evaluated on and never trained on."""

    @model_validator(mode="before")
    @classmethod
    def from_published(cls, value: Any) -> Any:
        return with_published(value) if isinstance(value, dict) else value

    @field_validator("template")
    @classmethod
    def joins_fields(cls, value: str | None) -> str | None:
        if value is not None:
            template_pieces(value)
        return value

    @model_validator(mode="after")
    def one_source(self) -> "Corpus":
        given = [name for name in ("package", "files", "hf") if getattr(self, name) is not None]
        if given not in (["package"], ["files"], ["hf"], ["files", "hf"]):
            raise ValueError("name exactly one source: package, files, or hf (hf may add files)")
        if self.files == []:
            raise ValueError("files: the list is empty; name a path, a folder or a pattern")
        hub_only = [name for name in ("config", "revision", "split", "in_turn") if name in self.model_fields_set]
        if not self.hf and hub_only:
            raise ValueError(f"{hub_only[0]}: this is for hf sources only; take it out")
        if self.template is not None and "text" in self.model_fields_set:
            raise ValueError("template: it names the fields itself; take text: out")
        return self


class Tokenizer(Section):
    """Either trained on the study's corpora or read from Hugging Face (or a local folder)."""

    train: Annotated[int, Field(ge=300)] | None = None
    """Entries of a byte-level BPE to train."""
    sample: Size = 2_000_000
    """Characters of each corpus to train it on."""
    hf: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def one_source(self) -> "Tokenizer":
        if (self.train is None) == (self.hf is None):
            raise ValueError("give either train: ENTRIES or hf: ID")
        return self


class Model(Section):
    """A preset, or a preset with some of its numbers changed, or all numbers."""

    preset: str | None = None
    layers: Positive | None = None
    hidden: Positive | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = None
    mlp: Positive | None = None
    vocabulary: Annotated[int, Field(ge=0)] | None = None
    tied: bool | None = None
    context: Positive | None = None
    rope_base: Annotated[float, Field(gt=0)] | None = None
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    initializer_range: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def from_name(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def complete(self) -> "Model":
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"{self.preset!r} is no preset; the presets are {', '.join(PRESETS)}")
        needed = ("layers", "hidden", "heads", "kv_heads", "mlp", "vocabulary", "tied", "context")
        missing = [name for name in needed if self.preset is None and getattr(self, name) is None]
        if missing:
            raise ValueError(f"without a preset, {', '.join(missing)} must be given")
        model = self.architecture()
        if model.hidden % model.heads or model.heads % model.kv_heads:
            raise ValueError("heads must divide hidden, and kv_heads must divide heads")
        if model.hidden // model.heads % 2:
            raise ValueError("hidden / heads must be even, for rotary positions")
        return self

    def architecture(self) -> Architecture:
        given = self.model_dump(exclude_none=True, exclude={"preset"})
        base = {} if self.preset is None else {name: getattr(PRESETS[self.preset], name) for name in _NUMBERS}
        return Architecture(**(base | given))


_NUMBERS = tuple(Architecture.__dataclass_fields__)


class Optimisation(Section):
    """What all stages share (paper, Table 5, where it prints a value)."""

    corpus: str
    tokens: Size
    lr: Annotated[float, Field(gt=0)]
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """The cosine's floor; one above the peak is lowered to it, so that the rate stays constant after the warm-up."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    batch: Positive
    """Sequences in one optimiser step, over all devices."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """At the embedding, the attention, the residual branches and the MLP."""
    seed: Seed | None = None
    """Initialisation, order and dropout; the study's seed where it is not given."""


def parse_schedule(value: Any) -> Any:
    """A word, or a window [begin, end] as a tuple of fractions. Raises ValueError."""
    if isinstance(value, str) and value in ("uniform", "early", "late"):
        return value
    numbers = list(value) if isinstance(value, list | tuple) else []
    if [type(number) in (int, float) for number in numbers] == [True, True] and 0 <= numbers[0] < numbers[1] <= 1:
        return float(numbers[0]), float(numbers[1])
    raise ValueError(
        f"{value!r} is no schedule; write uniform, early, late, or a window of the stage such as [0.25, 0.5]"
    )


Schedule = Annotated[Literal["uniform", "early", "late"] | tuple[float, float], BeforeValidator(parse_schedule)]


class Pretrain(Optimisation):
    exposure: Annotated[float, Field(ge=0)] = 0.0
    """λ: the share of the post-training corpus that is mixed in."""
    exposure_schedule: Schedule = "uniform"
    """When it is mixed in: over all of the stage (uniform), its first or second half (early, late), or a window of it
    [begin, end] in fractions. The amount is the same; outside the window there is pretraining data only."""
    repeat: bool = False
    """Allows λ > 1 by going through the post-training corpus again."""

    @model_validator(mode="after")
    def at_most_one_pass(self) -> "Pretrain":
        if self.exposure > 1 and not self.repeat:
            raise ValueError(
                f"exposure: {self.exposure:g} is more than one pass over the post-training corpus; "
                "keep it within [0, 1] or set pretrain.repeat: true"
            )
        return self


class EarlyStopping(Section):
    """Stop once the held-out loss has not improved in `patience` evaluations, and keep the best weights."""

    every: Positive
    """Steps between evaluations."""
    patience: Positive


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


class Lora(Section):
    """Low-rank adapters instead of all weights; the defaults are the paper's Table 9."""

    rank: Positive = 64
    alpha: Annotated[float, Field(gt=0)] = 128.0
    """The adapters' output is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """At the adapters' input, beside the stage's own dropout."""
    targets: Annotated[tuple[Projection, ...], Field(min_length=1)] = (
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
    )


class Adaptable(Optimisation):
    """A stage that starts from a trained model, and may train adapters in place of all of it."""

    method: Literal["full", "lora"] = "full"
    lora: Lora | None = None
    """With method: lora; without it the defaults."""

    @model_validator(mode="after")
    def adapters_need_their_method(self) -> "Adaptable":
        if self.lora is not None and self.method != "lora":
            raise ValueError(
                "lora: these settings are for method: lora; set that too, or take them out; to compare with full "
                "training, set both fields in one of two cases"
            )
        return self


class Posttrain(Adaptable):
    max_tokens: Size | None = None
    """Tokens to train at most, over repeated passes; one pass where it is not given."""
    replay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of this stage's tokens that comes from the pretraining data."""
    early_stopping: EarlyStopping | None = None


class Finetune(Adaptable):
    pass


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
    compile: Literal["auto"] | bool = "auto"
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


class Study(Section):
    loss_unit: ClassVar[str] = "losses in nats per token on held-out text"

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    model: Model
    tokenizer: Tokenizer
    sequence_length: Annotated[int, Field(ge=2)]
    corpora: Annotated[dict[str, Corpus], Field(min_length=1)]
    pretrain: Pretrain
    posttrain: Posttrain
    finetune: Finetune
    allocation: Literal["additive", "matched"] = "additive"
    """matched: every sequence of D_post is seen once, λ of them in pretraining and the others in post-training."""
    seed: Seed = 0
    subset_seed: Seed = 0
    """Of the shuffle whose first sequences are the subsets of each corpus."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    """Axes of named cases that set several fields each; a list in a case is a grid of its own, within that case."""
    grid: dict[str, list[Any]] = {}
    search: dict[str, Any] = {}
    """What `retain search` tries instead of the grid; its fields are in sweeps/search.py."""
    execution: Execution = Execution()

    @model_validator(mode="after")
    def known_corpora(self) -> "Study":
        for stage in ("pretrain", "posttrain", "finetune"):
            name = getattr(self, stage).corpus
            if name not in self.corpora:
                raise ValueError(f"{stage}.corpus: {name!r} is not among corpora ({', '.join(self.corpora)})")
        return self
