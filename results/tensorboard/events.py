"""TensorBoard's event files of a study: axes as hyperparameters, groups of charts, figures as images."""

import hashlib
import io
import json
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.results.store.curves import heldout_curve, training_curve
from retain.sweeps.schema.section import LOSSES
from retain.sweeps.tree.heldout_splits import role_of

MOST_VALUES = 100
"""An axis with more values is filtered by a range: otherwise every run's event file would hold all values."""
Axes = Mapping[str, Any]
_FIELDS = {bool: "bool_value", float: "number_value", str: "string_value"}
"""The field of protobuf's Value that holds a hyperparameter, by the type of its value."""


def stage_metric(stage: str, split: str) -> str:
    """The name of a loss of a stage's weights as a metric: `posttrain/posttraining` after post-training on its corpus."""
    return f"{stage}/{split}"


def study_hyperparameters(study: str, trials: Sequence[Axes], metrics: Sequence[str] = LOSSES) -> Any:
    """A summary that declares a study's hyperparameters (its axes with their values) and its metrics.

    trials: the axes of each trial. metrics: the names of losses; by default the four of a trial.
    """
    values: dict[str, dict[Any, None]] = {}
    for axes in map(_shown_axes, trials):
        for name, value in axes.items():
            values.setdefault(name, {})[value] = None
    return _experiment(study, {name: list(shown) for name, shown in values.items()}, metrics)


def hyperparameter_summaries(values: Mapping[str, Any], losses: Sequence[str]) -> list[Any]:
    """The summaries that give one run its hyperparameters, with its losses as metrics."""
    shown = _shown_axes(values)
    return [_experiment("", {name: [value] for name, value in shown.items()}, losses), _session(shown)]


def study_events(hyperparameters: Any, figures: Sequence[Path], chain: Sequence[str]) -> tuple[str, bytes]:
    """The event file of a study: name and content.

    hyperparameters: from `study_hyperparameters`. figures: PNG files. chain: the names of the stages. The name begins with
    the seconds since 1970, so that TensorBoard reads the latest file last, and ends with `digest_of` the content.
    """
    summaries = [hyperparameters, _charts(chain), *map(_image, figures)]
    now = time.time()
    return f"events.out.tfevents.{int(now):010d}.{digest_of(summaries)}", _file(summaries, now)


def run_events_name(hyperparameters: str, axes: Axes) -> str:
    """The name of the event file that gives a run the values of its hyperparameters in one study.

    hyperparameters: the digest of the study's. The name sorts before all other event files of the run: if two files set
    hyperparameters, TensorBoard keeps those that it reads first.
    """
    digest = hashlib.sha256(json.dumps([hyperparameters, _shown_axes(axes)]).encode()).hexdigest()[:12]
    return f"events.out.tfevents.{0:010d}.{digest}"


def run_events_head(hyperparameters: Any) -> bytes:
    """The beginning of that file, the same for every run: TensorBoard reads a study's hyperparameters from any run.

    Make it once for all runs, as TensorBoard's checksum of each record is slow.
    """
    return _file([hyperparameters], time.time())


def run_events(head: bytes, axes: Axes, losses: Mapping[str, float] | None = None) -> bytes:
    """The content of that file: `run_events_head`, then the run's own values, and its losses where no other file has them."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    scalars = [Summary.Value(tag=f"losses/{name}", simple_value=loss) for name, loss in (losses or {}).items()]
    summaries = [_session(_shown_axes(axes)), *([Summary(value=scalars)] if scalars else [])]
    return head + _records([Event(wall_time=time.time(), step=0, summary=summary) for summary in summaries])


def digest_of(summaries: Sequence[Any]) -> str:
    """A digest of what an event file shows, without the time of writing; the last part of its name."""
    content = b"".join(summary.SerializeToString(deterministic=True) for summary in summaries)
    return hashlib.sha256(content).hexdigest()[:12]


def _experiment(name: str, hyperparameters: Mapping[str, Sequence[bool | float | str]], losses: Sequence[str]) -> Any:
    """A summary that declares hyperparameters with their values, and losses as metrics."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    experiment = api_pb2.Experiment(name=name)
    for parameter, values in hyperparameters.items():
        info = experiment.hparam_infos.add(name=parameter, type=_type(values))
        if len(values) <= MOST_VALUES:
            info.domain_discrete.extend(values)
    for loss in losses:
        metric = api_pb2.MetricName(tag=f"losses/{loss}")
        experiment.metric_infos.add(name=metric, display_name=loss, dataset_type=api_pb2.DATASET_VALIDATION)
    return _marker(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment))


def _session(hyperparameters: Mapping[str, bool | float | str]) -> Any:
    """A summary that gives a run the values of its hyperparameters."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    start = plugin_data_pb2.SessionStartInfo()
    for name, value in hyperparameters.items():
        setattr(start.hparams[name], _FIELDS[type(value)], value)
    return _marker(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start))


def _charts(chain: Sequence[str]) -> Any:
    """The layout of TensorBoard's custom scalars: training losses by stage, held-out losses by split."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    groups = {
        "training loss": {stage: training_curve(stage, "loss") for stage in chain},
        "held-out loss": {split: heldout_curve(split) for split in map(role_of, chain)},
    }
    layout = layout_pb2.Layout()
    for title, charts in groups.items():
        category = layout.category.add(title=title)
        for name, tag in charts.items():
            category.chart.add(title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$"]))
    value = Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=make_tensor_proto(layout.SerializeToString()),
    )
    return Summary(value=[value])


def _image(path: Path) -> Any:
    """A summary that shows a PNG file unchanged."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    content = path.read_bytes()
    # A PNG begins with a signature of 8 bytes, then the length and the name of its first chunk, then its size.
    width, height = struct.unpack(">II", content[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=content)
    return Summary(value=[Summary.Value(tag=f"figures/{path.stem}", image=image)])


def _marker(tag: str, content: Any) -> Any:
    """A summary that carries only what the hparams plugin reads."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    described = metadata.create_summary_metadata(content)
    # The metadata's own order of a mapping differs between processes, and so would the digest.
    data = plugin_data_pb2.HParamsPluginData.FromString(described.plugin_data.content)
    described.plugin_data.content = data.SerializeToString(deterministic=True)
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)])


def _file(summaries: Sequence[Any], now: float) -> bytes:
    """An event file with these summaries, all at step 0."""
    from tensorboard.compat.proto.event_pb2 import Event

    version = Event(wall_time=now, file_version="brain.Event:2")
    return _records([version, *(Event(wall_time=now, step=0, summary=summary) for summary in summaries)])


def _records(events: Sequence[Any]) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in events:
        writer.write(event.SerializeToString())
    return content.getvalue()


def _shown_axes(axes: Axes) -> dict[str, bool | float | str]:
    """Axes as hyperparameters; an axis without a value is left out."""
    return {name: _shown(value) for name, value in axes.items() if value is not None}


def _shown(value: Any) -> bool | float | str:
    """An axis's value as a hyperparameter; one with several fields becomes their JSON."""
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, int | float) else json.dumps(value)


def _type(values: Sequence[bool | float | str]) -> Any:
    from tensorboard.plugins.hparams import api_pb2

    if all(isinstance(value, bool) for value in values):
        return api_pb2.DATA_TYPE_BOOL
    if all(isinstance(value, float) for value in values):
        return api_pb2.DATA_TYPE_FLOAT64
    return api_pb2.DATA_TYPE_STRING
