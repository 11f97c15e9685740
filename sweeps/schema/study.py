"""The fields of a study file: what is trained on what. How and where it runs is in sweeps/schema/execution.py."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from retain.sweeps.schema.corpora import Corpus, Documents, Tokenizer
from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.models import Model
from retain.sweeps.schema.section import STAGE_KINDS, Grid, Name, Section, Seed, Whole, shown_value
from retain.sweeps.schema.stages import Finetune, Posttrain, Pretrain


class Study(Section):
    """A study: a model through three stages, and the fields that vary over its trials."""

    loss_unit: ClassVar[str] = "losses in nats per token on held-out text"

    study: Name
    """The name of the study. The default is the file's name without its suffix."""
    model: Model
    """The model: a preset's name, its numbers, or a checkpoint."""
    tokenizer: Tokenizer | None = None
    """The tokeniser. Required, but for a checkpoint: the default is then the checkpoint's own."""
    sequence_length: Annotated[Whole, Field(ge=2)]
    """The length of the packed sequences in tokens. It must not exceed the model's context."""
    corpora: Annotated[dict[str, Corpus], Field(min_length=1)]
    """The corpora by name. Stages refer to these names."""
    documents: Documents = Documents()
    """How documents behave in the packed sequences."""
    pretrain: Pretrain
    """Stage 1."""
    posttrain: Posttrain
    """Stage 2."""
    finetune: Finetune
    """Stage 3."""
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
    """The space that `retain search` searches instead of the grid. The fields are those of `SearchBlock` in
    sweeps/schema/search_space.py."""
    execution: Execution = Execution()
    """How and where the stages run. None of it enters a stage key."""

    @model_validator(mode="after")
    def check_tokenizer(self) -> "Study":
        if self.tokenizer is None and self.model.hf is None:
            raise ValueError("tokenizer: this field is required unless model.hf names a checkpoint")
        return self

    @model_validator(mode="after")
    def check_corpora(self) -> "Study":
        for stage in STAGE_KINDS:
            section = getattr(self, stage)
            for field, name in [("corpus", section.corpus), *(("mix", name) for name in section.mix)]:
                if name not in self.corpora:
                    raise ValueError(
                        f"{stage}.{field}: unknown corpus {shown_value(name)}; the corpora are {', '.join(self.corpora)}"
                    )
        return self

    @model_validator(mode="after")
    def check_chat_template(self) -> "Study":
        chats = [name for name, corpus in self.corpora.items() if corpus.messages is not None]
        tokenizer = self.tokenizer
        if chats and tokenizer is not None and tokenizer.train is not None and tokenizer.chat_template is None:
            raise ValueError(
                f"corpora.{chats[0]}.messages: a trained tokeniser has no chat template; set tokenizer.chat_template: "
                "chatml"
            )
        return self
