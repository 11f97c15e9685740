"""The runs that prepare a large corpus: one for each part, and one that puts the parts together."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retain.datamodules.corpora.parts.assemble import distinct_tokens
from retain.datamodules.corpora.parts.budget import Made
from retain.datamodules.corpora.parts.plan import ASSEMBLY, STAGE, CutCorpus
from retain.datamodules.corpora.parts.request import reads_of
from retain.datamodules.corpora.parts.stored import is_part, open_part
from retain.datamodules.corpora.prepared import packed_corpus
from retain.datamodules.corpora.sources import FORMAT, corpus_source, read_note
from retain.launchers.kinds import ASSEMBLE, PREPARE, described
from retain.launchers.planning.data_room import BYTES_OF_TOKEN
from retain.launchers.planning.register import installed_versions
from retain.results.store.runs import Store
from retain.results.store.state import PART, STOPPED
from retain.results.store.study_files import PREPARATION, study_folder
from retain.sweeps.base.documents import write_document
from retain.sweeps.base.errors import DamageError
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.keys import canonical, stage_key
from retain.sweeps.tree.tree import Stage, Tree


@dataclass(frozen=True)
class Preparation:
    """The runs that prepare a corpus of a study, packed at one or more lengths."""

    file: StudyFile
    cut: CutCorpus
    lengths: tuple[int, ...]

    def part_stages(self, keys: Collection[str]) -> dict[str, Stage]:
        """The runs of parts as stages, in the order in which a budget uses them up."""
        every = self.cut.keys
        return {
            key: Stage(
                key,
                STAGE,
                None,
                canonical(self.cut.recipe(part)),
                part.bytes // BYTES_OF_TOKEN,
                {"corpus": self.cut.name, "part": f"{number} of {len(every)}"},
            )
            for number, (key, part) in enumerate(every.items(), 1)
            if key in keys
        }

    def assemblies(self, needs: Sequence[str]) -> dict[str, Stage]:
        """The runs that put parts together, as stages, one for each length. needs: the keys of the parts."""
        found = {}
        for length in self.lengths:
            source = corpus_source(self.file, self.cut.name, length, self.cut.tokenizer)
            recipe = canonical({"format": FORMAT, "source": source})
            key = stage_key(ASSEMBLY, None, recipe)
            tokens = self.cut.corpus.tokens or sum(part.bytes for part in self.cut.cut.parts) // BYTES_OF_TOKEN
            axes = {"corpus": self.cut.name, "sequence_length": length}
            found[key] = Stage(key, ASSEMBLY, None, recipe, tokens, axes, tuple(needs))
        return found

    def made(self, store: Store) -> dict[str, Made]:
        """The parts that are prepared, by key. Raises DamageError."""
        keys = [key for key in self.cut.keys if is_prepared(store, key)]
        parts = (open_part(store.run(key).folder / PART) for key in keys)
        counts = distinct_tokens(parts, self.cut.division)
        return {key: Made(tokens, trained) for key, (tokens, trained) in zip(keys, counts, strict=True)}

    def register(
        self, stages: Mapping[str, Stage], store: Store, execution: Mapping[str, Any], assembly: str | None = None
    ) -> None:
        """Enter runs into the store, and plan those again that have ended without their result being there.

        assembly: the run that needs the parts in the order in which a budget uses them up. A part that starts when those before
        it reach the budget is then left out.
        """
        reads, versions = reads_of(self.file, self.cut), installed_versions()
        if assembly is not None and self.cut.corpus.tokens is not None:
            shares = {"heldout": self.cut.division.heldout, "withheld": self.cut.withheld}
            reads["budget"] = {"assembly": assembly, "tokens": self.cut.corpus.tokens, **shares}
        for stage in stages.values():
            kind = PREPARE if stage.stage == STAGE else ASSEMBLE
            spec = {
                "key": stage.key,
                "format": FORMAT,
                "stage": stage.stage,
                "parent": None,
                "recipe": self.cut.recipe(self.cut.keys[stage.key])
                if kind is PREPARE
                else {"format": FORMAT, "source": self._source(stage)},
                **described(kind, stage.tokens, stage.needs),
                "evaluation": {},
                "tokenizer": self.cut.tokenizer,
                "execution": dict(execution),
                "axes": stage.axes,
                "study": self.file.study.study,
                "versions": versions,
                "reads": reads,
            }
            run = store.run(stage.key)
            gone = run.is_done() and (
                not is_prepared(store, stage.key) if kind is PREPARE else not self.is_packed(store, stage)
            )
            if gone or run.state().state in STOPPED:
                run.retry(reopen=gone)
            store.register(stage.key, spec)

    def _source(self, stage: Stage) -> dict[str, Any]:
        return corpus_source(self.file, self.cut.name, stage.axes["sequence_length"], self.cut.tokenizer)

    def is_packed(self, store: Store, stage: Stage) -> bool:
        """Whether the packed corpus of an assembly is in the store."""
        note = read_note(store.root, self._source(stage))
        try:
            return note is not None and bool(packed_corpus(store.root, note.fingerprint))
        except DamageError:
            return False

    def tree(self, stages: Mapping[str, Stage]) -> Tree:
        """Runs as a tree, which launchers work on."""
        return Tree(self.file.study.study, dict(stages), [], provisional=False)


def record_runs(store: Store, study: str, keys: Sequence[str]) -> None:
    """Note which runs prepare the data of a study, for status, cancel and retry."""
    place = study_folder(store.root, study) / PREPARATION
    place.parent.mkdir(parents=True, exist_ok=True)
    write_document(place, {"keys": list(dict.fromkeys(keys))})


def is_prepared(store: Store, key: str) -> bool:
    """Whether a part is done, and its files are there."""
    run = store.run(key)
    return run.is_done() and is_part(run.folder / PART)
