"""The fields of the model, its presets, and parameter counts and FLOPs computed from a Llama's numbers."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from retain.sweeps.schema.families.counts import ModelCounts
from retain.sweeps.schema.families.table import HEAD
from retain.sweeps.schema.section import PathText, Positive, PositiveFloat, Section, Whole


@dataclass(frozen=True, slots=True)
class Architecture:
    """A Llama: RMSNorm, rotary positions, SiLU-gated MLP, no biases. See `Model` for the fields."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    """The number of entries; 0 takes that of the tokeniser."""
    tied: bool
    context: int
    """The longest sequence in tokens."""
    rope_base: float = 100_000.0
    norm_eps: float = 1e-5
    initializer_range: float = 0.02


ARCHITECTURE_FIELDS = tuple(Architecture.__dataclass_fields__)
PRESETS = {
    "laptop": Architecture(
        layers=4, hidden=128, heads=4, kv_heads=4, mlp=344, vocabulary=0, tied=True, context=1024, rope_base=10_000.0
    ),
    # SmolLM2-135M as published.
    "smollm2-135m": Architecture(
        layers=30,
        hidden=576,
        heads=9,
        kv_heads=3,
        mlp=1536,
        vocabulary=49_152,
        tied=True,
        context=8192,
        initializer_range=1 / 24,
    ),
    # The paper's Table 2. It prints no initializer range: this one follows SmolLM2's rule, 1 / sqrt(hidden).
    "smollm2-1b": Architecture(
        layers=24,
        hidden=1728,
        heads=27,
        kv_heads=27,
        mlp=4608,
        vocabulary=49_152,
        tied=False,
        context=8192,
        initializer_range=1728**-0.5,
    ),
}


class Model(Section):
    """A checkpoint (`hf`), or a Llama: a preset, a preset with some numbers changed, or all numbers. The name of a preset may
    stand for the section."""

    hf: PathText | None = None
    """The checkpoint to start from: the id of a model on Hugging Face, or a local folder with config.json and safetensors
    weights. It sets the architecture, so no other number may be given. The default builds a Llama from the numbers below."""
    revision: str | None = None
    """The commit, tag or branch of the Hugging Face model. The default is its main branch; a commit pins the checkpoint."""
    weights: Literal["random"] | None = None
    """random: take the architecture of the checkpoint, with fresh weights. The default takes its weights too."""
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
        if self.hf is not None:
            given = [name for name in (*ARCHITECTURE_FIELDS, "preset") if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"hf: the checkpoint sets the architecture; remove {', '.join(given)}, or write the whole section, as in "
                    "model={hf: ID}"
                )
            return self
        if self.revision is not None or self.weights is not None:
            name = "weights" if self.revision is None else "revision"
            raise ValueError(f"{name}: valid only for a checkpoint; name it with hf, or remove {name}")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(
                f"unknown preset {self.preset!r}; the presets are {', '.join(PRESETS)}; a checkpoint is written {{hf: ID}}"
            )
        needed = ("layers", "hidden", "heads", "kv_heads", "mlp", "vocabulary", "tied", "context")
        missing = [name for name in needed if self.preset is None and getattr(self, name) is None]
        if missing:
            raise ValueError(f"without a preset, {', '.join(missing)} must be given; or name one, as in preset: laptop")
        model = self.architecture()
        if model.hidden % model.heads or model.heads % model.kv_heads:
            raise ValueError("heads must divide hidden, and kv_heads must divide heads")
        if model.hidden // model.heads % 2:
            raise ValueError("hidden / heads must be even, for rotary positions")
        return self

    @property
    def is_trained(self) -> bool:
        """Whether the first stage starts from trained weights."""
        return self.hf is not None and self.weights is None

    def architecture(self) -> Architecture:
        """The preset's numbers with those of this section in their place. Not for a checkpoint."""
        given = self.model_dump(exclude_none=True, include=set(ARCHITECTURE_FIELDS))
        return Architecture(**given) if self.preset is None else replace(PRESETS[self.preset], **given)


def matrix_parameters(model: Architecture) -> int:
    """The number of parameters in matrix products with every token: all but the norms and an untied input embedding."""
    head = model.hidden // model.heads
    attention = model.hidden * head * (2 * model.heads + 2 * model.kv_heads)
    return model.layers * (attention + 3 * model.hidden * model.mlp) + model.vocabulary * model.hidden


def parameters(model: Architecture) -> int:
    """The number of all parameters. A tied embedding counts once."""
    norms = (2 * model.layers + 1) * model.hidden
    embedding = 0 if model.tied else model.vocabulary * model.hidden
    return matrix_parameters(model) + norms + embedding


def adapter_parameters(model: Architecture, rank: int, targets: Collection[str]) -> int:
    """The number of parameters of LoRA adapters: rank · (inputs + outputs) for each target matrix."""
    queries, keys = model.hidden, model.hidden // model.heads * model.kv_heads
    ends = {
        "q_proj": model.hidden + queries,
        "k_proj": model.hidden + keys,
        "v_proj": model.hidden + keys,
        "o_proj": queries + model.hidden,
        "gate_proj": model.hidden + model.mlp,
        "up_proj": model.hidden + model.mlp,
        "down_proj": model.mlp + model.hidden,
    }
    head = model.hidden + model.vocabulary if "lm_head" in targets else 0
    return rank * (model.layers * sum(ends[name] for name in targets if name in ends) + head)


def model_counts(model: Architecture) -> ModelCounts:
    """The numbers of parameters from which the costs of a Llama are computed."""
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", HEAD)
    return ModelCounts(
        parameters=parameters(model),
        matrices=matrix_parameters(model),
        attention=model.layers * model.hidden,
        head=model.vocabulary * model.hidden,
        tied=model.tied,
        adapters={name: adapter_parameters(model, 1, (name,)) for name in targets},
    )


def flops_per_token(model: Architecture, sequence_length: int) -> int:
    """The FLOPs of forward and backward: 6 per matrix parameter, and 12 · layers · hidden · length for attention."""
    return model_counts(model).flops_per_token(sequence_length)
