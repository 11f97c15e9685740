"""How fast a stage trains: as done runs of the store have measured it on that device, otherwise by a stated model.

The model: a device reaches a share of its peak that depends on the size of the model only. What training costs in FLOPs is
counted by `schema.models` (6 a matrix parameter and token; 4 where adapters leave the matrix frozen, as its gradient is not
made).
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from retain.sweeps.base.errors import StudyError

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12}
"""Dense bf16 FLOP/s, as the vendor states."""

UTILISATION = (
    # Nothing is published at this size; kernels this small are started slower than they run.
    (30e6, 0.05),
    # llm-foundry, benchmarking/README: 125M at length 1,024 on A100s reaches 40.9%.
    (500e6, 0.40),
    # The same page: 1.31B at length 1,024 on H100s reaches 42.0%.
    (float("inf"), 0.42),
)
"""Up to so many parameters, so much of the peak. For H200 and L40S no such number is published: theirs are assumed alike."""

Measured = Callable[[str, str, int, str | None], float | None]
"""Tokens per second of (a kind of stage, a model as `model_text`, a number of devices together, a device or None for any);
None where nothing was measured."""


def check_device(device: str) -> None:
    """Raise StudyError for a device that has no price."""
    if device not in PEAK_FLOPS:
        raise StudyError(f"--device {device}: not known; the devices are {', '.join(PEAK_FLOPS)}")


def utilisation(parameters: int) -> float:
    """The share of the peak that a model of this size is assumed to reach."""
    return next(share for most, share in UTILISATION if parameters <= most)


def modelled_speed(flops_per_token: int, parameters: int, device: str) -> float:
    """Tokens per second of one device."""
    return PEAK_FLOPS[device] * utilisation(parameters) / flops_per_token


def device_of(name: str) -> str | None:
    """Which priced device a GPU is that calls itself `NVIDIA A100-SXM4-80GB`; None for any other."""
    words = name.replace("-", " ").split()
    return next((device for device in PEAK_FLOPS if device in words), None)


def model_text(recipe: Mapping[str, Any]) -> str:
    """A pretraining's model and sequence length, as text to compare."""
    return json.dumps([recipe["model"], recipe["sequence_length"]], sort_keys=True)
