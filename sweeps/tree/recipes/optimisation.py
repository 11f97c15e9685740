"""The part of a recipe that says how a stage optimises: method, steps, learning rate, optimiser and early stopping."""

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.units import counted
from retain.sweeps.schema.stages import Adaptable, EarlyStopping, Lora, Optimisation, Wsd
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.data_facts import CorpusFacts, Facts
from retain.sweeps.tree.recipes.anchor import anchor_recipe
from retain.sweeps.tree.recipes.checkpoint import adapter_targets
from retain.sweeps.tree.recipes.preference import Recipe, objective_recipe


def method_recipe(study: Study, facts: Facts, stage: Adaptable, name: str) -> Recipe:
    """The training method, with the settings of the adapters if there are any, what is carried over, the anchor and the
    objective.

    Raises StudyError.
    """
    start = {"start": {"optimizer": "carry"}} if stage.start and stage.start.optimizer == "carry" else {}
    own = start | objective_recipe(study, facts, stage, name)
    if stage.method == "full":
        return {"method": "full", **own, **anchor_recipe(study, facts, stage, name)}
    lora = stage.lora or Lora()
    targets = adapter_targets(study, facts, lora.targets, name)
    return {"method": "lora", "lora": lora.model_dump() | {"targets": targets}, **own}


def optimisation_recipe(study: Study, stage: Optimisation, name: str, sequences: int) -> Recipe:
    """The optimisation of a stage of `sequences` sequences. Raises StudyError if its warm-up or its decay does not fit."""
    steps = -(-sequences // stage.batch)
    if stage.warmup >= steps:
        raise StudyError(
            f"{name}.warmup: {stage.warmup} steps of warm-up do not fit the {counted(steps, 'step')} of the stage "
            f"({counted(sequences, 'sequence')} in batches of {stage.batch}); shorten the warm-up"
        )
    return {
        "sequence_length": study.sequence_length,
        "subset_seed": study.subset_seed,
        "seed": study.seed if stage.seed is None else stage.seed,
        "batch": stage.batch,
        "steps": steps,
        "lr": stage.lr,
        "warmup": stage.warmup,
        "weight_decay": stage.weight_decay,
        "betas": list(stage.betas),
        "clip": stage.clip,
        "dropout": stage.dropout,
        **_schedule(stage, name, steps),
        **_optimiser(stage),
        **_documents(study),
    }


def _schedule(stage: Optimisation, name: str, steps: int) -> Recipe:
    """The end of the learning rate, and how it is reached unless along a cosine. Raises StudyError if a decay does not fit."""
    rises = stage.min_lr > stage.lr and stage.floor == "rise"
    if stage.schedule == "constant" or (stage.min_lr >= stage.lr and not rises):
        return {"min_lr": stage.lr}
    made: Recipe = {"min_lr": stage.min_lr} | ({"floor": "rise"} if rises else {})
    if not isinstance(stage.schedule, Wsd):
        return made | ({} if stage.schedule == "cosine" else {"schedule": stage.schedule})
    decay = int(stage.schedule.wsd * steps + 0.5)
    if decay == 0:
        raise StudyError(
            f"{name}.schedule: {stage.schedule.wsd:g} of {steps} steps rounds to no step of decay; raise wsd, or write "
            "schedule: constant"
        )
    if stage.warmup + decay > steps:
        raise StudyError(
            f"{name}.schedule: {stage.warmup} steps of warm-up and {decay} of decay do not fit the {steps} steps of the "
            "stage; lower wsd, or shorten the warm-up"
        )
    return made | {"schedule": {"wsd": decay}}


def _optimiser(stage: Optimisation) -> Recipe:
    """The optimiser and what decays, where they have another effect than AdamW with decaying matrices."""
    only_matrices = isinstance(stage, Adaptable) and stage.method == "lora"
    decays_all = stage.decay == "all" and stage.weight_decay > 0 and not only_matrices
    return ({"decay": "all"} if decays_all else {}) | ({"optimizer": "muon"} if stage.optimizer == "muon" else {})


def early_stopping_recipe(
    settings: EarlyStopping | None, stage: str, warmup: int, corpus: CorpusFacts
) -> Recipe | None:
    """The settings of early stopping; None without. Those added later are left out where they have no effect.

    Raises StudyError if the held-out split is too small to be halved.
    """
    if settings is None:
        return None
    made: Recipe = {"every": settings.every, "patience": settings.patience}
    if settings.after_warmup and warmup >= settings.every:
        made["after_warmup"] = True
    if settings.split == "heldout":
        return made
    if corpus.heldout == 1:
        raise StudyError(
            f"{stage}.early_stopping.split: the held-out split of the corpus has one sequence, which tune cannot halve; "
            "raise the corpus's heldout, or write split: heldout"
        )
    return made | {"split": "tune"}


def _documents(study: Study) -> Recipe:
    """How documents attend to each other; empty if they attend across, as the recipes of earlier versions do."""
    return {} if study.documents.attention == "across" else {"documents": study.documents.model_dump()}


def carry_problem(stage: str, recipe: str, before: str, recipe_before: str) -> str | None:
    """Why AdamW's state at the end of a stage does not belong to the weights that the next one trains; None if it does.

    stage, before: the names of the stage and of its parent. The recipes are canonical.
    """
    cure = f"remove {stage}.start, or"
    if '"method":"lora"' in recipe:
        return f"{stage} trains adapters, which are new; {cure} set {stage}.method: full"
    if '"method":"lora"' in recipe_before:
        return f"{before} trains adapters, and {stage} all weights; {cure} set {before}.method: full"
    if '"optimizer":"muon"' in recipe + recipe_before:
        return f"{before} or {stage} trains with muon, and only AdamW can be; {cure} set optimizer: adamw"
    if '"early_stopping":{' in recipe_before:
        return (
            f"{before} ends with the weights of its best step, and AdamW's moments belong to its last step; {cure} "
            f"remove {before}.early_stopping"
        )
    return None
