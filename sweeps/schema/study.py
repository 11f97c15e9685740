"""The study file, field by field: what is learned from what; how it runs is in sweeps/execution.py."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.models import PRESETS, Architecture
from retain.sweeps.schema.published_corpora import template_pieces, with_published
from retain.sweeps.schema.section import Positive, Section, Seed, Size


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
