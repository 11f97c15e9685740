"""Whether every stage of a study can train on the devices that its execution gives it."""

from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.recipes.preference import PAIR


def device_mismatch(file: StudyFile) -> str | None:
    """What is wrong with a stage that cannot train on its devices, and the cure; None if every stage can.

    A batch is split evenly over the devices, so that each has sequences, or pairs, of every step. Muon takes whole matrices,
    which FSDP splits.
    """
    execution = file.study.execution
    for stage in file.study.stages:
        own = execution.of_stage(stage)
        field = "execution.devices" if own.devices == execution.devices else f"execution.stages.{stage}.devices"
        pairs = any(file.values(f"{stage}.objective"))
        for batch in file.values(f"{stage}.batch"):
            if batch % own.devices:
                return (
                    f"{stage}.batch: {batch} sequences cannot be split evenly over {field}: {own.devices}; choose a batch "
                    "that they divide, or other devices"
                )
            if pairs and batch // PAIR < own.devices:
                return (
                    f"{stage}.batch: {batch} sequences have too few pairs for {field}: {own.devices}; choose a batch of at "
                    f"least {PAIR * own.devices}, or fewer devices"
                )
        if own.strategy == "fsdp" and own.devices > 1 and "muon" in file.values(f"{stage}.optimizer"):
            return (
                f"{stage}.optimizer: muon takes whole matrices, and execution.strategy: fsdp splits them by rows over the "
                "devices; write strategy: ddp, or optimizer: adamw"
            )
    return None
