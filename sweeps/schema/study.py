"""The fields of a study file: what is trained on what. How and where it runs is in sweeps/schema/execution.py."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.models import PRESETS, Architecture
from retain.sweeps.schema.published_corpora import template_pieces, with_published
from retain.sweeps.schema.section import (
    STAGE_KINDS,
    Grid,
    Name,
    NotNegative,
    Number,
    PathText,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    Share,
    Size,
    Whole,
    check_path,
    read_list,
    shown_value,
)


def check_paths(value: Any) -> Any:
    """One path or a list of paths. Raises ValueError."""
    if value == []:
        raise ValueError("the list is empty; name a path, a folder or a pattern")
    if value is not None and not all(isinstance(path, str) for path in read_list(value)):
        raise ValueError(
            f"expected a path or a list of paths (got {shown_value(value)}); quote a path that is a number"
        )
    for path in read_list(value) if value is not None else ():
        check_path(path)
    return value


Paths = Annotated[str | list[str], BeforeValidator(check_paths)]


class Corpus(Section):
    """The source of a corpus's documents: `package`, `files`, `hf` or `published`.

    With `hf` or `published`, `files` names local copies of the files in the same format.
    """

    published: str | None = None
    """A corpus of the paper, by its name in sweeps/schema/published_corpora.py. It sets every field that is not given here."""
    package: str | None = None
    """A corpus that installed Python packages ship: docstrings, instructions, music21 or chemicals."""
    files: Paths | None = None
    """Paths, folders or glob patterns of text, jsonl, json or parquet files, plain or compressed with gzip, zstd or bzip2.
    Relative paths start at the folder of the study file. Hidden files are left out unless a pattern names them."""
    hf: PathText | None = None
    """The id of a Hugging Face data set, a local data set folder, or the format in which `datasets` reads `files`."""
    config: str | None = None
    """The configuration of the Hugging Face data set. The default is the data set's own."""
    revision: str | None = None
    """The commit, tag or branch of the Hugging Face data set. The default is its main branch; a commit pins the data."""
    split: str = "train"
    """The split of the Hugging Face data set. The default is the name that most data sets use."""
    text: str = "text"
    """The field of a record that holds the document, in jsonl, json, parquet and Hugging Face sources; `meta.body` is a field
    of an object. The default is the name that most data sets use."""
    template: str | None = None
    """How to join several fields of a record into a document, such as "{inputs}\\n{targets}". Replaces `text`."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """The text that separates documents in a plain text file. By default a file is one document."""
    in_turn: Positive = 1
    """The number of parts of a Hugging Face source to read in turn, one document from each, so that a `tokens` limit samples
    the whole source. The default reads it from its beginning."""
    tokens: Size | None = None
    """Stop reading once the training split holds this many tokens. By default the whole source is read."""
    heldout: Annotated[Number, Field(gt=0, lt=1)] = 0.02
    """The share of documents in the held-out split, chosen by their hash: never trained on, only evaluated on. The default is
    meant for small corpora; large ones need less."""

    @property
    def source(self) -> str:
        """The package, the files or the Hugging Face data set, for readers."""
        if self.package is not None:
            return f"package {self.package}"
        if self.files is not None:
            return f"files {self.files if isinstance(self.files, str) else ', '.join(self.files)}"
        parts = (self.hf, self.config, self.split, self.revision)
        return "Hugging Face " + ", ".join(part for part in parts if part)

    @model_validator(mode="before")
    @classmethod
    def add_published(cls, value: Any) -> Any:
        return with_published(value) if isinstance(value, dict) else value

    @field_validator("template")
    @classmethod
    def check_template(cls, value: str | None) -> str | None:
        if value is not None:
            template_pieces(value)
        return value

    @model_validator(mode="after")
    def check_source(self) -> "Corpus":
        given = [name for name in ("package", "files", "hf") if getattr(self, name) is not None]
        if given not in (["package"], ["files"], ["hf"], ["files", "hf"]):
            raise ValueError("name exactly one source: package, files, or hf (hf may add files)")
        hub_only = [name for name in ("config", "revision", "split", "in_turn") if name in self.model_fields_set]
        if not self.hf and hub_only:
            raise ValueError(f"{hub_only[0]}: valid only for hf sources; remove {hub_only[0]}")
        if self.template is not None and "text" in self.model_fields_set:
            raise ValueError("template: cannot be combined with text; remove text")
        return self


class Tokenizer(Section):
    """The tokeniser: trained on the study's corpora (`train`), or read from Hugging Face or a local folder (`hf`)."""

    train: Annotated[Whole, Field(ge=300)] | None = None
    """The number of entries of a byte-level BPE to train."""
    sample: Size = 2_000_000
    """The number of characters of each corpus to train the tokeniser on. The default takes seconds."""
    hf: PathText | None = None
    """The id of a model on Hugging Face, or a local folder with tokenizer.json and tokenizer_config.json."""
    revision: str | None = None
    """The commit, tag or branch of the Hugging Face model. The default is its main branch; a commit pins the tokeniser."""

    @model_validator(mode="after")
    def check_source(self) -> "Tokenizer":
        if (self.train is None) == (self.hf is None):
            raise ValueError("give either train: ENTRIES or hf: ID")
        return self


class Model(Section):
    """A Llama: a preset, a preset with some numbers changed, or all numbers. The name of a preset may stand for the section."""

    preset: str | None = None
    """The preset that provides the numbers which are not given: laptop, smollm2-135m or smollm2-1b."""
    layers: Positive | None = None
    """The number of transformer layers."""
    hidden: Positive | None = None
    """The width of the residual stream. heads must divide it."""
    heads: Positive | None = None
    """The number of attention heads."""
    kv_heads: Positive | None = None
    """The number of key and value heads (grouped-query attention). It must divide heads."""
    mlp: Positive | None = None
    """The width of the MLP between its projections."""
    vocabulary: Annotated[Whole, Field(ge=0)] | None = None
    """The number of rows of the embedding; 0 takes the number of the tokeniser's entries."""
    tied: bool | None = None
    """Whether the output head shares its weights with the input embedding."""
    context: Positive | None = None
    """The longest sequence in tokens."""
    rope_base: PositiveFloat | None = None
    """The base θ of the rotary position embedding. The default is the preset's, or 100,000 as in SmolLM2."""
    norm_eps: PositiveFloat | None = None
    """The ε of RMSNorm. The default is the preset's, or 1e-5 as in SmolLM2."""
    initializer_range: PositiveFloat | None = None
    """The standard deviation of the initial weights. The default is the preset's, or 0.02 as in transformers."""

    @model_validator(mode="before")
    @classmethod
    def accept_preset_name(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def check_numbers(self) -> "Model":
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; the presets are {', '.join(PRESETS)}")
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
        """The preset's numbers with those of this section in their place."""
        given = self.model_dump(exclude_none=True, exclude={"preset"})
        return Architecture(**given) if self.preset is None else replace(PRESETS[self.preset], **given)


class Optimisation(Section):
    """The fields that all stages share. Defaults for AdamW's betas and the gradient's norm are the paper's (Table 5)."""

    corpus: str
    """The corpus to train on, by its name in `corpora`."""
    tokens: Size
    """The number of tokens to take from the corpus, rounded down to whole sequences."""
    lr: PositiveFloat
    """The peak learning rate of AdamW."""
    min_lr: NotNegative = 0.0
    """The learning rate at the end of the cosine schedule. A value above lr is lowered to lr, so that the rate stays constant
    after the warm-up. The default decays to 0."""
    warmup: Annotated[Whole, Field(ge=0)] = 0
    """The number of steps of linear warm-up. The default starts at the peak."""
    batch: Positive
    """The number of sequences in one optimiser step, over all devices."""
    weight_decay: NotNegative = 0.1
    """The weight decay of AdamW; norms have none. The default is the usual value for language models."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's β1 and β2. The default is the paper's (Table 5)."""
    clip: PositiveFloat = 1.0
    """The norm to which larger gradients are clipped. The default is the paper's (Table 5)."""
    dropout: Share = 0.0
    """The dropout rate at the embedding, the attention, the residual branches and the MLP. The default is no dropout."""
    seed: Seed | None = None
    """The seed of initialisation, data order and dropout. The default is the study's seed."""


def parse_schedule(value: Any) -> Any:
    """A schedule's name, or its window [begin, end] as a tuple of fractions. Raises ValueError."""
    if isinstance(value, str) and value in ("uniform", "early", "late"):
        return value
    numbers = list(value) if isinstance(value, list | tuple) else []
    if [type(number) in (int, float) for number in numbers] == [True, True] and 0 <= numbers[0] < numbers[1] <= 1:
        return float(numbers[0]), float(numbers[1])
    raise ValueError(
        f"invalid schedule {value!r}; write uniform, early, late, or a window of the stage such as [0.25, 0.5]"
    )


Schedule = Annotated[Literal["uniform", "early", "late"] | tuple[float, float], BeforeValidator(parse_schedule)]


class Pretrain(Optimisation):
    """Stage 1: pretraining on D_pre, with a share of D_post mixed in."""

    exposure: NotNegative = 0.0
    """λ: the share of D_post, the post-training corpus, that is mixed into pretraining. The default mixes in none."""
    exposure_schedule: Schedule = "uniform"
    """When D_post is mixed in: over the whole stage (uniform, the default), in its first or second half (early, late), or in a
    window [begin, end] given as fractions of the stage. The amount does not change; the rest of the stage is D_pre only."""
    repeat: bool = False
    """Whether λ may exceed 1, which repeats D_post. Off by default, so that a mistyped λ is an error."""

    @model_validator(mode="after")
    def check_exposure(self) -> "Pretrain":
        if self.exposure > 1 and not self.repeat:
            raise ValueError(
                f"exposure: {self.exposure:g} is more than one pass over the post-training corpus; "
                "keep it within [0, 1] or set pretrain.repeat: true"
            )
        return self


class EarlyStopping(Section):
    """Early stopping on the held-out loss. The stage ends with its best weights."""

    every: Positive
    """The number of steps between evaluations."""
    patience: Positive
    """The number of evaluations without a new lowest loss after which the stage stops."""


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


class Lora(Section):
    """LoRA: low-rank adapters are trained instead of all weights. The defaults are the paper's (Table 9)."""

    rank: Positive = 64
    """The rank of the adapters. The default is the paper's."""
    alpha: PositiveFloat = 128.0
    """The output of the adapters is multiplied by alpha / rank. The default is the paper's."""
    dropout: Share = 0.0
    """The dropout rate at the input of the adapters, in addition to the stage's own dropout. The default is no dropout; the
    paper has 0, 0.02 and 0.05."""
    targets: Annotated[tuple[Projection, ...], Field(min_length=1)] = (
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
    )
    """The weight matrices that get an adapter. The default is the paper's: no queries, keys or values."""


class Adaptable(Optimisation):
    """The fields of a stage that starts from a trained model and may train LoRA adapters instead of all weights."""

    method: Literal["full", "lora"] = "full"
    """Whether to train all weights (full, the default) or low-rank adapters (lora)."""
    lora: Lora | None = None
    """The settings of the adapters, valid only with `method: lora`. By default those of the paper."""

    @model_validator(mode="after")
    def check_method(self) -> "Adaptable":
        if self.lora is not None and self.method != "lora":
            raise ValueError(
                "lora: valid only with method: lora; set method: lora, or remove lora; to compare with full training, "
                "set both fields in one of two cases"
            )
        return self


class Posttrain(Adaptable):
    """Stage 2: post-training on D_post."""

    max_tokens: Size | None = None
    """The number of tokens to train on at most, in repeated passes over D_post. The default is one pass."""
    replay: Share = 0.0
    """The share of this stage's tokens that are drawn from D_pre. The default is no replay."""
    early_stopping: EarlyStopping | None = None
    """When to stop before `max_tokens`. By default the stage never stops early."""


class Finetune(Adaptable):
    """Stage 3: fine-tuning on D_ft, one pass over exactly `tokens` tokens."""


class Study(Section):
    """A study: a model through three stages, and the fields that vary over its trials."""

    loss_unit: ClassVar[str] = "losses in nats per token on held-out text"

    study: Name
    """The name of the study. The default is the file's name without its suffix."""
    model: Model
    """The model: a preset's name, or its numbers."""
    tokenizer: Tokenizer
    """The tokeniser."""
    sequence_length: Annotated[Whole, Field(ge=2)]
    """The length of the packed sequences in tokens. It must not exceed the model's context."""
    corpora: Annotated[dict[str, Corpus], Field(min_length=1)]
    """The corpora by name. Stages refer to these names."""
    pretrain: Pretrain
    """Stage 1."""
    posttrain: Posttrain
    """Stage 2."""
    finetune: Finetune
    """Stage 3."""
    allocation: Literal["additive", "matched"] = "additive"
    """How D_post is divided over Stages 1 and 2. additive, the default: Stage 2 trains on all of D_post, whatever λ is.
    matched: each sequence of D_post is trained on once, a share λ in Stage 1 and the rest in Stage 2."""
    seed: Seed = 0
    """The seed of all stages that give none of their own."""
    subset_seed: Seed = 0
    """The seed of the shuffle of each corpus. A subset of n tokens is the beginning of that shuffle, so subsets are nested."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    """Axes of named cases, each of which sets several fields. A list in a case is a grid within that case."""
    grid: Grid = {}
    """The axes of the grid: the dotted path of a field, and the list of its values."""
    search: dict[str, Any] = {}
    """The space that `retain search` searches instead of the grid. The fields are those of `SearchBlock` in
    sweeps/schema/search_space.py."""
    execution: Execution = Execution()
    """How and where the stages run. None of it enters a stage key."""

    @model_validator(mode="after")
    def check_corpora(self) -> "Study":
        for stage in STAGE_KINDS:
            name = getattr(self, stage).corpus
            if name not in self.corpora:
                raise ValueError(f"{stage}.corpus: unknown corpus {name!r}; the corpora are {', '.join(self.corpora)}")
        return self
