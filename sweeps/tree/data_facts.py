"""The fingerprints and sizes of the data, which planning needs. They are final once `retain data` has run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retain.sweeps.base.units import counted
from retain.sweeps.schema.families.counts import ModelCounts
from retain.sweeps.schema.models import Model

UNPREPARED = "unprepared:"
"""The prefix of the provisional fingerprint of an unprepared corpus."""


SHOWN = 3
"""Hidden files that are named."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counts over what was read of a corpus's source: up to its token budget, or to its end."""

    documents: int
    """Documents of both splits, each once."""
    tokens: int
    """Tokens of these documents, with the end of text of each."""
    duplicates: int = 0
    """Exact copies of an earlier document, or of one that is held out."""
    withheld: int = 0
    """Documents that are in neither split, because another corpus of the study may hold out the same text."""
    null: int = 0
    """Records whose text is null."""
    empty: int = 0
    """Records whose text is empty or blank."""
    replaced: int = 0
    """Documents with halves of characters (lone surrogates), which were replaced by U+FFFD."""
    hidden: Sequence[str] = ()
    """The names of hidden files and folders that were left out."""
    near: int | None = None
    """With `dedupe: near`, near copies of an earlier training document that were dropped. Otherwise the documents of a sample
    that have a near copy in it. None if it was not counted."""
    leaked: int = 0
    """With `dedupe: near`, near copies of a held-out document that were dropped."""
    sampled: int = 0
    """The documents in that sample; 0 with `dedupe: near`, which compares all."""
    long: int = 0
    """Pairs with a response that, with its prompt, is longer than the sequences."""
    equal: int = 0
    """Pairs whose two responses are the same."""
    asked: int = 0
    """Pairs with a prompt of the held-out split that the corpus brings along."""

    @property
    def tokens_per_document(self) -> float:
        return self.tokens / self.documents if self.documents else 0.0


@dataclass(frozen=True, slots=True)
class HeldoutValues:
    """Which value of the field `by` each held-out document of a corpus has, as the store keeps it."""

    fingerprint: str
    """The digest of the field's name, its values and the tokens that have them."""
    names: tuple[str, ...]
    """The values, sorted."""


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """One corpus, tokenised and packed at one sequence length."""

    fingerprint: str
    """The digest of its tokens; a provisional one while the corpus is unprepared."""
    train: int | None = None
    """The number of sequences in the training split; None while the corpus is unprepared."""
    heldout: int | None = None
    """The number of sequences in the held-out split; None while the corpus is unprepared."""
    values: HeldoutValues | None = None
    """Its values; None without `by`, and until they are prepared."""
    reading: Reading | None = None
    """What came of reading it; None while it is unprepared, and if it was prepared by an earlier version."""

    @property
    def prepared(self) -> bool:
        return not self.fingerprint.startswith(UNPREPARED)


@dataclass(frozen=True)
class CheckpointFacts:
    """One checkpoint, copied into the store."""

    fingerprint: str
    """The digest of its configuration and its weights, whatever the files; a provisional one while it is unprepared."""
    family: str = ""
    """The name of its family in sweeps/schema/families/table.py. Empty, like the fields below, while it is unprepared; of a
    local one the family, vocabulary, context and counts are known before."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The fields of its config.json that can change a result."""
    vocabulary: int = 0
    """The number of rows of its embedding."""
    context: int = 0
    """Its longest sequence in tokens."""
    tokenizer: str | None = None
    """The fingerprint of its tokeniser; None if it has none that can be used."""
    counts: ModelCounts | None = None
    """The numbers of its parameters; None while it is unprepared and on the hub."""

    @property
    def prepared(self) -> bool:
        return not self.fingerprint.startswith(UNPREPARED)


Checkpoint = tuple[str | None, str | None, str | None]
"""What a study names a checkpoint by: model.hf, model.revision and model.weights."""


def checkpoint_of(model: Model) -> Checkpoint:
    """What a study's model section names a checkpoint by."""
    return model.hf, model.revision, model.weights


@dataclass(frozen=True)
class TaskFacts:
    """One task of the lm-evaluation-harness, with the options of the study."""

    recipe: Mapping[str, Any]
    """What decides its numbers, besides the weights: the task with its version or the fingerprint of its files, the harness's
    version, the number of examples, the limit and the seed."""
    metrics: Mapping[str, bool]
    """Whether higher is better, by the name of the metric."""
    absent: str = ""
    """Where its data set was looked for in vain on this machine; empty if it is there."""


@dataclass(frozen=True)
class Facts:
    """The facts of all data that a study reads."""

    tokenizer: str
    """The fingerprint of the tokeniser."""
    vocabulary: int
    """The number of entries of the tokeniser."""
    corpora: Mapping[tuple[str, int], CorpusFacts]
    """The corpora by name and sequence length."""
    checkpoints: Mapping[Checkpoint, CheckpointFacts] = field(default_factory=dict)
    """The checkpoints that the study's models start from."""
    tasks: Mapping[str, TaskFacts] = field(default_factory=dict)
    """The tasks of `evaluate`, by name."""

    @property
    def prepared(self) -> bool:
        """Whether all corpora and checkpoints are prepared. Until then, stage keys are provisional."""
        corpora, checkpoints = self.corpora.values(), self.checkpoints.values()
        return all(one.prepared for one in corpora) and all(one.prepared for one in checkpoints)

    @property
    def heldout_tokens(self) -> dict[tuple[str, int], int]:
        """The tokens of the held-out splits, by corpus and sequence length; 0 for a corpus that is not prepared."""
        return {(name, length): (one.heldout or 0) * length for (name, length), one in self.corpora.items()}


def reading_remarks(reading: Reading) -> list[str]:
    """What a reader of a corpus should know, one clause each: what was skipped, replaced and left out, and near copies."""
    remarks = skipped_records(reading)
    if reading.replaced:
        remarks.append(f"replaced unpaired surrogates in {counted(reading.replaced, 'document')}")
    if names := list(reading.hidden):
        more = ", ..." if len(names) > SHOWN else ""
        remarks.append(f"left out {counted(len(names), 'hidden file')}: {', '.join(names[:SHOWN])}{more}")
    return remarks + _near_remarks(reading)


def skipped_records(reading: Reading) -> list[str]:
    """What of a corpus's source is in neither split, and why, one clause each."""
    remarks = []
    if reading.null:
        remarks.append(f"skipped {counted(reading.null, 'record')} whose text is null")
    if reading.empty:
        remarks.append(f"skipped {counted(reading.empty, 'empty document')}")
    if reading.withheld:
        remarks.append(f"skipped {counted(reading.withheld, 'document')} that another corpus holds out")
    if reading.long:
        remarks.append(f"skipped {counted(reading.long, 'pair')} longer than a sequence")
    if reading.equal:
        remarks.append(f"skipped {counted(reading.equal, 'pair')} with two equal responses")
    if reading.asked:
        remarks.append(f"skipped {counted(reading.asked, 'pair')} whose prompt is held out")
    return remarks


def _near_remarks(reading: Reading) -> list[str]:
    if reading.near is None:
        return []
    if reading.sampled:
        share = reading.near / reading.sampled
        return [f"{share:.1%} of documents have a near copy ({reading.near:,} of {reading.sampled:,} sampled)"]
    words = counted(reading.near, "near copy", "near copies")
    return [f"dropped {words} of training documents and {reading.leaked:,} of held-out documents"]
