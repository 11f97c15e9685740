"""The recipe of a stage: everything, besides its parent, that decides its weights, in sequences and steps.

Stages that train the same weights must have equal recipes. So numbers of tokens become numbers of sequences (rounded down), and
fields without effect are left out or normalised: with λ = 0 a recipe names no post-training corpus, half of 300M tokens equals
all of 150M, a constant learning rate is a schedule that ends at its peak, and the allocation itself never enters. A field that
was added later is in a recipe only if it has an effect, so that the keys of earlier recipes stay.
"""

from dataclasses import asdict

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.units import counted
from retain.sweeps.base.yaml_text import written
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.stages import Adaptable, FurtherStage, Posttrain, Pretrain
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.data_facts import CorpusFacts, Facts, skipped_records
from retain.sweeps.tree.recipes.checkpoint import checkpoint_recipe
from retain.sweeps.tree.recipes.mixture import check_fit, components, stage_mixture, stage_window
from retain.sweeps.tree.recipes.optimisation import early_stopping_recipe, method_recipe, optimisation_recipe
from retain.sweeps.tree.recipes.preference import PAIR, Recipe, unit_of, with_start


def check_heldout(file: StudyFile, facts: Facts) -> None:
    """Raise StudyError if a corpus has no held-out sequence: stages are evaluated on every corpus of a study."""
    for (name, length), corpus in facts.corpora.items():
        if corpus.heldout == 0:
            raise StudyError(
                f"{file.path.name}: corpora.{name}.heldout: the held-out split would be empty (less than one sequence of "
                f"{length} tokens); raise the share, or enlarge the corpus{_as_read(name, corpus)}"
            )


def stage_recipe(study: Study, facts: Facts, name: str) -> Recipe | None:
    """The recipe of a stage of the chain; None if it has nothing to train. Raises StudyError."""
    section = study.section(name)
    if isinstance(section, Pretrain):
        return pretrain_recipe(study, section, facts)
    if isinstance(section, Posttrain):
        recipe = posttrain_recipe(study, section, facts)
    elif isinstance(section, FurtherStage):
        recipe = further_recipe(study, section, name, facts)
    else:
        assert isinstance(section, Adaptable)
        recipe = finetune_recipe(study, section, facts)
    if recipe is None or name != study.stages[0]:
        return recipe
    # The first stage of a chain starts from the model of the study.
    if recipe["method"] == "lora" and not study.model.is_trained:
        raise StudyError(
            f"{name}.method: lora trains adapters of a trained model, but {name} is the first stage and starts from a new one; "
            f"set {name}.method: full, or put a stage before it, or start from a checkpoint"
        )
    if "anchor" in recipe and not study.model.is_trained:
        raise StudyError(
            f"{name}.anchor: {name} is the first stage and starts from a new model, which nothing should be pulled back to; "
            f"remove {name}.anchor, or put a stage before it, or start from a checkpoint"
        )
    if "objective" in recipe and not study.model.is_trained:
        raise StudyError(
            f"{name}.objective: dpo compares with the model that a stage starts from, and {name} is the first stage and starts "
            f"from a new one; remove {name}.objective, or put a stage before it, or start from a checkpoint"
        )
    return with_start({"model": _model(study, facts), "tokenizer": facts.tokenizer, **recipe})


def pretrain_recipe(study: Study, stage: Pretrain, facts: Facts) -> Recipe:
    """Stage 1: D_pre with the first λ·|D_post| sequences of D_post (paper, Sections 3.3 and 4.2). Raises StudyError."""
    model = _model(study, facts)
    corpus, count = _draw(study, facts, stage.corpus, stage.tokens, "pretrain")
    exposure: Recipe | None = None
    mixed = 0
    if stage.exposure > 0:
        if study.posttrain is None:
            raise StudyError(
                "pretrain.exposure: D_post is the corpus of posttrain, which `stages` does not name; set pretrain.exposure: 0, "
                "or add posttrain to stages"
            )
        if stage.passes > 1:
            raise StudyError(
                "pretrain.passes: exposure is mixed into one pass over D_pre; set pretrain.passes: 1 or pretrain.exposure: 0"
            )
        unit = unit_of(study.posttrain)
        post, distinct = _draw(study, facts, study.posttrain.corpus, study.posttrain.tokens, "posttrain", unit=unit)
        distinct //= unit  # of a pair, the chosen response is mixed in
        mixed = exposed_sequences(stage.exposure, distinct)
        if mixed:
            exposure = {"corpus": post.fingerprint, "distinct": min(mixed, distinct), "sequences": mixed}
    mixture = stage_mixture(study, facts, "pretrain", stage, count * stage.passes, mixed)
    if exposure:
        exposure |= _window(stage, mixture.total, mixed)
    check_fit("pretrain", mixture, exposure)
    return {
        "model": model,
        "tokenizer": facts.tokenizer,
        "corpus": corpus.fingerprint,
        "distinct": min(count, mixture.main),
        "exposure": exposure,
        "sequences": mixture.total,
        **mixture.recipe,
        **optimisation_recipe(study, stage, "pretrain", mixture.total),
    }


def posttrain_recipe(study: Study, stage: Posttrain, facts: Facts) -> Recipe | None:
    """Stage 2: passes over D_post up to max_tokens, with replay; None if matched allocation leaves it no data.

    Raises StudyError.
    """
    corpus, count = _draw(study, facts, stage.corpus, stage.tokens, "posttrain", unit=unit_of(stage))
    first = 0
    if study.allocation == "matched":
        _check_matched(study, stage)
        first = exposed_sequences(study.pretrain.exposure if study.pretrain else 0.0, count)
        total = count - first
        if total == 0:
            return None
    else:
        total = _repeated(study, stage, "posttrain", count)
    mixture = stage_mixture(study, facts, "posttrain", stage, total)
    check_fit("posttrain", mixture)
    return {
        "corpus": corpus.fingerprint,
        "first": first,
        "distinct": count - first,
        "replay": _replay(study, stage, facts, count - first),
        "sequences": mixture.total,
        **mixture.recipe,
        "early_stopping": early_stopping_recipe(stage.early_stopping, "posttrain", stage.warmup, corpus),
        **method_recipe(study, facts, stage, "posttrain"),
        **optimisation_recipe(study, stage, "posttrain", mixture.total),
    }


def finetune_recipe(study: Study, stage: Adaptable, facts: Facts) -> Recipe:
    """Stage 3: passes over exactly its token budget of D_ft, and what is mixed in. Raises StudyError."""
    corpus, count = _draw(study, facts, stage.corpus, stage.tokens, "finetune", unit=unit_of(stage))
    mixture = stage_mixture(study, facts, "finetune", stage, count * stage.passes)
    check_fit("finetune", mixture)
    return {
        "corpus": corpus.fingerprint,
        "distinct": min(count, mixture.main),
        "sequences": mixture.total,
        **mixture.recipe,
        **method_recipe(study, facts, stage, "finetune"),
        **optimisation_recipe(study, stage, "finetune", mixture.total),
    }


def further_recipe(study: Study, stage: FurtherStage, name: str, facts: Facts) -> Recipe | None:
    """A stage beyond the paper's three: passes over its budget, without the `skip` tokens before it.

    None if it has no tokens, own or mixed in, and follows another stage. Raises StudyError.
    """
    if stage.tokens == 0 and name != study.stages[0]:
        if not any(components(name, stage)):
            return None
        raise StudyError(
            f"{name}.tokens: a stage of 0 tokens is left out, but {name}.mix has amounts; set both in a case, as in "
            f"without: {{{name}.tokens: 0, {name}.mix: {{}}}}, or raise {name}.tokens"
        )
    unit = unit_of(stage)
    first = unit * (stage.skip // (unit * study.sequence_length))
    corpus, count = _draw(study, facts, stage.corpus, stage.tokens, name, first, unit)
    mixture = stage_mixture(study, facts, name, stage, _repeated(study, stage, name, count))
    check_fit(name, mixture)
    stopping = early_stopping_recipe(stage.early_stopping, name, stage.warmup, corpus)
    return {
        "corpus": corpus.fingerprint,
        "distinct": min(count, mixture.main),
        "sequences": mixture.total,
        **mixture.recipe,
        **({"first": first} if first else {}),
        **({"early_stopping": stopping} if stopping else {}),
        **method_recipe(study, facts, stage, name),
        **optimisation_recipe(study, stage, name, mixture.total),
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


def _repeated(study: Study, stage: Posttrain | FurtherStage, name: str, count: int) -> int:
    """The sequences that a stage trains on in passes over `count` sequences. Raises StudyError if there are none."""
    if stage.max_tokens is None:
        return count * stage.passes
    unit = unit_of(stage)
    if stage.max_tokens < unit * study.sequence_length:
        raise StudyError(
            f"{name}.max_tokens: {stage.max_tokens} tokens are less than {_one(unit)} of {study.sequence_length}; "
            f"raise {name}.max_tokens"
        )
    return unit * (stage.max_tokens // (unit * study.sequence_length))


def _check_matched(study: Study, stage: Posttrain) -> None:
    """Raise StudyError if matched allocation would train on a token of D_post twice, or not at all."""
    pretrain = study.pretrain
    if pretrain is not None and pretrain.exposure > 1:
        raise StudyError("allocation: matched divides one pass over D_post; keep pretrain.exposure within [0, 1]")
    if stage.early_stopping or stage.replay or stage.passes > 1:
        field = "early_stopping" if stage.early_stopping else "replay" if stage.replay else "passes"
        raise StudyError(f"posttrain.{field}: matched allocation trains on each D_post token once; remove {field}")
    mixed = [*(components("pretrain", pretrain) if pretrain else ()), *components("posttrain", stage)]
    for field, corpus, component in mixed:
        if corpus == stage.corpus:
            raise StudyError(f"{field}: matched allocation trains on each D_post token once; remove {corpus} from mix")
        if component.replaces and field.startswith("posttrain."):
            raise StudyError(f"{field}.replaces: matched allocation trains on each D_post token once; remove replaces")


def _replay(study: Study, stage: Posttrain, facts: Facts, fresh: int) -> Recipe | None:
    """The replay of D_pre in a Stage 2 with passes over `fresh` sequences of D_post; None without replay."""
    share = stage.replay
    if share == 0:
        return None
    if study.pretrain is None:
        raise StudyError(
            "posttrain.replay: D_pre is the corpus of pretrain, which `stages` does not name; set posttrain.replay: 0, or add "
            "pretrain to stages"
        )
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
            f"pretrain.exposure_schedule: {written(schedule)} leaves room for {end - begin} sequences, but {mixed} are mixed "
            "in; widen the window, or lower pretrain.exposure"
        )
    return {} if (begin, end) == (0, total) else {"window": [begin, end]}


def _one(unit: int) -> str:
    """What a stage reads at least, for messages."""
    return "one pair of sequences" if unit == PAIR else "one sequence"


def _draw(
    study: Study, facts: Facts, name: str, tokens: int, stage: str, first: int = 0, unit: int = 1
) -> tuple[CorpusFacts, int]:
    """A corpus and the number of sequences that a budget of tokens takes from it, after its `first` sequences.

    unit: the sequences that the stage reads together (`unit_of`); it takes a multiple of them. Raises StudyError if the
    corpus has too few sequences.
    """
    length = study.sequence_length
    corpus = facts.corpora[name, length]
    count = unit * (tokens // (unit * length))
    if count == 0:
        raise StudyError(
            f"{stage}.tokens: {tokens} tokens are less than {_one(unit)} of {length}; raise {stage}.tokens"
        )
    train = None if corpus.train is None else corpus.train * unit
    if first and train is not None and train < first + count:
        raise StudyError(
            f"{stage}.skip: {count:,} sequences after the first {first:,} exceed the {train:,} of the training split of "
            f"corpus {name}; lower {stage}.skip or {stage}.tokens, or enlarge the corpus{_as_read(name, corpus)}"
        )
    if train is not None and train < count:
        raise StudyError(
            f"{stage}.tokens: {tokens:,} tokens exceed the training split of corpus {name}, which has "
            f"{train * length:,}; lower the budget, or enlarge the corpus{_as_read(name, corpus)}"
        )
    return corpus, count


def _as_read(name: str, corpus: CorpusFacts) -> str:
    """What came of reading a corpus that is too small, as a clause of a message; empty if it is not known."""
    if corpus.reading is None:
        return ""
    clauses = [f"it has {counted(corpus.reading.documents, 'document')}", *skipped_records(corpus.reading)]
    if clauses == ["it has 1 document"]:
        clauses.append(f"a file of plain text is one, unless corpora.{name}.separator divides it")
    return f" ({'; '.join(clauses)})"
