"""Training steps of the paper's models at their real sizes, on fake tensors: shapes, types and memory, without arithmetic.

Fake tensors of a GPU need a build of torch with CUDA, so these are on the CPU, with the GPU's chunks of the loss.
"""

import weakref
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retain.lightning_modules import objective
from retain.lightning_modules.models import build_model
from retain.sweeps.schema.models import PRESETS

SEQUENCES, LENGTH = 8, 1024
PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::_scaled_dot_product")


class Tensors(TorchDispatchMode):
    """Records the largest tensor, the types of the factors of matrix products, and the most bytes that exist at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.bytes = self.peak = 0
        self.products: set[torch.dtype] = set()
        self.known = weakref.WeakSet[Any]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                self._count(tensor.untyped_storage())
        if function.name().startswith(PRODUCTS):
            self.products.add(next(one.dtype for one in args if isinstance(one, torch.Tensor)))
        return made

    def _count(self, storage: Any) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.bytes -= size


def step(model_name: str, checkpointing: bool = False) -> tuple[Tensors, torch.Tensor, Any]:
    """Compute the gradient of a micro-batch in bf16; returns what was recorded, the loss and the model."""
    with FakeTensorMode():
        model = build_model(PRESETS[model_name], 0)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        sequences = torch.zeros(SEQUENCES, LENGTH, dtype=torch.int64)
        with Tensors() as tensors, torch.autocast("cpu", torch.bfloat16):
            loss = objective.summed_loss(model, sequences)
            loss.backward()  # type: ignore[no-untyped-call]
    return tensors, loss, model


@pytest.fixture(autouse=True)
def chunks_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "CHUNK_TOKENS", {})


@pytest.mark.parametrize("model_name", ["smollm2-135m", "smollm2-1b"])
def test_a_step_of_the_papers_models_multiplies_in_bf16_and_never_holds_all_logits_or_attention_weights(
    model_name: str,
) -> None:
    tensors, loss, model = step(model_name)
    chunk = objective.DEFAULT_CHUNK_TOKENS * model.config.vocab_size
    assert tensors.largest == chunk < SEQUENCES * LENGTH * model.config.vocab_size
    assert tensors.products == {torch.bfloat16}
    assert loss.dtype == torch.float32
    assert all(
        weight.grad.shape == weight.shape and weight.grad.dtype == torch.float32 for weight in model.parameters()
    )


@pytest.mark.slow
def test_checkpointing_takes_less_than_half_the_memory_at_the_papers_size() -> None:
    assert step("smollm2-1b", checkpointing=True)[0].peak < step("smollm2-1b")[0].peak / 2
