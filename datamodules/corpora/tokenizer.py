"""Train, load and save a study's tokeniser, and identify it by a fingerprint."""

import contextlib
import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from retain.datamodules.corpora.find import local_folder
from retain.sweeps.base.documents import read_bytes
from retain.sweeps.base.errors import MissingResourceError, StudyError

if TYPE_CHECKING:
    import tokenizers

Parsed = TypeVar("Parsed")
END_OF_TEXT = "<|endoftext|>"
CHATML = "chatml"
CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
"""The special tokens of the chat template `chatml`."""
LONGEST_WORD = 10_000
"""Characters of a word that the training of a tokeniser sees as one."""
LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}}")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""The class with which AutoTokenizer reads tokenizer.json as it is. Others, such as GPT2Tokenizer of SmolLM2, keep its entries
but build the rest anew, and then split digits differently."""
JINJA = "chat_template.jinja"
"""The file with a tokeniser's chat template. Where there is none, the template is in tokenizer_config.json."""


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level tokeniser and its end-of-text token."""

    core: "tokenizers.Tokenizer"
    end_of_text: str
    chat_template: str | None = None
    """The chat template that came with it. What a template writes is in the packed corpora, so it is not in the fingerprint."""

    @property
    def end_id(self) -> int:
        number = self.core.token_to_id(self.end_of_text)
        assert number is not None
        return int(number)

    @functools.cached_property
    def vocabulary(self) -> int:
        """One more than the largest token id, added tokens included: the number of entries, unless the ids have gaps."""
        return 1 + max(self.core.get_vocab(with_added_tokens=True).values())

    @functools.cached_property
    def _literal(self) -> "tokenizers.Tokenizer":
        """The core in which the end of text is a special token, also if tokenizer.json lists it as an ordinary added one."""
        import tokenizers

        listed = self.core.get_added_tokens_decoder().get(self.end_id)
        if listed is None or listed.special:
            return self.core
        copy = tokenizers.Tokenizer.from_str(self.core.to_str())
        copy.add_special_tokens([tokenizers.AddedToken(self.end_of_text, special=True)])
        return copy

    @property
    def fingerprint(self) -> str:
        content = self.core.to_str() + "\0" + self.end_of_text
        return hashlib.sha256(content.encode()).hexdigest()[:20]

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Return the token ids of each document; uses all cores.

        A special token spelled out in a document is encoded as ordinary text: only packing inserts end-of-text tokens.
        """
        core = self._literal
        core.encode_special_tokens = True
        return [encoding.ids for encoding in core.encode_batch_fast(documents, add_special_tokens=False)]

    def encode_rendered(self, texts: list[str]) -> "list[tokenizers.Encoding]":
        """Return the tokens, with their offsets in characters, of texts that a chat template wrote; uses all cores.

        Special tokens spelled out in a text are special tokens, as in transformers' `apply_chat_template`.
        """
        self.core.encode_special_tokens = False
        return list(self.core.encode_batch(texts, add_special_tokens=False))

    def decode(self, documents: list[list[int]]) -> list[str]:
        """Return the text of each document, without special tokens; uses all cores."""
        texts: list[str] = self.core.decode_batch(documents, skip_special_tokens=True)
        return texts

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as AutoTokenizer reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.core.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": TOKENIZER_CLASS, "eos_token": self.end_of_text}
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a tokeniser from a folder with tokenizer.json and tokenizer_config.json.

    Raises StudyError if a file cannot be read or there is no end-of-text token.
    """
    import tokenizers

    settings = _read(folder / "tokenizer_config.json", lambda text: dict(json.loads(text)))
    core = _read(folder / "tokenizer.json", tokenizers.Tokenizer.from_str)
    end = settings.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    if end is None:
        end = _end_of_model(folder, core)
    if not isinstance(end, str) or core.token_to_id(end) is None:
        raise StudyError(
            f"tokenizer: {folder}: eos_token is missing in tokenizer_config.json or not in the vocabulary; choose another "
            "tokeniser"
        )
    core.no_truncation()
    core.no_padding()
    if getattr(core.model, "dropout", None):
        core.model.dropout = None  # BPE-dropout would encode a text differently each time
    jinja = folder / JINJA
    text = _read(jinja, str) if jinja.is_file() else None
    return Tokenizer(core, end, own_template(text, settings))


def saved_vocabulary(folder: Path) -> int:
    """Return `Tokenizer.vocabulary` of a tokeniser that `Tokenizer.save` has written, without the library that encodes text.

    That takes 0.1 s less, and a second less for a tokeniser of 150,000 entries. Raises StudyError if a file cannot be read, and
    LookupError, TypeError or ValueError if it is not what `save` writes.
    """
    end = _read(folder / TOKENIZER_FILES[1], json.loads)["eos_token"]
    saved = _read(folder / TOKENIZER_FILES[0], json.loads)
    entries: dict[str, int] | list[tuple[str, float]] = saved["model"]["vocab"]
    if isinstance(entries, list):
        entries = {entry[0]: number for number, entry in enumerate(entries)}
    added = {token["content"]: token["id"] for token in saved["added_tokens"]}
    if end not in added and end not in entries:
        raise ValueError(f"{end!r} is no entry")
    return 1 + int(max([*entries.values(), *added.values()]))


def own_template(jinja: str | None, settings: Mapping[str, Any]) -> str | None:
    """Return the chat template of a tokeniser, by the text of its file and by its settings; None if it has none."""
    found = jinja or settings.get("chat_template")
    if isinstance(found, list):  # several templates by name
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _end_of_model(folder: Path, core: "tokenizers.Tokenizer") -> str | None:
    """The end-of-text token by the model's config.json: the settings of GPT-2's tokeniser name none."""
    try:
        number = json.loads((folder / "config.json").read_bytes())["eos_token_id"]
        return core.id_to_token(number[0] if isinstance(number, list) else number)
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return None


def _read(path: Path, parse: Callable[[str], Parsed]) -> Parsed:
    try:
        return parse(read_bytes(path, "").decode())
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = " ".join(str(error).split()).removesuffix(";")
        raise StudyError(f"tokenizer: {path} cannot be read ({reason}); choose another tokeniser") from error


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a local tokeniser. Raises MissingResourceError if one is missing."""
    if absent := [name for name in TOKENIZER_FILES if not (folder / name).is_file()]:
        raise MissingResourceError(
            f"tokenizer.hf: {folder} has no {' and no '.join(absent)}; name a tokeniser's folder"
        )
    return [folder / name for name in TOKENIZER_FILES]


def fetch_tokenizer(name: str, revision: str | None, folder: Path) -> Tokenizer:
    """Download a tokeniser from Hugging Face, or load it from a local folder (relative to `folder`).

    Raises MissingResourceError if the download fails, StudyError if the tokeniser cannot be used.
    """
    if (local := local_folder(name, folder, "tokenizer.hf: ")) is not None:
        return load_tokenizer(local)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        files = [hf_hub_download(name, file, revision=revision) for file in TOKENIZER_FILES]
        with contextlib.suppress(EntryNotFoundError):  # most tokenisers have none
            hf_hub_download(name, JINJA, revision=revision)
    except Exception as error:
        raise MissingResourceError(
            f"tokenizer.hf: {name} cannot be downloaded ({type(error).__name__}); check id and revision, or name a local "
            "folder"
        ) from error
    return load_tokenizer(Path(files[0]).parent)


def train_tokenizer(documents: Iterable[str], entries: int, special: Iterable[str] = ()) -> Tokenizer:
    """Train a byte-level BPE of `entries` entries; end of text is entry 0. Raises StudyError if there is too little text.

    special: further special tokens, which are among the entries.
    Words of more than LONGEST_WORD characters are cut, as the time to train is quadratic in the length of a word.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[END_OF_TEXT, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    failures: list[BaseException] = []

    def train() -> None:
        try:
            core.train_from_iterator((part for document in documents for part in cut_long_words(document)), trainer)
        except BaseException as error:
            failures.append(error)

    # The library answers no signal while it trains, but Python's main thread does while it waits.
    thread = threading.Thread(target=train, name="train-tokenizer", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if failures:
        raise failures[0]
    if core.get_vocab_size() != entries:
        raise StudyError(
            f"tokenizer.train: the corpora yield only {core.get_vocab_size()} of {entries} entries; lower tokenizer.train"
        )
    return Tokenizer(core, END_OF_TEXT)


def cut_long_words(document: str) -> Iterator[str]:
    """Yield a document, cut after every LONGEST_WORD characters of a longer word or a longer blank."""
    start = 0
    if len(document) > LONGEST_WORD:
        for match in LONG_WORD.finditer(document):
            yield document[start : match.end()]
            start = match.end()
    yield document[start:]
