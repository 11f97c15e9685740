"""What is compiled: each decoder layer, the final norm, and attention within documents on GPUs. How tokens attend.

A layer is compiled once and its code serves all layers, so compiling takes as long for 30 layers as for 4. Hooks around a
layer, which gather its weights if it is sharded, stay outside the compiled code; the dropout hooks are inside.

Tokens attend within documents by masks, or on GPUs by FlexAttention, which skips the blocks of other documents. It is compiled
code without dropout, so whatever runs uncompiled uses masks: the same attention, other floating-point sums.

In bf16 steps on a CPU, attention itself is computed in fp32: the backward pass of torch's kernel for bf16 takes up to three
times as long at short sequences, and a fifth less at 1,024 tokens and more.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from retain.lightning_modules.families import final_norm, layers
from retain.lightning_modules.torch_internals import clear_damaged_builds, configure_compiler

FLEX = "flex_attention"
"""The name of FlexAttention in transformers."""
MASKS = "sdpa"
"""The name of attention by masks, the default of all families."""
IN_FP32 = "sdpa_in_fp32"
"""Our name for attention by masks that is computed in fp32, whatever the type of its inputs."""
PROBE_LENGTH = 256
"""The tokens of the sequence on which FlexAttention is compared with masks: two of its blocks."""
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.05}
"""The largest relative error of FlexAttention's values and gradients against masks in fp32: GPUs multiply fp32 in TF32."""


def compile_layers(model: PreTrainedModel) -> None:
    """Compile every layer and the final norm, forward and backward, at first use and for the shapes they are used with.

    Ask `why_not_compiled` first: raises UnsupportedTorchError if this release of torch lacks what compiling needs.
    """
    configure_compiler()
    clear_damaged_builds()
    for part in (*layers(model), final_norm(model)):
        part.forward = torch.compile(part.forward, dynamic=False)


def why_not_compiled(device: torch.device) -> str | None:
    """Return in a few words why this machine cannot compile for a device; None if it can."""
    clear_damaged_builds()
    try:
        configure_compiler()
        torch.compile(lambda numbers: numbers.sin() + 1, dynamic=False)(torch.zeros(64, device=device))
    except Exception as error:  # a missing or broken toolchain may raise anything
        return first_line(error)
    return None


def attend_by_flex_attention(model: PreTrainedModel) -> None:
    """Use FlexAttention in every layer. Ask `why_not_flex_attention` first."""
    model.set_attn_implementation(FLEX)


def attend_in_fp32(model: PreTrainedModel) -> None:
    """Compute attention by masks in fp32 in every layer, and the rest of a step in its own precision."""
    AttentionInterface.register(IN_FP32, _attention_in_fp32)
    AttentionMaskInterface.register(IN_FP32, sdpa_mask)
    if model.config._attn_implementation == MASKS:
        model.set_attn_implementation(IN_FP32)


def _attention_in_fp32(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention by masks as transformers has it, in fp32; the result has the type of the query."""
    mask = (
        attention_mask.float() if attention_mask is not None and attention_mask.is_floating_point() else attention_mask
    )
    with torch.autocast(query.device.type, enabled=False):
        found, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)
    return found.to(query.dtype), None


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Return a context in which nothing is compiled, so that layers attend by masks."""
    flexible = model if isinstance(model, PreTrainedModel) and model.config._attn_implementation == FLEX else None
    if flexible:
        flexible.set_attn_implementation(MASKS)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if flexible:
            flexible.set_attn_implementation(FLEX)


@contextlib.contextmanager
def deterministic_kernels(wanted: bool = True) -> Iterator[None]:
    """Let torch use only deterministic kernels in the block, or with False any."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def why_not_flex_attention(
    model: PreTrainedModel, device: torch.device, bf16: bool, deterministic: bool = True
) -> str | None:
    """Return in a few words why a model cannot be trained with FlexAttention on a device; None if it can.

    Compiles FlexAttention, runs it twice, forward and backward, with the heads of the model, and compares it with masks.
    deterministic: whether both runs must give the same bits.
    """
    if not model._supports_flex_attn:
        return f"transformers has none for {model.config.model_type}"
    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kind = torch.bfloat16 if bf16 else torch.float32
    flex, masked = _attention_of_probe(heads, size, device)
    try:
        with deterministic_kernels(deterministic):
            found, again, exact = flex(kind), flex(kind), masked(torch.float32)
    except Exception as error:  # a compiler, or a kernel that does not fit the GPU, may raise anything
        return first_line(error)
    if deterministic and not all(map(torch.equal, found, again)):
        return "it is not deterministic"
    errors = [float((one.float() - right).norm() / right.norm()) for one, right in zip(found, exact, strict=True)]
    return None if max(errors) <= TOLERANCE[kind] else f"it differs from attention by masks by {max(errors):.2g}"


Attention = Callable[[torch.dtype], list[torch.Tensor]]
"""Computes attention in a type; returns its values and the gradients of queries, keys and values."""


def _attention_of_probe(heads: int, size: int, device: torch.device) -> tuple[Attention, Attention]:
    """Return FlexAttention, and attention by masks, of one random sequence of two documents."""
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, PROBE_LENGTH, size, generator=draw).to(device) for _ in range(4)]
    places = torch.arange(PROBE_LENGTH, device=device)
    documents = (places >= PROBE_LENGTH // 3).int()
    mask = (places[:, None] >= places) & (documents[:, None] == documents)
    compiled = torch.compile(flex_attention, dynamic=False)

    def within(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (documents[query] == documents[key])

    def gradients(values: torch.Tensor, parts: list[torch.Tensor], weights: torch.Tensor) -> list[torch.Tensor]:
        return [values.detach(), *torch.autograd.grad(values, parts, weights)]

    def flex(kind: torch.dtype) -> list[torch.Tensor]:
        query, key, value, weights = (tensor.to(kind).requires_grad_() for tensor in inputs)
        blocks = create_block_mask(within, None, None, PROBE_LENGTH, PROBE_LENGTH, device=str(device))
        return gradients(compiled(query, key, value, block_mask=blocks), [query, key, value], weights)

    def masked(kind: torch.dtype) -> list[torch.Tensor]:
        query, key, value, weights = (tensor.to(kind).requires_grad_() for tensor in inputs)
        return gradients(scaled_dot_product_attention(query, key, value, mask), [query, key, value], weights)

    return flex, masked


def first_line(error: Exception) -> str:
    """The first line of an error that says anything, or the name of the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0]
