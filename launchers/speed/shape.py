"""What decides how fast a step of a stage is on one kind of processor, read from recipes, so that it is known without torch."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.results.store.runs import Store

Recipe = Mapping[str, Any]


def path_of(store: Store, spec: Mapping[str, Any]) -> list[Recipe]:
    """The recipes of a registered stage and of the stages that it starts from, root first. Raises DamageError."""

    def upwards() -> Iterator[Recipe]:
        found = spec
        while True:
            yield found["recipe"]
            if found["parent"] is None:
                return
            found = store.run(found["parent"]).spec()

    return list(upwards())[::-1]


def steps_so_far(path: Sequence[Recipe]) -> int:
    """The steps of a stage and of the stages that it starts from; early stopping may end some of them sooner."""
    return sum(recipe["steps"] for recipe in path)


def step_shape(path: Sequence[Recipe], execution: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but processor and versions that decides how long a step on CPUs takes, of a stage at the end of a path."""
    recipe = path[-1]
    own = -(-recipe["batch"] // execution["devices"])
    return {
        "model": path[0]["model"],
        "lora": recipe.get("lora") if recipe.get("method") == "lora" else None,
        "length": recipe["sequence_length"],
        "sequences": min(execution["micro_batch"] or own, own),
        "dropout": recipe["dropout"] > 0,
        "documents": "documents" in recipe,
        "optimizer": recipe.get("optimizer", "adamw"),
        "checkpointing": execution.get("checkpointing", False),
        "threads": execution["threads"],
    }


def shape_words(shape: Mapping[str, Any]) -> str:
    """A shape in a few words, for the doctor."""
    model = shape["model"]
    sizes = [model[name] for name in ("layers", "hidden") if name in model]
    what = f"{sizes[0]} layers of width {sizes[1]}" if len(sizes) == 2 else str(model.get("family", "a checkpoint"))
    return f"{what}, {shape['sequences']} x {shape['length']} tokens"


def place_of(folder: Path, shape: Mapping[str, Any]) -> Path:
    """The file in which a user's private folder keeps the speeds of a shape."""
    text = json.dumps(shape, sort_keys=True)
    return folder / "steps" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
