"""The speed of training: an estimate for devices on which the store has no done runs.

The estimate assumes that a device reaches a share of its peak which depends only on the size of the model. FLOPs are counted by
`retain.sweeps.schema.models`: 6 per matrix parameter and token, or 4 if the matrix is frozen, as it then needs no gradient.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from retain.sweeps.base.errors import StudyError

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12}
"""Dense bf16 FLOP/s of each device, as the vendor states."""

UTILISATION = (
    # No published number at this size. Such small kernels take longer to launch than to run.
    (30e6, 0.05),
    # llm-foundry, benchmarking/README: a 125M model at length 1,024 reaches 40.9% on A100s.
    (500e6, 0.40),
    # The same page: a 1.31B model at length 1,024 reaches 42.0% on H100s.
    (float("inf"), 0.42),
)
"""Pairs of a largest number of parameters and the share of the peak that models up to that size reach. No number is published
for H200 and L40S, which are assumed to reach the same share."""

Measured = Callable[[str, str, str, int, str | None], float | None]
"""Returns the tokens per second that done runs have measured, over all devices of a stage; None if there is no such run.

Its arguments: the name of the stage, the model as `model_text` writes it, the work as `work_text` writes it, the number of
devices, and the device (None for any).
"""

OTHER_WORK = ('"method":"lora"', '"objective":{', '"anchor":{', '"optimizer":"muon"', '"documents":{')
"""Parts of canonical recipes: with any of them, `work_text` is not empty."""


def check_device(device: str) -> None:
    """Raise StudyError if the peak speed of a device is unknown."""
    if device not in PEAK_FLOPS:
        raise StudyError(f"--device {device}: unknown device; the devices are {', '.join(PEAK_FLOPS)}")


def utilisation(parameters: int) -> float:
    """The share of a device's peak that a model of this size is assumed to reach."""
    return next(share for most, share in UTILISATION if parameters <= most)


def modelled_speed(flops_per_token: int, parameters: int, device: str) -> float:
    """The estimated tokens per second of one device."""
    return PEAK_FLOPS[device] * utilisation(parameters) / flops_per_token


def device_of(name: str) -> str | None:
    """The device in PEAK_FLOPS that a GPU's name means, such as `NVIDIA A100-SXM4-80GB`; None if unknown."""
    words = name.replace("-", " ").split()
    return next((device for device in PEAK_FLOPS if device in words), None)


def model_text(recipe: Mapping[str, Any]) -> str:
    """The model and sequence length of a pretraining recipe, as text that can be compared."""
    return json.dumps([recipe["model"], recipe["sequence_length"]], sort_keys=True)


def work_text(recipe: str) -> str:
    """`work_of` for a canonical recipe. Most are not parsed: a tree may have 100,000 stages."""
    return work_of(json.loads(recipe)) if any(part in recipe for part in OTHER_WORK) else ""


def work_of(recipe: Mapping[str, Any]) -> str:
    """What changes the work per token of a stage's recipe, as text that can be compared.

    Empty where AdamW trains all weights on the next-token loss. Strengths, learning rates and seeds change no work.
    """
    lora = recipe.get("lora")
    work = {
        "lora": lora and {name: lora[name] for name in ("rank", "targets")},
        "objective": sorted(recipe.get("objective", ())),
        "anchor": sorted(recipe.get("anchor", ())),
        "optimizer": recipe.get("optimizer"),
        "documents": recipe.get("documents"),
    }
    given = {name: value for name, value in work.items() if value}
    return json.dumps(given, sort_keys=True) if given else ""
