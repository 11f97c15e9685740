"""Documents with responses: which tokens are predicted, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.datamodules.corpora.documents import is_heldout, read_documents
from retain.datamodules.corpora.packing import Division, pack
from retain.datamodules.corpora.prepared import PackedCorpus, open_packed, packed_problem
from retain.datamodules.corpora.responses.chat import CHATML_TEMPLATE, ChatTemplate
from retain.datamodules.corpora.responses.marked import Marked, encode_documents
from retain.datamodules.corpora.tokenizer import CHATML_MARKERS, Tokenizer, load_tokenizer, train_tokenizer
from retain.datamodules.order.prefetch import MappedSequences
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.corpora import Corpus
from tests.studies import documents_of

LENGTH = 16
UNTAGGED = CHATML_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
LATER_TURNS_DIFFER = (
    "{% for message in messages %}{{ message['role'] + ':' }}"
    "{% if not loop.last %}{{ '(earlier)' }}{% endif %}{{ message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXT), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(documents_of("general", 60), 300, CHATML_MARKERS)


def conversation(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def written(folder: Path, *records: Any) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, UNTAGGED])
@given(turns=TURNS)
def test_tokens_of_a_conversation_are_those_of_apply_chat_template(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, template: str, turns: list[tuple[str, str]]
) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.core, eos_token=tokenizer.end_of_text)
    found = theirs.apply_chat_template(
        conversation(turns), chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    ((numbers, predicted),) = encode_documents(tokenizer, [ChatTemplate(template).render(conversation(turns), "here")])
    assert numbers[:-1] == found["input_ids"]
    assert numbers[-1] == tokenizer.end_id
    if template == CHATML_TEMPLATE:
        assert predicted is not None
        assert predicted[:-1] == [bool(one) for one in found["assistant_masks"]]


@given(turns=TURNS)
def test_templates_without_tags_predict_the_assistants_turns_to_the_end_of_their_lines(
    tokenizer: Tokenizer, turns: list[tuple[str, str]]
) -> None:
    tagged, untagged = (
        ChatTemplate(template).render(conversation(turns), "here") for template in (CHATML_TEMPLATE, UNTAGGED)
    )
    assert untagged.text == tagged.text
    assert untagged.spans == tuple((begin, end + 1) for begin, end in tagged.spans)
    for (begin, end), content in zip(tagged.spans, [text for role, text in turns if role == "assistant"], strict=True):
        assert tagged.text[begin:end] == content + "<|im_end|>"


def test_a_template_that_does_not_show_the_assistants_turns_is_refused() -> None:
    turns = conversation([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")])
    with pytest.raises(StudyError, match=r"here, message 2: the chat template renders this turn differently"):
        ChatTemplate(LATER_TURNS_DIFFER).render(turns, "here")


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(StudyError, match=r"here: the chat template refuses the conversation \(roles must alternate\)"):
        ChatTemplate(refusing).render(conversation([("user", "a")]), "here")


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, UNTAGGED])
def test_a_template_that_asks_for_todays_date_writes_the_same_text_on_any_day(template: str) -> None:
    dated = "{{ 'Today is ' + strftime_now('%d %b %Y') + '. ' }}" + template
    turns = conversation([("user", "a"), ("assistant", "b")])
    text = ChatTemplate(dated).render(turns, "here").text
    assert text == "Today is 26 Jul 2024. " + ChatTemplate(template).render(turns, "here").text


@given(prompt=TEXT, response=TEXT)
def test_exactly_the_response_and_the_end_of_text_are_predicted(
    tokenizer: Tokenizer, prompt: str, response: str
) -> None:
    text = prompt + response
    ((numbers, predicted),) = encode_documents(tokenizer, [Marked(text, ((len(prompt), len(text)),), rendered=False)])
    assert predicted is not None
    alone = [tokenizer.encode([part])[0] for part in (prompt, response)]
    assert numbers == [*alone[0], *alone[1], tokenizer.end_id]
    assert predicted == [False] * len(alone[0]) + [True] * (len(alone[1]) + 1)


def packed(tokenizer: Tokenizer, documents: list[Marked], folder: Path, masked: bool = True) -> PackedCorpus:
    division = Division(0.2, 0.2)
    return pack(documents, tokenizer, LENGTH, division, None, folder, lambda *_: None, masked)


def question(number: int, answer: str) -> Marked:
    prompt = f"Q: {number}?\nA:"
    return Marked(prompt + answer, ((len(prompt), len(prompt + answer)),), rendered=False)


@settings(max_examples=20)
@given(answers=st.lists(TEXT, min_size=1, max_size=30))
def test_the_mask_stays_beside_its_tokens_through_packing_and_reading(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, answers: list[str]
) -> None:
    documents = [question(number, answer) for number, answer in enumerate(answers)]
    corpus = packed(tokenizer, documents, tmp_path_factory.mktemp("any") / "corpus")
    encoded = {document.text: encode_documents(tokenizer, [document])[0] for document in documents}
    for split, held in (("train", False), ("heldout", True)):
        pairs = [
            (token, mark)
            for text, (tokens, marks) in encoded.items()
            if is_heldout(text, 0.2) == held
            for token, mark in zip(tokens, marks or [], strict=True)
        ]
        whole = pairs[: len(pairs) // LENGTH * LENGTH]
        found = MappedSequences(corpus.sequences(split), corpus.mask(split)).read(np.arange(corpus.count(split)))
        assert found.flatten().tolist() == [token if mark else ~token for token, mark in whole]
        assert corpus.predicted(split) == sum(mark for place, (_, mark) in enumerate(whole) if place % LENGTH)


def test_a_mask_is_part_of_the_fingerprint_and_its_damage_is_detected(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [question(number, " so it is") for number in range(60)]
    responses = packed(tokenizer, documents, tmp_path / "responses")
    everything = packed(tokenizer, documents, tmp_path / "all", masked=False)
    assert (responses.sequences("train") == everything.sequences("train")).all()
    assert responses.fingerprint != everything.fingerprint
    assert not list(everything.folder.glob("*.mask"))
    folder = responses.folder.rename(tmp_path / responses.fingerprint)
    assert open_packed(folder).masked
    assert packed_problem(folder) is None
    content = bytearray((folder / "train.mask").read_bytes())
    content[5] ^= 1
    (folder / "train.mask").write_bytes(content)
    assert packed_problem(folder) == "train.mask is damaged; delete the folder and prepare the study's data again"


def test_conversations_that_hold_the_end_of_text_are_known(tokenizer: Tokenizer, tmp_path: Path) -> None:
    inside = Tokenizer(tokenizer.core, "<|im_end|>")
    turns = conversation([("user", "a"), ("assistant", "b")])
    chats = [
        ChatTemplate(CHATML_TEMPLATE).render([*turns, *conversation([("user", str(n))])], "here") for n in range(9)
    ]
    assert packed(inside, chats, tmp_path / "inside").ends_inside
    assert not packed(tokenizer, chats, tmp_path / "outside").ends_inside


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("hello", "line 1: field 'chat' is text, expected a list of messages"),
        (["hello"], "line 1, message 1: expected an object with role and content (got str)"),
        ([{"role": "user"}], "line 1, message 1: field 'content' not found (the fields are role)"),
        ([{"role": "user", "content": 5}], "line 1, message 1: field 'content' is of type int, expected text"),
        ([{"role": "user", "content": None}], "line 1, message 1: field 'content' is null, expected text"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_place(tmp_path: Path, value: Any, problem: str) -> None:
    folder = written(tmp_path, {"chat": value})
    with pytest.raises(StudyError) as refused:
        list(read_documents(Corpus(files="a.jsonl", messages="chat"), folder, ChatTemplate(CHATML_TEMPLATE)))
    assert problem in str(refused.value)


def test_an_empty_conversation_is_skipped_as_an_empty_text_is(tmp_path: Path) -> None:
    folder = written(tmp_path, {"chat": []}, {"chat": conversation([("user", "a"), ("assistant", "b")])})
    corpus = Corpus(files="a.jsonl", messages="chat")
    (only,) = read_documents(corpus, folder, ChatTemplate(CHATML_TEMPLATE))
    assert isinstance(only, Marked)
    assert [only.text[begin:end] for begin, end in only.spans] == ["b<|im_end|>"]


def test_instructions_of_packages_are_conversations_too() -> None:
    chat = next(
        read_documents(Corpus(package="instructions", messages="messages"), Path(), ChatTemplate(CHATML_TEMPLATE))
    )
    plain = next(read_documents(Corpus(package="instructions"), Path()))
    assert isinstance(chat, Marked)
    assert isinstance(plain, str)
    ((begin, end),) = chat.spans
    assert plain.endswith(chat.text[begin:end].removesuffix("<|im_end|>"))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"prompt": "{a}"}, "response: missing beside prompt"),
        ({"response": "{a}"}, "prompt: missing beside response"),
        ({"response": "x", "prompt": "{a}"}, "names no field"),
        ({"messages": "m", "text": "t"}, "messages: cannot be combined with text"),
        ({"messages": "m", "prompt": "{a}", "response": "{b}"}, "response: cannot be combined with messages"),
        ({"predict": "responses"}, "predict: the corpus has no responses"),
        ({"heldout": {"split": "validation"}}, "heldout.split: valid only for hf sources"),
        ({"heldout": {}}, "give either split: NAME or files: PATHS"),
        ({"heldout": {"files": []}}, "files: the list is empty"),
        ({"heldout": 1.5}, "must be less than 1 (got 1.5)"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        Corpus(files="a.jsonl", **fields)
    assert problem in str(refused.value)


def test_a_tokenisers_template_is_read_from_its_folder_as_transformers_does(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from retain.datamodules.corpora.responses.chat import chat_source, find_chat_template
    from retain.sweeps.schema.corpora import Tokenizer as Settings

    tokenizer.save(tmp_path)
    setup = Settings(hf=str(tmp_path))
    with pytest.raises(StudyError, match=r"has no chat template; set tokenizer\.chat_template: chatml"):
        find_chat_template(setup, tmp_path)
    before = chat_source(setup, tmp_path)
    template = "{{ bos_token }}{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|im_start|>"}))
    assert chat_source(setup, tmp_path) != before
    turns = conversation([("user", "a"), ("assistant", "b")])
    rendered = find_chat_template(setup, tmp_path).render(turns, "here")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert rendered.text == theirs.apply_chat_template(turns, tokenize=False)
    ((numbers, _),) = encode_documents(load_tokenizer(tmp_path), [rendered])
    assert numbers == theirs.apply_chat_template(turns, return_dict=True)["input_ids"]
