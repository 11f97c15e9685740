"""The families of decoders that Retain trains: one row for each says where its parts are. All other code reads the table.

Paths are those of transformers' own classes. Paths of a layer's parts start at the layer, all others at the model.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

HEAD = "lm_head"
QKV = ("q_proj", "k_proj", "v_proj")
LLAMA_PROJECTIONS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}


def fused(qkv: str, output: str, up: str, down: str) -> dict[str, str]:
    """The projections of a layer with one matrix for queries, keys and values, and an MLP without a gate."""
    return dict.fromkeys(QKV, qkv) | {"o_proj": output, "up_proj": up, "down_proj": down}


@dataclass(frozen=True)
class Family:
    """The parts of one family's models. The defaults are those of Llama."""

    name: str
    """The model_type in config.json."""
    title: str
    """The name for readers."""
    body: str = "model"
    """The decoder without its head."""
    layers: str = "model.layers"
    """The list of decoder layers."""
    norm: str = "model.norm"
    """The norm after the last layer."""
    head: str = HEAD
    """The output head."""
    embedding_dropout: str = "model.embed_tokens"
    """The module whose output is the embedding of a sequence: the family's own dropout, where it has one."""
    attention_dropout: str = "self_attn.attention_dropout"
    """The rate of the dropout of a layer's attention weights, or the dropout module that holds the rate."""
    branch_dropout: tuple[str, ...] = ("self_attn", "mlp")
    """The modules whose outputs are a layer's residual branches: the family's own dropouts, where it has them."""
    mlp_dropout: str = "mlp.down_proj"
    """The module whose input is dropped inside a layer's MLP."""
    projections: Mapping[str, str] = field(default_factory=lambda: LLAMA_PROJECTIONS)
    """The matrix of a layer that each name in `lora.targets` means. Names that the family lacks mean nothing."""
    soft_cap: str | None = None
    """The field of the configuration with the cap c of the logits z, which become c · tanh(z / c)."""
    logit_divisor: str | None = None
    """The field of the configuration with the number that divides the logits."""
    causal_unless: str | None = None
    """The field of the configuration that makes the attention bidirectional, which Retain refuses."""

    def targets(self, names: Collection[str]) -> list[str]:
        """The matrices that names in `lora.targets` mean, each once: paths below a layer, and the head's path."""
        paths = [self.head if name == HEAD else self.projections.get(name) for name in names]
        return list(dict.fromkeys(path for path in paths if path is not None))

    def target_problem(self, names: Collection[str]) -> str | None:
        """What is wrong with `lora.targets` for this family, and the cure; None if it can be trained."""
        if not self.targets(names):
            return f"{self.title} has no {' or '.join(names)}; name other matrices"
        shared = [name for name in QKV if self.projections[name] == self.projections["q_proj"]]
        given = [name for name in shared if name in names]
        if len(shared) > 1 and given not in ([], shared):
            return f"{self.title} has one matrix for {', '.join(shared)}; name all three, or none of them"
        return None


_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("llama", "Llama"),
        Family("mistral", "Mistral"),
        Family("qwen2", "Qwen2"),
        Family("qwen3", "Qwen3"),
        Family("smollm3", "SmolLM3"),
        # A norm comes after each branch, and its output is what the residual stream adds.
        Family("olmo2", "OLMo2", branch_dropout=_POST_NORMS),
        Family(
            "gemma3_text",
            "Gemma 3 (text)",
            branch_dropout=_POST_NORMS,
            soft_cap="final_logit_softcapping",
            causal_unless="use_bidirectional_attention",
        ),
        Family("granite", "Granite", logit_divisor="logits_scaling"),
        Family(
            "phi",
            "Phi",
            norm="model.final_layernorm",
            embedding_dropout="model.embed_dropout",
            # One module, which both branches call.
            branch_dropout=("resid_dropout",),
            mlp_dropout="mlp.fc2",
            projections={name: f"self_attn.{name}" for name in QKV}
            | {"o_proj": "self_attn.dense", "up_proj": "mlp.fc1", "down_proj": "mlp.fc2"},
        ),
        Family(
            "gpt_neox",
            "GPT-NeoX (Pythia)",
            body="gpt_neox",
            layers="gpt_neox.layers",
            norm="gpt_neox.final_layer_norm",
            embedding_dropout="gpt_neox.emb_dropout",
            attention_dropout="attention.attention_dropout",
            branch_dropout=("post_attention_dropout", "post_mlp_dropout"),
            mlp_dropout="mlp.dense_4h_to_h",
            projections=fused("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        ),
        Family(
            "gpt2",
            "GPT-2",
            body="transformer",
            layers="transformer.h",
            norm="transformer.ln_f",
            embedding_dropout="transformer.drop",
            attention_dropout="attn.attn_dropout",
            branch_dropout=("attn.resid_dropout", "mlp.dropout"),
            mlp_dropout="mlp.c_proj",
            projections=fused("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        ),
    )
}
"""The families by their model_type."""


def known_families() -> str:
    """The names of all families, for messages."""
    return ", ".join(f"{family.title} ({family.name})" for family in FAMILIES.values())
