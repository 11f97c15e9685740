"""The fields of the stages of language models: what each trains on, and how it optimises."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from retain.sweeps.schema.section import NotNegative, Positive, PositiveFloat, Section, Seed, Share, Size, Whole


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
    passes: Positive = 1
    """The number of passes over the `tokens`, each in a new order. The default is one pass."""


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


class Start(Section):
    """What a stage takes over from the stage before it, besides the weights."""

    optimizer: Literal["new", "carry"] = "new"
    """The state of AdamW at the first step: zero (new, the default), or the moments and the step count that it has at the end
    of the stage before (carry). The learning rate is the stage's own in both cases. To spread one schedule over two stages,
    keep the first at a constant rate (`min_lr` at or above `lr`), and give the second the same `lr`, no warm-up, and its own
    `min_lr`."""


class Adaptable(Optimisation):
    """The fields of a stage that starts from a trained model and may train LoRA adapters instead of all weights."""

    method: Literal["full", "lora"] = "full"
    """Whether to train all weights (full, the default) or low-rank adapters (lora)."""
    lora: Lora | None = None
    """The settings of the adapters, valid only with `method: lora`. By default those of the paper."""
    start: Start | None = None
    """What the stage takes over from the stage before it. By default the weights alone."""

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


def check_amount(passes: int, max_tokens: int | None) -> None:
    """Raise ValueError if both fields say how long a stage is."""
    if max_tokens is not None and passes != 1:
        raise ValueError(
            f"max_tokens: {passes} passes already say how long the stage is; remove passes or max_tokens (null unsets it)"
        )
