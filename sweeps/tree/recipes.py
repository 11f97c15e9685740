"""The recipe of a stage: everything, besides its parent, that decides its weights, in sequences and steps.

Stages that train the same weights must have equal recipes. So numbers of tokens become numbers of sequences (rounded down), and
fields without effect are left out or normalised: with λ = 0 a recipe names no post-training corpus, half of 300M tokens equals
all of 150M, a constant learning rate is a schedule that ends at its peak, and the allocation itself never enters. A field that
was added later is in a recipe only if it has an effect, so that the keys of earlier recipes stay.
"""

from dataclasses import asdict
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.stages import Adaptable, EarlyStopping, Lora, Optimisation, Pretrain, Wsd
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.checkpoint_recipes import adapter_targets, checkpoint_recipe
from retain.sweeps.tree.data_facts import CorpusFacts, Facts
from retain.sweeps.tree.mixture_recipes import check_fit, components, stage_mixture, stage_window

Recipe = dict[str, Any]


def pretrain_recipe(study: Study, facts: Facts) -> Recipe:
    """Stage 1: D_pre with the first λ·|D_post| sequences of D_post (paper, Sections 3.3 and 4.2). Raises StudyError."""
    stage = study.pretrain
    model = _model(study, facts)
    corpus, count = _draw(study, facts, stage.corpus, stage.tokens, "pretrain")
    exposure: Recipe | None = None
    mixed = 0
    if stage.exposure > 0:
        post, distinct = _draw(study, facts, study.posttrain.corpus, study.posttrain.tokens, "posttrain")
        mixed = exposed_sequences(stage.exposure, distinct)
        if mixed:
            exposure = {"corpus": post.fingerprint, "distinct": min(mixed, distinct), "sequences": mixed}
    mixture = stage_mixture(study, facts, "pretrain", stage, count, mixed)
    if exposure:
        exposure |= _window(stage, mixture.total, mixed)
    check_fit("pretrain", mixture, exposure)
    return {
        "model": model,
        "tokenizer": facts.tokenizer,
        "corpus": corpus.fingerprint,
        "distinct": mixture.main,
        "exposure": exposure,
        "sequences": mixture.total,
        **mixture.recipe,
        **_optimisation(study, stage, "pretrain", mixture.total),
    }


def posttrain_recipe(study: Study, facts: Facts) -> Recipe | None:
    """Stage 2: passes over D_post up to max_tokens, with replay; None if matched allocation leaves it no data.

    Raises StudyError.
    """
    stage = study.posttrain
    corpus, count = _draw(study, facts, stage.corpus, stage.tokens, "posttrain")
    first, total = 0, (count if stage.max_tokens is None else stage.max_tokens // study.sequence_length)
    if study.allocation == "matched":
        _check_matched(study)
        first = exposed_sequences(study.pretrain.exposure, count)
        total = count - first
        if total == 0:
            return None
    if total == 0:
        raise StudyError(
            f"posttrain.max_tokens: {stage.max_tokens} tokens are less than one sequence of {study.sequence_length}; "
            "raise posttrain.max_tokens"
        )
    mixture = stage_mixture(study, facts, "posttrain", stage, total)
    check_fit("posttrain", mixture)
    return {
        "corpus": corpus.fingerprint,
        "first": first,
        "distinct": count - first,
        "replay": _replay(study, facts, count - first),
        "sequences": mixture.total,
        **mixture.recipe,
        "early_stopping": _early_stopping(stage.early_stopping, stage.warmup, corpus),
        **_method(study, facts, stage, "posttrain"),
        **_optimisation(study, stage, "posttrain", mixture.total),
    }


def finetune_recipe(study: Study, facts: Facts) -> Recipe:
    """Stage 3: one pass over exactly its token budget of D_ft, and what is mixed in. Raises StudyError."""
    stage = study.finetune
    corpus, count = _draw(study, facts, stage.corpus, stage.tokens, "finetune")
    mixture = stage_mixture(study, facts, "finetune", stage, count)
    check_fit("finetune", mixture)
    return {
        "corpus": corpus.fingerprint,
        "distinct": mixture.main,
        "sequences": mixture.total,
        **mixture.recipe,
        **_method(study, facts, stage, "finetune"),
        **_optimisation(study, stage, "finetune", mixture.total),
    }


def exposed_sequences(exposure: float, distinct: int) -> int:
    """λ·|D_post| in sequences, rounded to the nearest."""
    return int(exposure * distinct + 0.5)


def _model(study: Study, facts: Facts) -> Recipe:
    """The model's numbers, with the tokeniser's vocabulary if the study gives none; or the checkpoint's architecture and start.

    Raises StudyError.
    """
    if study.model.hf is not None:
        return checkpoint_recipe(study, facts)
    model = asdict(study.model.architecture())
    if study.sequence_length > model["context"]:
        raise StudyError(
            f"sequence_length: {study.sequence_length} exceeds the model's context of {model['context']}; lower "
            "sequence_length, or raise model.context"
        )
    model["vocabulary"] = model["vocabulary"] or facts.vocabulary
    if model["vocabulary"] < facts.vocabulary:
        raise StudyError(
            f"model.vocabulary: {model['vocabulary']} entries are too few for the tokeniser's {facts.vocabulary}; "
            "raise model.vocabulary, or set it to 0 to take the tokeniser's"
        )
    return model


def _check_matched(study: Study) -> None:
    if study.pretrain.exposure > 1:
        raise StudyError("allocation: matched divides one pass over D_post; keep pretrain.exposure within [0, 1]")
    if study.posttrain.early_stopping or study.posttrain.replay:
        field = "early_stopping" if study.posttrain.early_stopping else "replay"
        raise StudyError(f"posttrain.{field}: matched allocation trains on each D_post token once; remove {field}")
    mixed = [*components("pretrain", study.pretrain), *components("posttrain", study.posttrain)]
    for field, corpus, component in mixed:
        if corpus == study.posttrain.corpus:
            raise StudyError(f"{field}: matched allocation trains on each D_post token once; remove {corpus} from mix")
        if component.replaces and field.startswith("posttrain."):
            raise StudyError(f"{field}.replaces: matched allocation trains on each D_post token once; remove replaces")


def _replay(study: Study, facts: Facts, fresh: int) -> Recipe | None:
    """The replay of D_pre in a Stage 2 with passes over `fresh` sequences of D_post; None without replay."""
    share = study.posttrain.replay
    if share == 0:
        return None
    pre, distinct = _draw(study, facts, study.pretrain.corpus, study.pretrain.tokens, "pretrain")
    if share / (1 - share) * fresh < 0.5:
        raise StudyError(
            f"posttrain.replay: {share:g} of a pass over {fresh} sequences rounds to zero sequences; "
            "raise posttrain.replay, or enlarge D_post"
        )
    return {"corpus": pre.fingerprint, "distinct": distinct, "fraction": share}


def _window(stage: Pretrain, total: int, mixed: int) -> Recipe:
    """The window [begin, end) of positions to which exposure is confined; empty if it is the whole stage.

    Raises StudyError if the window has fewer positions than sequences that are mixed in.
    """
    halves = {"uniform": (0.0, 1.0), "early": (0.0, 0.5), "late": (0.5, 1.0)}
    schedule = stage.exposure_schedule
    first, last = halves[schedule] if isinstance(schedule, str) else schedule
    begin, end = stage_window((first, last), total)
    if end - begin < mixed:
        raise StudyError(
            f"pretrain.exposure_schedule: {schedule} leaves room for {end - begin} sequences, but {mixed} are mixed in; "
            "widen the window, or lower pretrain.exposure"
        )
    return {} if (begin, end) == (0, total) else {"window": [begin, end]}


def _method(study: Study, facts: Facts, stage: Adaptable, name: str) -> Recipe:
    """The training method, with the settings of the adapters if there are any. Raises StudyError."""
    if stage.method == "full":
        return {"method": "full"}
    lora = stage.lora or Lora()
    targets = adapter_targets(study, facts, lora.targets, name)
    return {"method": "lora", "lora": lora.model_dump() | {"targets": targets}}


def _draw(study: Study, facts: Facts, name: str, tokens: int, stage: str) -> tuple[CorpusFacts, int]:
    """A corpus and the number of sequences that a budget of tokens takes from it.

    Raises StudyError if the corpus has too few sequences, or no held-out sequence.
    """
    corpus = facts.corpora[name, study.sequence_length]
    count = tokens // study.sequence_length
    if count == 0:
        raise StudyError(
            f"{stage}.tokens: {tokens} tokens are less than one sequence of {study.sequence_length}; raise {stage}.tokens"
        )
    if corpus.train is not None and corpus.train < count:
        raise StudyError(
            f"{stage}.tokens: {tokens:,} tokens exceed the training split of corpus {name}, which has "
            f"{corpus.train * study.sequence_length:,}; lower the budget, or enlarge the corpus"
        )
    if corpus.heldout == 0:
        raise StudyError(
            f"corpora.{name}.heldout: the held-out split would be empty (less than one sequence of "
            f"{study.sequence_length} tokens); raise the share, or enlarge the corpus"
        )
    return corpus, count


def _optimisation(study: Study, stage: Optimisation, name: str, sequences: int) -> Recipe:
    steps = -(-sequences // stage.batch)
    if stage.warmup >= steps:
        raise StudyError(
            f"{name}.warmup: {stage.warmup} steps of warm-up do not fit the {steps} steps of the stage "
            f"({sequences} sequences in batches of {stage.batch}); shorten the warm-up"
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


def _early_stopping(settings: EarlyStopping | None, warmup: int, corpus: CorpusFacts) -> Recipe | None:
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
            "posttrain.early_stopping.split: the held-out split of the corpus has one sequence, which tune cannot halve; "
            "raise the corpus's heldout, or write split: heldout"
        )
    return made | {"split": "tune"}


def _documents(study: Study) -> Recipe:
    """How documents attend to each other; empty if they attend across, as the recipes of earlier versions do."""
    return {} if study.documents.attention == "across" else {"documents": study.documents.model_dump()}
