"""Whether a part of a corpus is beyond its budget: the number of parts was estimated from the first of them."""

from typing import Any

from retain.datamodules.corpora.packing import Division
from retain.datamodules.corpora.parts.assemble import distinct_tokens
from retain.datamodules.corpora.parts.stored import is_part, open_part
from retain.results.store.runs import Store
from retain.results.store.state import PART
from retain.sweeps.base.errors import DamageError


def is_surplus(store: Store, spec: dict[str, Any]) -> bool:
    """Whether the parts that come before this one and are prepared reach the budget of the corpus.

    A document of a part that is not prepared may be a copy of one of them. Then this part is needed after all, and the run that
    puts the parts together has it prepared.
    """
    budget = spec["reads"].get("budget")
    if budget is None:
        return False
    try:
        keys = store.run(budget["assembly"]).needs()
        before = keys[: keys.index(spec["key"])] if spec["key"] in keys else []
        found = [open_part(folder) for key in before if is_part(folder := store.run(key).folder / PART)]
        share = 1 - max(budget["heldout"], budget["withheld"])
        # Tokens are an upper bound of the distinct ones, which take longer to count.
        if share * sum(part.manifest["tokens"] for part in found) < 0.9 * budget["tokens"]:
            return False
        division = Division(budget["heldout"], budget["withheld"])
        return sum(trained for _, trained in distinct_tokens(found, division)) >= int(budget["tokens"])
    except (FileNotFoundError, DamageError):  # removed meanwhile; what is damaged is found when it is read
        return False
