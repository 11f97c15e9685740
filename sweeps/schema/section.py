"""The base of every section of a study file, and the types that several sections use."""

import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from retain.sweeps.base.redaction import redacted_values
from retain.sweeps.base.units import parse_number, parse_size, shortened

TOO_LARGE = 2**63
"""The smallest whole number that is too large for the 64 bits in which libraries count."""


def read_number(value: Any) -> Any:
    """A number, or the number that a text holds. Raises ValueError for anything else, and for NaN and infinities."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a number (got {shown_value(value)}); write a number, such as 3 or 0.5")
    number = parse_number(value.strip()) if isinstance(value, str) else value
    if isinstance(number, int) and abs(number) >= TOO_LARGE:
        raise ValueError("the number does not fit in 64 bits; write a smaller one")
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number (got {number:g})")
    return number


def read_whole(value: Any) -> Any:
    """`read_number` for a whole number, such as 3 or 1e3."""
    number = read_number(value)
    if number != int(number):
        raise ValueError(f"expected a whole number (got {number:g}); write one without a fraction")
    return read_number(int(number))


def shown_value(value: Any) -> str:
    """A value of a study file for a sentence, shortened if it is long, without the passwords of URLs."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(redacted_values(value))


def read_list(value: Any) -> Any:
    """A value as a list: one value is a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def check_name(name: str) -> str:
    """A study's name, which is also that of a folder. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
        raise ValueError(
            f"{shortened(name)!r} is not a name; write up to 200 letters, digits, dots, underscores and hyphens, "
            "with a letter or digit first"
        )
    return name


def check_path(path: str) -> str:
    """A path or an id that is not empty, with names that file systems allow. Raises ValueError."""
    if not path.strip():
        raise ValueError("the text is empty; write a path or an id, or remove the field")
    if "://" in path:
        raise ValueError(f"{shortened(path)!r} is a URL; write an id, as in OWNER/NAME, or a path")
    if any(len(name.encode(errors="surrogateescape")) > 255 for name in path.split("/")):
        raise ValueError(
            f"{shortened(path)!r} has a name of more than 255 bytes, which file systems do not allow; shorten it"
        )
    return path


Whole = Annotated[int, BeforeValidator(read_whole)]
Number = Annotated[float, BeforeValidator(read_number)]
Size = Annotated[int, BeforeValidator(parse_size)]
"""A number of tokens, such as 200k or 8.7B."""
Fraction = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(ge=0, lt=1)]
Positive = Annotated[Whole, Field(gt=0)]
PositiveFloat = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, lt=TOO_LARGE)]
Name = Annotated[str, AfterValidator(check_name)]
PathText = Annotated[str, AfterValidator(check_path)]
Grid = dict[str, Annotated[list[Any], BeforeValidator(read_list)]]

STAGE_KINDS = ("pretrain", "posttrain", "finetune")
"""The paper's stages, in the order in which a trial trains them. The name of each is also its kind."""
FURTHER = "further"
"""The kind of every other stage of a chain. Its name is the user's, and does not enter its stage key."""
FISHER = "fisher"
"""The name of the runs that estimate the Fisher information for an anchor. No stage of a chain may have it."""
REFERENCE = "reference"
"""The name of the runs that compute the reference log-probabilities of pairs. No stage of a chain may have it."""
GROUNDWORK = (FISHER, REFERENCE)
"""The names of the runs that stages need besides the stage before them. They train nothing and are not in the chain."""


LOSSES = (
    "immediate_posttraining_loss",
    "retained_posttraining_loss",
    "finetuning_loss",
    "retained_pretraining_loss",
)
"""The paper's four losses of a trial (Section 3), in nats per token. Lower is better."""
PAIR_MEASURES: Mapping[str, bool] = {"dpo_loss": False, "accuracy": True, "margin": True}
"""What is measured on held-out pairs, as STAGE/CORPUS/MEASURE, and whether higher is better."""
Loss = Annotated[str, Field(min_length=1)]
"""The name of a loss: one of the paper's four, or STAGE/CORPUS (`loss_name`). Only a study knows which ones it has."""


def in_one_order(chains: Iterable[Sequence[str]]) -> list[str]:
    """The stages of several chains in one order: each comes after the stage that it follows in the first chain with it."""
    names: list[str] = []
    for chain in dict.fromkeys(map(tuple, chains)):
        for place, name in enumerate(chain):
            if name not in names:
                names.insert(names.index(chain[place - 1]) + 1 if place else 0, name)
    return names


def loss_name(stage: str, corpus: str) -> str:
    """The name of the loss of a stage's weights on the held-out split of a corpus, as every verb writes it."""
    return f"{stage}/{corpus}"


def value_name(corpus: str, value: str) -> str:
    """The name of the part of a corpus whose documents have a value in the field `by`."""
    return f"{corpus}[{value}]"


def without_value(name: str) -> str:
    """The name of a loss without the value of `by`: that of the loss on the whole corpus."""
    return name[: name.index("[")] if name.endswith("]") and "[" in name else name


def is_metric(name: str) -> bool:
    """Whether the name of a loss is that of a task's metric: STAGE/TASK/METRIC."""
    return without_value(name).count("/") > 1


def unknown_loss(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a loss that a study does not have. Of losses by value, which may be thousands, it has one."""
    near = difflib.get_close_matches(name, known := list(known), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    whole = ((one, without_value(one)) for one in known)
    shown = dict.fromkeys(one if one == corpus else value_name(corpus, "VALUE") for one, corpus in whole)
    return f"unknown loss {shortened(name)!r}{hint}; the losses of this study are {', '.join(shown)}"


def stage_kind(name: str) -> str:
    """The kind of the stage with this name, which enters its stage key."""
    return name if name in STAGE_KINDS else FURTHER


class Section(BaseModel):
    """A frozen section of a study file. Unknown fields, infinite numbers and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)
    # Validators are built when a section is first read: building those of all sections takes longer than reading a study.
