"""Whatever is written into a field of a study is accepted or refused in Retain's own words, with the field."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.execution import SAME_NAME
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import check_study, read_study
from retain.sweeps.schema.search_space import SearchBlock
from retain.sweeps.schema.sites import Site, read_sites
from retain.sweeps.schema.study import Study
from retain.sweeps.schema.validation_messages import validate
from tests.studies import LINEAR, TINY, linear_study, replaced, tiny_study

ODD: list[Any] = [
    *(
        None,
        True,
        0,
        1,
        -1,
        2,
        0.5,
        1e30,
        10**18,
        10**400,
        float("nan"),
        float("inf"),
        "",
        " ",
        "a",
        "a" * 300,
        "0123",
        "12:30",
    ),
    *(
        "1_000",
        "yes",
        "\x00",
        [],
        [1],
        [1, 2],
        [0.5, 1, 2],
        ["a"],
        [None],
        [[]],
        {},
        {"a": 1},
        {"a": {"b": 1}},
        {"a": [1]},
    ),
    *({1: 2}, b"a"),
]
SEARCH = {"axes": {"finetune.lr": [1e-4, 1e-3]}}
OWN_OPTION = "execution.slurm.extra: Retain sets the option"
STARTS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "study": (Study, TINY | {"search": SEARCH}),
    "linear": (LinearStudy, LINEAR),
    "search": (SearchBlock, SEARCH),
    "site": (Site, {}),
}
FOREIGN = ("Input", "should", "valid dictionary", "Pretrain", "Field", "fields.md")
"""Words of pydantic, and the sentence for types of errors without words of their own."""


def fields_of(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted paths of all fields; a mapping has one of the names of the tiny study."""
    for name, field in section.model_fields.items():
        yield f"{above}{name}"
        kinds, names = [field.annotation], [""]
        while kinds:
            kind = kinds.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                for inner in names:
                    yield from fields_of(kind, f"{above}{name}.{inner}")
            names = {
                "corpora": ["music."],
                "mix": ["music."],
                "stages": ["pretrain."],
                "constraints": ["finetuning_loss."],
            }.get(name, names)
            kinds += get_args(kind)


def check(section: type[BaseModel], fields: dict[str, Any]) -> None:
    if section in (Study, LinearStudy):
        check_study(fields, Path("tiny.yaml"))
        return
    validate(section, fields, "")


@pytest.mark.parametrize("start", STARTS)
def test_every_odd_value_of_every_field_is_valid_or_refused_in_our_own_words(start: str) -> None:
    section, fields = STARTS[start]
    wrong, refused = [], 0
    for path, value in itertools.product(fields_of(section), ODD):
        try:
            check(section, replaced(fields, {path: value}))
        except StudyError as error:
            refused += 1
            if any(word in str(error) for word in FOREIGN) or "\n" in str(error) or len(str(error)) > 700:
                wrong.append(f"{path}={value!r:.40}: {error!s:.300}")
    assert wrong == []
    assert refused > 250


PATHS = [path for path in fields_of(Study) if not path.startswith("search.")]
VALUES = st.text(max_size=20) | st.sampled_from([*map(str, ODD), "[1, 2]", "{a: 1}", "[", "!!int x", "&a [*a]", "0x_"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=400)
@given(
    st.lists(
        st.tuples(st.sampled_from([*PATHS, "cases", "grid", "cases.x", "grid.seed", "seed.x"]), VALUES), max_size=3
    )
)
def test_any_overrides_give_a_study_or_one_sentence(study: str, pairs: list[tuple[str, str]]) -> None:
    assert_one_sentence_or_none(study, [f"{path}={value}" for path, value in pairs])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(max_size=30) | st.text("seed.=[]{},:'\"& 0123", max_size=30), max_size=2))
def test_any_text_as_an_override_gives_a_study_or_one_sentence(study: str, overrides: list[str]) -> None:
    assert_one_sentence_or_none(study, overrides)


def assert_one_sentence_or_none(study: str, overrides: list[str]) -> None:
    message = ""
    try:
        read_study(study, overrides)
    except StudyError as error:
        message = str(error)
    assert "\n" not in message
    assert not any(word in message for word in FOREIGN), message


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_study(tmp_path_factory.mktemp("study")))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("evaluation={}", "evaluation: unknown field; Retain measures held-out losses only; remove the field"),
        (
            "finetune.schedule=wsd",
            "finetune.schedule: unknown schedule 'wsd'; write cosine, linear, constant, or {wsd:",
        ),
        ("finetune.schedule={wsd: 0}", "finetune.schedule: wsd is a share of the stage, above 0 and at most 1 (got 0)"),
        ("finetune.schedule={wsd: 2}", "finetune.schedule: wsd is a share of the stage, above 0 and at most 1 (got 2)"),
        ("finetune.schedule={share: 0.1}", "finetune.schedule: unknown schedule {'share': 0.1}; write cosine"),
        ("finetune.lr_scheduler=linear", "finetune.lr_scheduler: unknown field; write schedule"),
        ("finetune.optimizer=sgd", "finetune.optimizer: unknown value (got 'sgd'); write adamw or muon"),
        ("finetune.decay=none", "finetune.decay: unknown value (got 'none'); write matrices or all"),
        ("finetune.floor=up", "finetune.floor: unknown value (got 'up'); write lower or rise"),
        (
            "stages=[pretrain, decay]",
            "decay: this field is required, because `stages` names it; write its section, or leave it out of stages",
        ),
        ("stages=[pretrain, pretrain]", "stages: pretrain is named twice; give the second one a name of its own"),
        ("evaluate.corpora=[x]", "evaluate.corpora: unknown corpus 'x'; the corpora are general, music, chemistry"),
        ("model.hf=a/b", "model.hf: the checkpoint sets the architecture; remove "),
        (
            "stages=[pretrain]",
            "posttrain: no stage has this name; write stages: [pretrain, posttrain] in your order, or",
        ),
        ("posttrain.mixture={}", "posttrain.mixture: unknown field; write mix"),
        (
            "finetune.epochs=3",
            "finetune.epochs: unknown field; a stage is as long as its `tokens`, or several `passes`",
        ),
        ("finetune.learning_rate=1", "finetune.learning_rate: unknown field; write lr"),
        ("generation=1", "generation: unknown field; the known fields are study, model"),
        ("seed=12:30:00", "seed: '12:30:00' is not a number; write 45000 if it counts in sixties"),
        ("pretrain.tokens=12:30:00", "pretrain.tokens: '12:30:00' is not a size; write 45000 if it counts in sixties"),
        ("pretrain.tokens=0123", "pretrain.tokens: '0123' is not a size; write 123, or 83 if it is octal"),
        ("pretrain.tokens=1__000", "pretrain.tokens: '1__000' is not a size"),
        ("finetune.lr=0123", "finetune.lr: '0123' is not a number; write 123, or 83 if it is octal"),
        ("finetune.batch=true", "finetune.batch: expected a number (got true)"),
        ("finetune.batch=8.5", "finetune.batch: expected a whole number (got 8.5); write one without a fraction"),
        ("finetune.betas=[0.9]", "finetune.betas: too few values (got [0.9]); write at least 2"),
        ("corpora.music.revision=1234567", "corpora.music.revision: expected text (got 1234567); quote a number"),
        (
            "model={hf: https://u:p@host/a/b}",
            "model.hf: 'https://u:***@host/a/b' is a URL; write an id, as in OWNER/NAME, or a",
        ),
        ("corpora.music.files=[1]", "corpora.music.files: expected a path or a list of paths (got [1])"),
        ("execution.slurm.extra={array: 1-3}", f"{OWN_OPTION} array of every job; remove it from extra"),
        (
            "execution.slurm.extra={time: '2:00:00'}",
            f"{OWN_OPTION} time of every job; write execution.slurm.minutes instead",
        ),
        (
            "execution.slurm.extra={mem: 64G}",
            f"{OWN_OPTION} mem of every job; write the field memory_gb beside extra instead",
        ),
        ("execution.slurm.extra={--gpus: 4}", f"{OWN_OPTION} --gpus of every job; write execution.devices instead"),
        *(
            (
                f"execution.slurm.extra={{{name}: a}}",
                f"{OWN_OPTION} {name} of every job; write the field {name} beside extra",
            )
            for name in SAME_NAME
        ),
        ("execution.slurm.environment={A: [1]}", "execution.slurm.environment.A: expected text (got [1])"),
        (f"study={'a' * 300}", "study: 'aaaa"),
        (f"tokenizer={{hf: {'a' * 300}}}", "tokenizer.hf: 'aaaa"),
    ],
)
def test_a_wrong_field_or_value_is_named_with_the_cure(study: str, override: str, sentence: str) -> None:
    with pytest.raises(StudyError) as caught:
        read_study(study, [override])
    assert str(caught.value).startswith(f"tiny.yaml: {sentence}")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (" finetune.lr=1", "spaces or an empty name in the path"),
        ("finetune.lr =1", "spaces or an empty name in the path"),
        ("finetune..lr=1", "spaces or an empty name in the path"),
        ("finetune.lr=", "no value after =; write finetune.lr=null to unset the field"),
        ("finetune.lr= ", "no value after ="),
    ],
)
def test_an_empty_or_padded_override_is_said_to_be_so(study: str, override: str, sentence: str) -> None:
    with pytest.raises(StudyError) as caught:
        read_study(study, [override])
    assert str(caught.value).startswith(f"{override!r}: {sentence}")


def test_one_value_of_a_grid_axis_is_one_value(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    tiny_study(tmp_path)
    path.write_text(path.read_text() + "  seed: 3\n")
    assert read_study(str(path)).axes["seed"] == [3]
    assert read_study(str(path), ["grid.finetune.lr=5e-5"]).axes["finetune.lr"] == [5e-5]


def test_cases_may_have_names_that_look_like_other_values(tmp_path: Path) -> None:
    cases = "cases: {rate: {1e-4: {finetune.lr: 1e-4}, no: {finetune.lr: 2e-4}, 010: {finetune.lr: 3e-4}}}\n"
    path = tmp_path / "tiny.yaml"
    tiny_study(tmp_path, grid={})
    path.write_text(path.read_text() + cases)
    assert [option.labels["rate"] for option in read_study(str(path)).cases["rate"]] == ["1e-4", "no", "010"]
    assert [option.labels["rate"] for option in read_study(str(path), ["rate=[no, 010]"]).cases["rate"]] == [
        "no",
        "010",
    ]


def test_variables_and_options_of_jobs_are_kept_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = "{T: true, N: no, F: 12.10, O: 0123, M: 12:30, Q: '1', E: 1e3, D: 2024-13-01}"
    kept = {"T": "true", "N": "no", "F": "12.10", "O": "0123", "M": "12:30", "Q": "1", "E": "1e3", "D": "2024-13-01"}
    slurm = f"slurm: {{environment: {values}, extra: {{exclusive: false, hold: true, tmp: 010}}}}"
    (tmp_path / "sites.yaml").write_text(f"north:\n  environment: {values}\n")
    monkeypatch.setenv("RETAIN_SITES", str(tmp_path / "sites.yaml"))
    assert read_sites()["north"].environment == kept
    path = tiny_study(tmp_path)
    path.write_text(f"{path.read_text()}execution:\n  {slurm}\n  stages: {{finetune: {{{slurm}}}}}\n")
    for override in ([], [f"execution.slurm.environment={values}"], ["execution.slurm.environment.F=12.10"]):
        execution = read_study(str(path), override).study.execution
        assert execution.slurm.environment == execution.of_stage("finetune").slurm.environment == kept
    for text in ("mlx5_0:1,mlx5_1:1", "*", "#1", "[a", "a: b", "&x", "-0.0e00"):
        execution = read_study(str(path), [f"execution.slurm.environment.T={text}"]).study.execution
        assert execution.slurm.environment == kept | {"T": text}
    assert execution.slurm.extra == {"exclusive": False, "hold": True, "tmp": "010"}


def test_a_study_of_too_many_trials_is_refused_before_it_is_expanded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = linear_study(tmp_path)
    axes = [f"seed=[{', '.join(map(str, range(1000)))}]", "pretrain.exposure=[0, 1]", "finetune.lr=[1e-2]"]
    read_study(str(path), axes)
    assert capsys.readouterr().err == ""
    more = [f"posttrain.time=[{', '.join(map(str, range(1, 51)))}]"]
    read_study(str(path), axes + more)
    assert "linear.yaml: 100,000 trials; expanding them takes about 10s" in capsys.readouterr().err
    with pytest.raises(StudyError, match=r"linear\.yaml: 10,000,000 trials are more than the 1,000,000"):
        read_study(str(path), [*axes, *more, f"posttrain.lr=[{', '.join(map(str, range(1, 101)))}]"])
