"""The numbers of parameters from which costs are computed, the same for every family."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCounts:
    """The parameters of a model by what they cost."""

    parameters: int
    """All parameters. A tied embedding counts once."""
    matrices: int
    """The parameters in matrix products with every token, the head included: all but norms, biases and input embeddings."""
    attention: int
    """The width of the attention, heads · head size, summed over the layers."""
    head: int
    """The parameters of the head's matrix."""
    tied: bool
    """Whether the head shares its matrix with the input embedding."""
    adapters: Mapping[str, int]
    """The inputs and outputs of all matrices that a name in `lora.targets` means. Of names for one matrix, only the first has a
    number above 0."""

    def adapter_parameters(self, rank: int, targets: Collection[str]) -> int:
        """The number of parameters of LoRA adapters: rank · (inputs + outputs) for each target matrix."""
        return rank * sum(self.adapters.get(name, 0) for name in targets)

    def flops_per_token(self, sequence_length: int) -> int:
        """The FLOPs of forward and backward: 6 per matrix parameter, and 12 · attention width · length."""
        return 6 * self.matrices + 12 * self.attention * sequence_length
