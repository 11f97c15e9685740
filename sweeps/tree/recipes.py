"""The recipe of a stage: everything that decides its weights beside its parent, in sequences and steps.

Amounts of tokens become sequences (rounded down), and fields without effect are left out or brought to one form, so
that stages which train the same weights have the same recipe: λ = 0 names no post-training corpus, half of 300M tokens
is all of 150M, a floor above the peak is the peak, and the allocation itself never enters.
"""

from dataclasses import asdict
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.study import Adaptable, Lora, Optimisation, Pretrain, Study
from retain.sweeps.tree.data_facts import CorpusFacts, Facts

Recipe = dict[str, Any]


def pretrain_recipe(study: Study, facts: Facts) -> Recipe:
    """Stage 1: D_pre and the first λ·|D_post| of D_post (paper, Sections 3.3 and 4.2)."""
    stage = study.pretrain
    context = study.model.architecture().context
    if study.sequence_length > context:
        raise StudyError(
            f"sequence_length: {study.sequence_length} is beyond the model's context of {context}; shorten it, "
            "or raise model.context"
        )
    corpus, count = _draw(study, facts, stage.corpus, stage.tokens, "pretrain")
    exposure, mixed = None, 0
    if stage.exposure > 0:
        post, distinct = _draw(study, facts, study.posttrain.corpus, study.posttrain.tokens, "posttrain")
        mixed = exposed_sequences(stage.exposure, distinct)
        if mixed:
            exposure = {"corpus": post.fingerprint, "distinct": min(mixed, distinct), "sequences": mixed}
            exposure |= _window(stage, count + mixed, mixed)
    total = count + mixed
    model = asdict(study.model.architecture())
    model["vocabulary"] = model["vocabulary"] or facts.vocabulary
    if model["vocabulary"] < facts.vocabulary:
        raise StudyError(
            f"model.vocabulary: {model['vocabulary']} entries are too few for the tokeniser's {facts.vocabulary}; "
            "raise it, or leave it 0 to take the tokeniser's"
        )
    return {
        "model": model,
        "tokenizer": facts.tokenizer,
        "corpus": corpus.fingerprint,
        "distinct": count,
        "exposure": exposure,
        "sequences": total,
        **_optimisation(study, stage, "pretrain", total),
    }


def posttrain_recipe(study: Study, facts: Facts) -> Recipe | None:
    """Stage 2: passes over D_post up to max_tokens, with replay; None where matched allocation leaves nothing to it."""
    stage = study.posttrain
    corpus, count = _draw(study, facts, stage.corpus, stage.tokens, "posttrain")
    first, total = 0, (count if stage.max_tokens is None else stage.max_tokens // study.sequence_length)
    if study.allocation == "matched":
        if study.pretrain.exposure > 1:
            raise StudyError("allocation: matched divides one pass of D_post; keep pretrain.exposure within [0, 1]")
        if stage.early_stopping or stage.replay:
            field = "early_stopping" if stage.early_stopping else "replay"
            raise StudyError(f"posttrain.{field}: matched allocation trains each D_post token once; take it out")
        first = exposed_sequences(study.pretrain.exposure, count)
        total = count - first
        if total == 0:
            return None
    if total == 0:
        raise StudyError("posttrain.max_tokens: less than one sequence; raise it")
    replay = None
    if stage.replay > 0:
        pre, distinct = _draw(study, facts, study.pretrain.corpus, study.pretrain.tokens, "pretrain")
        fresh = count - first
        if stage.replay / (1 - stage.replay) * fresh < 0.5:
            raise StudyError(
                f"posttrain.replay: {stage.replay:g} of a pass over {fresh} sequences is none; raise it or enlarge D_post"
            )
        replay = {"corpus": pre.fingerprint, "distinct": distinct, "fraction": stage.replay}
    return {
        "corpus": corpus.fingerprint,
        "first": first,
        "distinct": count - first,
        "replay": replay,
        "sequences": total,
        "early_stopping": stage.early_stopping and stage.early_stopping.model_dump(),
        **_method(stage),
        **_optimisation(study, stage, "posttrain", total),
    }


def finetune_recipe(study: Study, facts: Facts) -> Recipe:
    """Stage 3: exactly its token budget of D_ft, once."""
    stage = study.finetune
    corpus, count = _draw(study, facts, stage.corpus, stage.tokens, "finetune")
    return {
        "corpus": corpus.fingerprint,
        "distinct": count,
        "sequences": count,
        **_method(stage),
        **_optimisation(study, stage, "finetune", count),
    }


def exposed_sequences(exposure: float, distinct: int) -> int:
    """λ·|D_post| in sequences, to the nearest."""
    return int(exposure * distinct + 0.5)


def _window(stage: Pretrain, total: int, mixed: int) -> Recipe:
    """The positions [begin, end) that exposure is confined to; nothing where they are all of the stage.

    Raises StudyError where they hold fewer sequences than are mixed in.
    """
    halves = {"uniform": (0.0, 1.0), "early": (0.0, 0.5), "late": (0.5, 1.0)}
    schedule = stage.exposure_schedule
    first, last = halves[schedule] if isinstance(schedule, str) else schedule
    begin, end = int(first * total + 0.5), int(last * total + 0.5)
    if end - begin < mixed:
        raise StudyError(
            f"pretrain.exposure_schedule: {schedule} leaves room for {end - begin} sequences, and {mixed} are mixed in; "
            "widen the window, or lower pretrain.exposure"
        )
    return {} if (begin, end) == (0, total) else {"window": [begin, end]}


def _method(stage: Adaptable) -> Recipe:
    """All weights or adapters; the adapters' settings only where there are any."""
    if stage.method == "full":
        return {"method": "full"}
    lora = stage.lora or Lora()
    return {"method": "lora", "lora": lora.model_dump() | {"targets": sorted(set(lora.targets))}}


def _draw(study: Study, facts: Facts, name: str, tokens: int, stage: str) -> tuple[CorpusFacts, int]:
    """A corpus and how many of its sequences a budget takes; raises StudyError where it holds too few."""
    corpus = facts.corpora[name, study.sequence_length]
    count = tokens // study.sequence_length
    if count == 0:
        raise StudyError(
            f"{stage}.tokens: {tokens} tokens are less than one sequence of {study.sequence_length}; raise it"
        )
    if corpus.train is not None and corpus.train < count:
        raise StudyError(
            f"{stage}.tokens: {tokens:,} tokens asked of corpus {name}, whose training split holds "
            f"{corpus.train * study.sequence_length:,}; lower the budget or enlarge the corpus"
        )
    if corpus.heldout == 0:
        raise StudyError(
            f"corpora.{name}.heldout: the held-out split would be empty (less than one sequence of "
            f"{study.sequence_length} tokens); raise the share or enlarge the corpus"
        )
    return corpus, count


def _optimisation(study: Study, stage: Optimisation, name: str, sequences: int) -> Recipe:
    steps = -(-sequences // stage.batch)
    if stage.warmup >= steps:
        raise StudyError(
            f"{name}.warmup: {stage.warmup} steps of warm-up, but the stage has {steps} in all "
            f"({sequences} sequences in batches of {stage.batch}); shorten it"
        )
    return {
        "sequence_length": study.sequence_length,
        "subset_seed": study.subset_seed,
        "seed": study.seed if stage.seed is None else stage.seed,
        "batch": stage.batch,
        "steps": steps,
        "lr": stage.lr,
        "min_lr": min(stage.min_lr, stage.lr),
        "warmup": stage.warmup,
        "weight_decay": stage.weight_decay,
        "betas": list(stage.betas),
        "clip": stage.clip,
        "dropout": stage.dropout,
    }
