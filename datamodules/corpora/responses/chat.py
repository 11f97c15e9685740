"""Chat templates: how a conversation is written as one text, and which characters of it the assistant wrote."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.find import local_folder
from retain.datamodules.corpora.responses.marked import Marked
from retain.datamodules.corpora.tokenizer import CHATML, END_OF_TEXT, JINJA, own_template
from retain.sweeps.base.documents import read_bytes
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.schema.corpora import Tokenizer

ASSISTANT = "assistant"
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML. The assistant's turns end with `<|im_end|>`, which is predicted; the line break after it is not."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
ASKS_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
TODAY = date(2024, 7, 26)
"""The date in templates that ask for today's: that of Llama 3's templates where they cannot ask."""
CONFIG = "tokenizer_config.json"

UNREADABLE = "make it readable, or name another tokeniser"


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the special tokens that it may name, such as bos_token."""

    text: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def dated(self) -> str:
        """The template with the date TODAY where it asks for today's, so that its tokens do not depend on the day."""
        return ASKS_DATE.sub(lambda call: json.dumps(TODAY.strftime(call[2])), self.text)

    def render(self, messages: Sequence[Mapping[str, Any]], where: str) -> Marked:
        """Return a conversation as transformers' `apply_chat_template` writes it, with the assistant's turns marked.

        Templates say with `{% generation %}` tags what the assistant wrote. For templates without them, a turn is what
        the conversation gains from the prompt for the turn to its end; that is exact only if both are beginnings of the
        whole text. Raises StudyError if they are not, or the template refuses the conversation.
        """
        whole, tagged = self._write(messages, where)
        spans = tagged if GENERATION.search(self.text) else self._turns(messages, whole, where)
        return Marked(whole, tuple((begin, end) for begin, end in spans if begin < end), rendered=True)

    def _turns(self, messages: Sequence[Mapping[str, Any]], whole: str, where: str) -> list[tuple[int, int]]:
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == ASSISTANT:
                before, _ = self._write(messages[:index], where, prompt=True)
                after, _ = self._write(messages[: index + 1], where)
                if not (whole.startswith(after) and after.startswith(before)):
                    raise StudyError(
                        f"{where}, message {index + 1}: the chat template renders this turn differently once the "
                        "conversation continues, so it does not show which tokens the assistant wrote; put {% generation %} "
                        "and {% endgeneration %} around the assistant's turns in tokenizer.chat_template"
                    )
                spans.append((len(before), len(after)))
        return spans

    def _write(
        self, messages: Sequence[Mapping[str, Any]], where: str, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of messages, and what is inside generation tags. prompt: whether to add the next turn's prompt."""
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template  # its types deny the variables of templates
        try:
            texts, tagged = render(
                [list(messages)],
                chat_template=self.dated,
                return_assistant_tokens_mask=bool(GENERATION.search(self.text)),
                add_generation_prompt=prompt,
                **self.special_tokens,
            )
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StudyError(
                f"{where}: the chat template refuses the conversation ({reason}); fix or remove the record, or set another "
                "tokenizer.chat_template"
            ) from None
        return str(texts[0]), [(int(begin), int(end)) for begin, end in (tagged[0] if tagged else ())]


def chat_source(settings: Tokenizer, folder: Path) -> dict[str, Any]:
    """Return what identifies the chat template of a tokeniser, without reading the hub; `folder` is the study file's."""
    if settings.chat_template is not None:
        return {"template": settings.chat_template, "hf": settings.hf, "revision": settings.revision}
    if settings.hf is not None and (local := local_folder(settings.hf, folder, "tokenizer.hf: ")) is not None:
        files = [local / name for name in (CONFIG, JINJA)]
        return {"files": [hashlib.sha256(read_bytes(file, UNREADABLE)).hexdigest() for file in files if file.is_file()]}
    return {"hf": settings.hf, "revision": settings.revision}


def find_chat_template(settings: Tokenizer, folder: Path) -> ChatTemplate:
    """Return the chat template of a study's tokeniser: its own field, or what comes with the tokeniser of `hf`.

    Raises StudyError if there is none, MissingResourceError if it cannot be read.
    """
    if settings.hf is None:
        given = given_template(settings)
        assert given is not None, "the study is checked for it"
        return ChatTemplate(given, {"eos_token": END_OF_TEXT})
    config = _config(settings.hf, settings.revision, folder)
    tokens = {name: _token(value) for name, value in config.items() if name.endswith("_token") and _token(value)}
    text = given_template(settings) or own_template(_read(settings.hf, settings.revision, folder, JINJA), config)
    if text is None:
        raise StudyError(
            f"the tokeniser {settings.hf} has no chat template; set tokenizer.chat_template: chatml, as in tokenizer: "
            f"{{hf: {settings.hf}, chat_template: chatml}}, or give prompt and response instead of messages"
        )
    return ChatTemplate(text, tokens)


def given_template(settings: Tokenizer) -> str | None:
    """Return the text of the chat template that a study sets; None if it sets none."""
    return CHATML_TEMPLATE if settings.chat_template == CHATML else settings.chat_template


def local_template(settings: Tokenizer, folder: Path) -> str | None:
    """Return the text of a tokeniser's chat template if the study or a local folder has it, without reading the hub."""
    given = given_template(settings)
    if given is not None or settings.hf is None or local_folder(settings.hf, folder, "tokenizer.hf: ") is None:
        return given
    return own_template(_read(settings.hf, None, folder, JINJA), _config(settings.hf, None, folder))


def _config(name: str, revision: str | None, folder: Path) -> dict[str, Any]:
    """The settings of a tokeniser; empty without the file. Raises StudyError if they cannot be read."""
    try:
        return dict(json.loads(_read(name, revision, folder, CONFIG) or "{}"))
    except (ValueError, TypeError) as error:
        raise StudyError(f"tokenizer.hf: {CONFIG} of {name} cannot be read ({error}); restore it") from None


def _token(value: Any) -> str:
    """A special token of a tokeniser's settings; empty for anything else."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _read(name: str, revision: str | None, folder: Path, file: str) -> str | None:
    """The text of a tokeniser's file, in a local folder or on the hub; None if there is no such file."""
    if (local := local_folder(name, folder, "tokenizer.hf: ")) is not None:
        try:
            return read_bytes(local / file, UNREADABLE).decode() if (local / file).is_file() else None
        except UnicodeDecodeError as error:
            raise StudyError(f"tokenizer.hf: {local / file} cannot be read ({error}); restore it") from None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, revision=revision)).read_text(encoding="utf-8")
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and file == JINJA:  # also if it is not known without network access
            return None
        raise MissingResourceError(
            f"tokenizer.hf: the chat template of {name} cannot be downloaded ({type(error).__name__}); check id and "
            "revision, or name a local folder"
        ) from error
