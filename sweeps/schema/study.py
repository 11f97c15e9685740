"""The fields of a study file: what is trained on what. How and where it runs is in sweeps/schema/execution.py."""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from retain.sweeps.schema.corpora import Corpus, Documents, Tokenizer
from retain.sweeps.schema.execution import Execution, check_stage_names
from retain.sweeps.schema.models import Model
from retain.sweeps.schema.section import GROUNDWORK, STAGE_KINDS, Grid, Name, Section, Seed, Whole, shown_value
from retain.sweeps.schema.stages import Evaluate, Finetune, FurtherStage, Optimisation, Posttrain, Pretrain
from retain.sweeps.schema.validation_messages import unknown_field

SPLITS = ("pretraining", "posttraining", "finetuning")
"""The held-out splits of the paper's three stages. That of a further stage has the stage's name."""


class Study(Section):
    """A study: a model through a chain of stages, and the fields that vary over its trials."""

    # Every other field is the section of a stage that `stages` names.
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FurtherStage]

    further_section: ClassVar[type[Section]] = FurtherStage
    loss_unit: ClassVar[str] = "losses in nats per token on held-out text"

    study: Name
    """The name of the study. The default is the file's name without its suffix."""
    model: Model
    """The model: a preset's name, its numbers, or a checkpoint."""
    tokenizer: Tokenizer | None = None
    """The tokeniser. Required unless `model` is a checkpoint, whose own tokeniser is then the default."""
    sequence_length: Annotated[Whole, Field(ge=2)]
    """The length of the packed sequences in tokens. It must not exceed the model's context."""
    corpora: Annotated[dict[str, Corpus], Field(min_length=1)]
    """The corpora by name. Stages refer to these names."""
    documents: Documents = Documents()
    """How documents behave in the packed sequences."""
    stages: Annotated[tuple[str, ...], Field(min_length=1)] = STAGE_KINDS
    """The chain of stages, by name, in the order in which a trial trains them: each starts from the one before. The default is
    the paper's three. Any of them may be left out, and any name may be added: its section has the fields of
    `finetune`, and `max_tokens`, `skip` and `early_stopping`."""
    pretrain: Pretrain | None = None
    """Stage 1. Required if `stages` names it, and then it is the first of the chain."""
    posttrain: Posttrain | None = None
    """Stage 2. Required if `stages` names it."""
    finetune: Finetune | None = None
    """Stage 3. Required if `stages` names it."""
    allocation: Literal["additive", "matched"] = "additive"
    """How D_post is divided over Stages 1 and 2. additive, the default: Stage 2 trains on all of D_post, whatever λ is.
    matched: each sequence of D_post is trained on once, a share λ in Stage 1 and the rest in Stage 2."""
    seed: Seed = 0
    """The seed of all stages that give none of their own."""
    subset_seed: Seed = 0
    """The seed of the shuffle of each corpus. A subset of n tokens is the beginning of that shuffle, so subsets are nested."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    """Axes of named cases, each of which sets several fields. A list in a case is a grid within that case."""
    grid: Grid = {}
    """The axes of the grid: the dotted path of a field, and the list of its values."""
    search: dict[str, Any] = {}
    """The space that `retain search` searches instead of the grid. Its fields are under Searches in
    docs/reference/fields.md."""
    evaluate: Evaluate | None = None
    """What is measured besides the losses that training measures. None of it enters the key of a stage that trains."""
    execution: Execution = Execution()
    """How and where the stages run. None of it enters a stage key."""

    @field_validator("stages")
    @classmethod
    def check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not is_stage_name(name):
                raise ValueError(
                    f"{shown_value(name)} is not the name of a stage; write up to 40 letters, digits and underscores, with a "
                    "letter first"
                )
            if names.count(name) > 1:
                raise ValueError(f"{name} is named twice; give the second one a name of its own, such as {name}2")
            taken = name in (*SPLITS, *GROUNDWORK) or name in cls.model_fields or hasattr(cls, name)
            if taken and name not in STAGE_KINDS:
                raise ValueError(f"{name} has another meaning in a study; give the stage another name")
        return names

    @model_validator(mode="before")
    @classmethod
    def check_sections(cls, fields: Any) -> Any:
        """Raise ValueError for a section without a stage, an unknown field, and a stage whose section is null."""
        chain = fields.get("stages", STAGE_KINDS) if isinstance(fields, Mapping) else None
        if (
            not isinstance(chain, list | tuple)
            or not all(map(is_stage_name, chain))
            or len(set(chain)) < max(1, len(chain))
        ):
            return fields  # The fields' own checks say what is wrong.
        missing = [name for name in chain if name not in fields]
        near = [str(name) for name in fields if name not in chain]
        if alone := [name for name in missing if "stages" in fields and not difflib.get_close_matches(name, near, n=1)]:
            raise ValueError(
                f"{alone[0]}: this field is required, because `stages` names it; write its section, or leave it out of stages"
            )
        for name, section in fields.items():
            if name in chain and section is None:
                raise ValueError(
                    f"{name}: the section is null; write it, or leave {name} out of stages and remove the section"
                )
            if name in chain or (name in cls.model_fields and name not in STAGE_KINDS):
                continue
            if name in STAGE_KINDS and section is None:
                continue  # an override such as posttrain=null, beside a chain without it
            is_stage = name in STAGE_KINDS or (isinstance(section, Mapping) and "corpus" in section)
            if not is_stage or difflib.get_close_matches(str(name), missing, n=1):
                raise ValueError(unknown_field(str(name), [*cls.model_fields, *missing]))
            longer = ", ".join([*chain, name])
            raise ValueError(
                f"{name}: no stage has this name; write stages: [{longer}] in your order, or remove its section and axes"
            )
        return fields

    @model_validator(mode="after")
    def check_tokenizer(self) -> "Study":
        if self.tokenizer is None and self.model.hf is None:
            raise ValueError("tokenizer: this field is required unless model.hf names a checkpoint")
        return self

    @model_validator(mode="after")
    def check_chain(self) -> "Study":
        for name in self.stages:
            if getattr(self, name, None) is None:
                raise ValueError(f"{name}: this field is required; write its section, as docs/study.md explains")
        if "pretrain" in self.stages[1:]:
            raise ValueError("stages: pretrain starts from a new model; put it first, or give this stage another name")
        if getattr(self.section(self.stages[0]), "start", None) is not None:
            raise ValueError(f"{self.stages[0]}.start: the first stage of a chain follows no other; remove start")
        anchor = getattr(self.section(self.stages[0]), "anchor", None)
        if anchor is not None and anchor.ewc:
            raise ValueError(
                f"{self.stages[0]}.anchor.ewc: the Fisher information is estimated on the corpus of the stage before, and "
                f"{self.stages[0]} is the first stage; put a stage before it, or write anchor.l2sp instead"
            )
        check_stage_names(self.execution, self.stages)
        self.check_average()
        for stage in self.stages:
            section = self.section(stage)
            for field, name in [("corpus", section.corpus), *(("mix", name) for name in section.mix)]:
                if name not in self.corpora:
                    raise ValueError(
                        f"{stage}.{field}: unknown corpus {shown_value(name)}; the corpora are {', '.join(self.corpora)}"
                    )
        return self

    def check_average(self) -> None:
        """Raise ValueError for an average of weights that is impossible, or that could not be compared with other losses."""
        for name in (name for name in self.stages if getattr(self.section(name), "average", 1.0) != 1):
            if name != self.stages[-1]:
                raise ValueError(
                    f"{name}.average: {self.stages[-1]} is the last stage, and only its weights can be averaged; remove "
                    f"{name}.average"
                )
            if len(self.stages) == 1 and not self.model.is_trained:
                raise ValueError(
                    f"{name}.average: the stage starts from a new model, which nothing can be averaged with; remove "
                    "average, or put a stage before it"
                )
            for other in self.stages:
                stopping = getattr(self.section(other), "early_stopping", None)
                if stopping is not None and stopping.split == "tune":
                    raise ValueError(
                        f"{name}.average: averages are measured on whole held-out splits, and {other}.early_stopping.split: "
                        f"tune reports {other} on a half; write split: heldout, or remove average"
                    )

    @model_validator(mode="after")
    def check_evaluate(self) -> "Study":
        asked = self.evaluate
        for field, names, kind, known in (
            ("corpora", asked.corpora if asked else (), "corpus", tuple(self.corpora)),
            ("at", (asked.at if asked else None) or (), "stage", self.stages),
        ):
            for name in names:
                if name not in known:
                    plural = "corpora" if kind == "corpus" else "stages"
                    raise ValueError(
                        f"evaluate.{field}: unknown {kind} {shown_value(name)}; the {plural} are {', '.join(known)}"
                    )
        return self

    @model_validator(mode="after")
    def check_chat_template(self) -> "Study":
        chats = [name for name, corpus in self.corpora.items() if corpus.has_conversations]
        tokenizer = self.tokenizer
        if chats and tokenizer is not None and tokenizer.train is not None and tokenizer.chat_template is None:
            raise ValueError(
                f"corpora.{chats[0]}.{'messages' if self.corpora[chats[0]].messages else 'chosen_messages'}: a trained "
                "tokeniser has no chat template; set tokenizer.chat_template: chatml"
            )
        return self

    def section(self, stage: str) -> Optimisation:
        """The section of a stage of the chain."""
        section: Optimisation = getattr(self, stage)
        return section


def is_stage_name(name: Any) -> bool:
    """Whether something has the form of a stage's name."""
    return isinstance(name, str) and re.fullmatch("[A-Za-z][A-Za-z0-9_]{0,39}", name) is not None
