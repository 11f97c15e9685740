"""What transformers makes of a checkpoint's folder: whether every weight is there, and how many parameters the model has."""

from pathlib import Path
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.families.counts import ModelCounts
from retain.sweeps.schema.families.table import FAMILIES, HEAD, Family


def inspect(folder: Path, family: str, fresh: bool) -> tuple[int, int, ModelCounts]:
    """Return the rows of the embedding, the longest sequence in tokens, and the numbers of parameters.

    The model is built without memory for its weights. fresh: whether the folder has no weights, as they will be random.
    Raises StudyError if the weights are not those of the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    auto: Any = AutoModelForCausalLM  # its functions have no types
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        if fresh:
            with torch.device("meta"):
                model = auto.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
        else:
            model, found = auto.from_pretrained(
                folder,
                device_map="meta",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
            if mismatched := sorted(found["mismatched_keys"]):
                name, stored, expected = mismatched[0]
                raise StudyError(
                    f"{name} has the shape {list(stored)}, but config.json implies {list(expected)}; restore config.json and "
                    "the weights, or choose another checkpoint"
                )
            if missing := sorted(found["missing_keys"]):
                raise StudyError(
                    f"the weights lack {missing[0]} ({len(missing)} missing); restore them, or choose another checkpoint"
                )
    except StudyError:
        raise
    except Exception as error:  # transformers raises many classes
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise StudyError(
            f"transformers cannot load it ({type(error).__name__}: {reason}); choose another checkpoint"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    rows = model.get_input_embeddings().weight.shape[0]
    return int(rows), int(model.config.max_position_embeddings), count(model, FAMILIES[family])


def count(model: Any, family: Family) -> ModelCounts:
    """Return the numbers of parameters of a model."""
    from torch import nn

    matrices = [
        part
        for part in model.modules()
        if getattr(part, "weight", None) is not None and part.weight.dim() == 2 and not isinstance(part, nn.Embedding)
    ]
    layers = list(model.get_submodule(family.layers))
    head = model.get_submodule(family.head)
    adapters = dict.fromkeys((*family.projections, HEAD), 0)
    for path in family.targets(adapters):
        name = next(name for name, place in {**family.projections, HEAD: family.head}.items() if place == path)
        owners = [model] if name == HEAD else layers
        adapters[name] = sum(sum(owner.get_submodule(path).weight.shape) for owner in owners)
    output = [layer.get_submodule(family.projections["o_proj"]) for layer in layers]
    width = sum(part.weight.numel() // model.config.hidden_size for part in output)
    return ModelCounts(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        matrices=sum(part.weight.numel() for part in matrices),
        attention=width,
        head=head.weight.numel(),
        tied=head.weight is model.get_input_embeddings().weight,
        adapters=adapters,
    )
