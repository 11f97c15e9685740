"""The fields of the stages of language models: what each trains on, and how it optimises."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from retain.sweeps.schema.section import (
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
    read_number,
    shown_value,
)


def read_window(value: Any) -> Any:
    """A window [begin, end] of a stage as a tuple of fractions. Raises ValueError."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    if [type(number) in (int, float) for number in numbers] == [True, True] and 0 <= numbers[0] < numbers[1] <= 1:
        return float(numbers[0]), float(numbers[1])
    raise ValueError(f"invalid window {shown_value(value)}; write a part of the stage such as [0.25, 0.5]")


class Component(Section):
    """Sequences of a corpus that are mixed into a stage, evenly spread over the stage or over a window of it.

    The amount is given once: as `tokens`, as `passes` or as `share`. It is exact to the sequence.
    """

    tokens: Size | None = None
    """The amount as a number of tokens, rounded down to whole sequences."""
    passes: NotNegative | None = None
    """The amount as a number of passes over `of` tokens, such as 3 or 0.5."""
    share: Share | None = None
    """The amount as a share of all sequences of the stage, mixed ones included, even if a window confines it."""
    of: Size | None = None
    """The number of distinct tokens to draw from. A larger amount repeats them, in a new order each pass. By default no token
    is repeated; `passes` needs it."""
    skip: Size = 0
    """The number of tokens to leave out at the beginning of the corpus's shuffle. The default leaves out none, so that
    components of one corpus are nested; with `skip` they can be disjoint."""
    window: Annotated[tuple[float, float], BeforeValidator(read_window)] = (0.0, 1.0)
    """The part [begin, end] of the stage that the component is confined to, as fractions. The default is the whole stage."""
    replaces: bool = False
    """Whether the component takes the place of sequences of the stage's own corpus. By default it is added to `tokens`, so that
    the stage becomes longer."""

    @model_validator(mode="after")
    def check_amount(self) -> "Component":
        given = [name for name in ("tokens", "passes", "share") if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} both give the amount" if given else "the amount is missing"
            raise ValueError(f"{what}; write one of tokens, passes and share")
        if self.passes is not None and self.of is None:
            raise ValueError("passes: passes need the size of one pass; add of, the number of distinct tokens")
        return self


ONE, SEVERAL = "[one component]", "[several components]"
"""Tags of the two forms of a corpus's entry in `mix`; messages leave them out."""
Components = Annotated[
    Annotated[Component, Tag(ONE)] | Annotated[tuple[Component, ...], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list | tuple) else ONE),
]


class Wsd(Section):
    """The schedule warm-up, stable, decay: the peak is held after the warm-up, and decays linearly at the end of the stage."""

    wsd: Annotated[Number, Field(gt=0, le=1)]
    """The share of the stage's steps that decays from lr to min_lr, rounded to whole steps; the last step is at min_lr."""


def parse_lr_schedule(value: Any) -> Any:
    """The name of a learning-rate schedule, or a `Wsd` from {wsd: SHARE}. Raises ValueError."""
    if isinstance(value, Wsd) or (isinstance(value, str) and value in ("cosine", "linear", "constant")):
        return value
    if isinstance(value, dict) and list(value) == ["wsd"]:
        share = read_number(value["wsd"])
        if not 0 < share <= 1:
            raise ValueError(f"wsd is a share of the stage, above 0 and at most 1 (got {share:g}); write {{wsd: 0.1}}")
        return Wsd(wsd=share)
    raise ValueError(
        f"unknown schedule {shown_value(value)}; write cosine, linear, constant, or {{wsd: SHARE}} such as {{wsd: 0.1}}"
    )


RateSchedule = Annotated[Literal["cosine", "linear", "constant"] | Wsd, BeforeValidator(parse_lr_schedule)]


class Optimisation(Section):
    """The fields that all stages share. Defaults for AdamW's betas and the gradient's norm are the paper's (Table 5)."""

    corpus: str
    """The corpus to train on, by its name in `corpora`."""
    tokens: Size
    """The number of tokens to take from the corpus, rounded down to whole sequences."""
    mix: dict[str, Components] = {}
    """Further corpora to mix in, by their names in `corpora`, each with one component or a list of them. The default mixes in
    none."""
    lr: PositiveFloat
    """The peak learning rate."""
    min_lr: NotNegative = 0.0
    """The learning rate at the last step of the schedule. `floor` says what a value above lr means. The default decays to 0."""
    schedule: RateSchedule = "cosine"
    """How the learning rate goes from lr to min_lr after the warm-up: along a cosine (the default) or a line; not at all
    (constant), which ignores min_lr; or, with {wsd: SHARE}, along a line over the last share of the stage only."""
    floor: Literal["lower", "rise"] = "lower"
    """What a min_lr above lr does. lower, the default: min_lr is lowered to lr, so that the rate stays constant after the
    warm-up. rise: the rate rises from lr to min_lr along the schedule, as in LitGPT."""
    warmup: Annotated[Whole, Field(ge=0)] = 0
    """The number of steps of linear warm-up. The default starts at the peak."""
    batch: Positive
    """The number of sequences in one optimiser step, over all devices."""
    weight_decay: NotNegative = 0.1
    """The weight decay. The default is the usual value for language models."""
    decay: Literal["matrices", "all"] = "matrices"
    """What decays: matrices without embeddings (the default), or all weights, with norms and embeddings, as in LitGPT."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """The optimiser: AdamW (the default), or Muon for the matrices of the hidden layers, with AdamW for embeddings, norms and
    the head. Muon's momentum is 0.95; its updates are scaled to the size of AdamW's, so that lr and weight_decay serve both."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's β1 and β2. The default is the paper's (Table 5)."""
    clip: PositiveFloat = 1.0
    """The norm to which larger gradients are clipped. The default is the paper's (Table 5)."""
    dropout: Share = 0.0
    """The dropout rate at the embedding, the attention, the residual branches and the MLP. The default is no dropout."""
    seed: Seed | None = None
    """The seed of initialisation, data order and dropout. The default is the study's seed."""
    passes: Positive = 1
    """The number of passes over the `tokens`, each in a new order. The default is one pass."""


def parse_schedule(value: Any) -> Any:
    """A schedule's name, or its window [begin, end] as a tuple of fractions. Raises ValueError."""
    if isinstance(value, str) and value in ("uniform", "early", "late"):
        return value
    try:
        return read_window(value)
    except ValueError:
        raise ValueError(
            f"invalid schedule {value!r}; write uniform, early, late, or a window of the stage such as [0.25, 0.5]"
        ) from None


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
    """Early stopping on the held-out loss, or with `objective` on the held-out loss of the objective. The stage ends with its
    best weights."""

    every: Positive
    """The number of steps between evaluations."""
    patience: Positive
    """The number of evaluations without a new lowest loss after which the stage stops."""
    after_warmup: bool = False
    """Whether evaluations during the warm-up do not count against the patience. Their weights may still be the best ones. By
    default all evaluations count."""
    split: Literal["heldout", "tune"] = "heldout"
    """What the stage is stopped on. heldout, the default: the whole held-out split, which is also reported. tune: a half of its
    sequences, drawn at random once and for all; losses on this corpus, of this stage and of those below it, are then reported
    on the other half, so that no reported loss is one that was selected on."""


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


class Start(Section):
    """What a stage takes over from the stage before it, besides the weights."""

    optimizer: Literal["new", "carry"] = "new"
    """The state of AdamW at the first step: zero (new, the default), or the moments and the step count that it has at the end
    of the stage before (carry). The learning rate is the stage's own in both cases. To spread one schedule over two stages,
    keep the first at a constant rate (`min_lr` at or above `lr`), and give the second the same `lr`, no warm-up, and its own
    `min_lr`."""


class Anchor(Section):
    """A penalty on moving away from the weights that a stage starts from, added to the loss. Reported losses are without it."""

    l2sp: NotNegative = 0.0
    """L2-SP: the penalty is l2sp / 2 times the squared distance from the starting weights (Xuhong et al., arXiv 1802.01483).
    The default is no penalty."""
    ewc: NotNegative | None = None
    """EWC: the penalty is ewc / 2 times the squared distance of each weight times its Fisher information (Kirkpatrick et al.,
    arXiv 1612.00796). The information is that of one token of the corpus of the stage before, at the starting weights, so that
    ewc: 1 stands for the second-order rise of the loss on that corpus. It needs `sequences`. The default is no penalty."""
    sequences: Positive | None = None
    """The number of sequences that `ewc` estimates the Fisher information on: the first ones of those that the stage before
    takes from its corpus, and with `allocation: matched` the first ones of D_post. One estimate serves all stages that need the
    same. Required with `ewc`."""

    @model_validator(mode="after")
    def check_ewc(self) -> "Anchor":
        if self.ewc is not None and self.sequences is None:
            raise ValueError(
                "ewc: the number of sequences to estimate the Fisher information on is missing; add sequences, such as 256"
            )
        if self.sequences is not None and self.ewc is None:
            raise ValueError(
                "sequences: only ewc estimates anything on sequences; add ewc (0 where an axis sets it), or remove sequences"
            )
        return self


class TrainingObjective(Section):
    """What a stage minimises instead of the next-token loss."""

    dpo: PositiveFloat
    """DPO (Rafailov et al., arXiv 2305.18290): β, the strength with which the stage keeps to the model that it starts from. The
    loss of a pair is -log σ(β m). The margin m is how much more the log-probability of the chosen response has risen than
    that of the rejected one since the start of the stage, each summed over its tokens. Usual values are 0.05 to 0.5."""


class Adaptable(Optimisation):
    """The fields of a stage that starts from a trained model and may train LoRA adapters instead of all weights."""

    method: Literal["full", "lora"] = "full"
    """Whether to train all weights (full, the default) or low-rank adapters (lora)."""
    lora: Lora | None = None
    """The settings of the adapters, valid only with `method: lora`. By default those of the paper."""
    start: Start | None = None
    """What the stage takes over from the stage before it. By default the weights alone."""
    anchor: Anchor | None = None
    """A pull towards the weights that the stage starts from. By default there is none."""
    objective: TrainingObjective | None = None
    """What the stage minimises: the next-token loss (the default), or with `{dpo: β}` the DPO loss on the pairs of its corpus,
    which has `chosen` and `rejected`. `tokens` and `batch` then count both responses: a pair is two sequences."""
    average: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """WiSE-FT (Wortsman et al., arXiv 2109.01903), for the last stage of a chain: the trial's losses are those of the weights
    between the start of the stage (0) and its end (1, the default). All averages share one training run; the losses of those
    below 1 are measured in evaluation runs."""

    @model_validator(mode="after")
    def check_method(self) -> "Adaptable":
        if self.lora is not None and self.method != "lora":
            raise ValueError(
                "lora: valid only with method: lora; set method: lora, or remove lora; to compare with full training, "
                "set both fields in one of two cases"
            )
        if self.method == "lora" and self.optimizer == "muon":
            raise ValueError(
                "optimizer: muon takes whole weight matrices, and LoRA trains their factors; write optimizer: adamw"
            )
        for field in ("l2sp", "ewc"):
            if self.method == "lora" and self.anchor is not None and getattr(self.anchor, field):
                raise ValueError(
                    f"anchor: {field} pulls all weights, and LoRA trains adapters, which start at zero; set anchor.{field}: 0, "
                    "or use weight_decay"
                )
        return self


class Posttrain(Adaptable):
    """Stage 2: post-training on D_post."""

    max_tokens: Size | None = None
    """The number of tokens to train on at most, in repeated passes over D_post. The default is one pass."""
    replay: Share = 0.0
    """The share of this stage's tokens, without those of `mix`, that are drawn from D_pre. The default is no replay."""
    early_stopping: EarlyStopping | None = None
    """When to stop before `max_tokens`. By default the stage never stops early."""

    @model_validator(mode="after")
    def check_amount(self) -> "Posttrain":
        check_amount(self.passes, self.max_tokens)
        return self


class Finetune(Adaptable):
    """Stage 3: fine-tuning on D_ft, one pass over exactly `tokens` tokens, or several `passes`."""


class FurtherStage(Adaptable):
    """A stage with a name of your own, such as `midtrain` or `finetune2`, which `stages` puts into the chain."""

    max_tokens: Size | None = None
    """The number of tokens to train on at most, in repeated passes over `tokens`. The default is `passes`."""
    skip: Size = 0
    """The number of tokens at the beginning of the corpus's shuffle to leave out, rounded down to whole sequences: those that
    an earlier stage has read of the same corpus. The default leaves out none."""
    early_stopping: EarlyStopping | None = None
    """When to stop early, judged on the held-out split of the stage's corpus. By default the stage never stops early."""

    @model_validator(mode="after")
    def check_amount(self) -> "FurtherStage":
        check_amount(self.passes, self.max_tokens)
        return self


class Task(Section):
    """A task of EleutherAI's lm-evaluation-harness, which the extra `tasks` installs."""

    path: PathText | None = None
    """The YAML file of a task of your own, or a folder in which one file has the task's name. The default is the harness's own
    task of this name. The files that it names, such as `dataset_kwargs: {data_files: test.jsonl}`, are relative to it."""
    shots: Annotated[Whole, Field(ge=0)] | None = None
    """The number of solved examples before each question. The default is the task's own."""
    limit: Positive | None = None
    """The number of documents to measure on: the first ones. The default is all."""
    seed: Seed = 1234
    """The seed by which examples are drawn. The default is the harness's own."""


class Evaluate(Section):
    """What is measured besides the losses that training measures, in runs of their own that train nothing."""

    corpora: tuple[str, ...] = ()
    """The corpora to measure on, by name. One that no stage names is prepared too, and neither a model nor the tokeniser is
    trained on it."""
    tasks: dict[str, Task] = {}
    """The tasks to measure on, by name."""
    at: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The stages whose final weights are measured. The default is all of the chain."""

    @field_validator("tasks", mode="before")
    @classmethod
    def check_tasks(cls, tasks: Any) -> Any:
        """Read a task without fields as one with its defaults. Raises ValueError for a name that no task has."""
        if not isinstance(tasks, dict):
            raise ValueError("expected a mapping of tasks; write {arc_easy: {limit: 500}}")
        for name in tasks:
            if not isinstance(name, str) or not re.fullmatch(r"[^\s/,]+", name):
                raise ValueError(
                    f"{shown_value(name)} is not the name of a task; write one without spaces, / and commas"
                )
        return {name: {} if fields is None else fields for name, fields in tasks.items()}

    @model_validator(mode="after")
    def check_measures(self) -> "Evaluate":
        if not self.corpora and not self.tasks:
            raise ValueError("nothing is measured; name corpora, tasks or both, or remove evaluate")
        return self


def check_amount(passes: int, max_tokens: int | None) -> None:
    """Raise ValueError if both fields say how long a stage is."""
    if max_tokens is not None and passes != 1:
        raise ValueError(
            f"max_tokens: {passes} passes already say how long the stage is; remove passes or max_tokens (null unsets it)"
        )
