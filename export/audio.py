"""What the tasks on sound have in common offline: feature extractors, graphs that see no padding, recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engine.audio.example import wav
from engine.tasks import DEFAULT_LIMITS
from engine.tensors import Array, Row
from export.command.said import needing, quiet
from export.errors import Refused
from export.exporters import trace_module
from export.model_files.json_files import FLAG, NUMBER, RATE, SIZE, check_keys, processor_file
from export.nodes import Axes, value_info
from export.source import DYNAMO, OPTIMUM, TORCHSCRIPT
from export.tasks.base import ExportTask, Layout, Probe

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from export.recipe import Recipe
    from export.source import Source

LONGEST_DEFAULT_S = 30
"""Seconds that a speech model takes at once: longer than what such models are trained on, and attention's cost grows
with the square of the length. Longer recordings are transcribed in windows."""

LONGEST_CHECKED_S = 5.0
_ARCHITECTURES = (
    "audio-spectrogram-transformer",
    "data2vec-audio",
    "hubert",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wav2vec2-conformer",
    "wavlm",
)
"""Of which it was tested that padding changes nothing. SEW, for one, averages neighbouring frames."""

_KINDS = {"Wav2Vec2FeatureExtractor": "waveform", "ASTFeatureExtractor": "fbank"}


class AudioExport(ExportTask):
    """A task whose rows are recordings."""

    options: ClassVar[tuple[str, ...]] = ("max_length",)
    may_miss: ClassVar[tuple[str, ...]] = ("masked_spec_embed",)  # for training
    reads: ClassVar[str] = "sound"
    unit: ClassVar[str] = "recordings"
    length_unit: ClassVar[str] = "frames"

    def input_axes(self) -> Mapping[str, tuple[str, Axes]]:
        """What the model hears, and of how many samples it is; `head` names the axes that depend on the model."""
        return {"input_values": ("float32", ("batch", "length")), "input_length": ("int32", ("batch",))}

    def exporters(self, config: Any) -> Sequence[str]:
        """Torch's two for speech models; optimum knows those that read spectrograms."""
        return (TORCHSCRIPT if hasattr(config, "conv_kernel") else OPTIMUM, DYNAMO)

    def check(self, model: str, config: Any) -> None:
        """Refuse what makes frames otherwise than the worker counts them, or lets padding through."""
        if config.model_type not in _ARCHITECTURES:
            raise Refused(f"{model} is a {config.model_type}; the worker takes {', '.join(_ARCHITECTURES)}")
        for name in ("add_adapter", "conv_pos_batch_norm"):
            if getattr(config, name, False):
                raise Refused(
                    f"{model} has {name} in its config.json, which the worker does not support; choose another model"
                )

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The feature extractor."""
        from transformers import AutoFeatureExtractor

        with needing(model, "feature extractor that can be loaded"):
            found = AutoFeatureExtractor.from_pretrained(
                folder, trust_remote_code=recipe.trust_remote_code, local_files_only=True
            )
        if type(found).__name__ not in _KINDS:
            raise Refused(f"{model} has a {type(found).__name__}; the worker has {' and '.join(_KINDS)}")
        keys = {"sampling_rate": RATE, "do_normalize": FLAG}
        if _kind(found) == "fbank":
            keys |= {"num_mel_bins": SIZE, "max_length": SIZE, "mean": NUMBER, "std": NUMBER}
        check_keys(processor_file(folder), vars(found), keys, all_needed=True)
        return {"processor": found}

    def max_length(
        self, recipe: Recipe, layout: Layout, processors: Mapping[str, Any], config: Any, positions: int | None
    ) -> int:
        """Frames in `--max-length` seconds; 1 for spectrograms, whose size is fixed."""
        if _kind(processors["processor"]) == "fbank":
            if recipe.max_length is not None:
                raise Refused("--max-length means nothing to a model that reads spectrograms; leave it out")
            return 1
        field, stride = frame(config)
        rate = processors["processor"].sampling_rate
        return max(1, (_seconds(recipe, config, rate) * rate - field) // stride + 1)

    def asked_length(self, recipe: Recipe, source: Source) -> int | None:
        """In seconds, not in frames."""
        if _kind(source.processor) == "fbank":
            return None
        return _seconds(recipe, source.config, source.processor.sampling_rate)

    def describe(self, source: Source) -> str:
        """Architecture, rate and length."""
        seconds = ""
        if _kind(source.processor) == "waveform":
            seconds = f", up to {source.max_length * frame(source.config)[1] / source.processor.sampling_rate:.0f} s"
        return f"{source.architecture}, {source.processor.sampling_rate} Hz{seconds}"

    def trace(self, source: Source, folder: Path) -> Path:
        """Speech models are traced with their true length as an input; see export/speech.py."""
        if _kind(source.processor) == "fbank":
            return super().trace(source, folder)
        from export.speech import with_lengths

        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            traced = with_lengths(source.load_model(), frame(source.config))
        return trace_module(source, traced, folder / "model.onnx")

    def adapt(self, nodes: Any, name: str, traced_dtype: int, source: Source) -> None:
        """As they are, with the axes of this model."""
        shape: Axes = ("batch",)
        if name == "input_values" and _kind(source.processor) == "fbank":
            shape = ("batch", source.processor.max_length, source.processor.num_mel_bins)
        elif name == "input_values":
            field, stride = frame(source.config)
            shape = ("batch", f"{stride}*length+{field - 1}")
        declared = next(tensor for tensor in nodes.graph.input if tensor.name == name)
        declared.CopyFrom(value_info(name, self.input_axes()[name][0], shape))
        super().adapt(nodes, name, traced_dtype, source)

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """The feature extractor's settings."""
        found = source.processor
        features = {"rate": found.sampling_rate, "normalize": found.do_normalize, "kind": _kind(found)}
        if features["kind"] == "fbank":
            settings = {"bins": found.num_mel_bins, "frames": found.max_length, "mean": found.mean, "std": found.std}
            return {"features": {**features, **settings}}
        field, stride = frame(source.config)
        return {"max_length": source.max_length, "features": {**features, "field": field, "stride": stride}}

    def probes(self, source: Source) -> Iterator[Probe]:
        """Sounds of many lengths; the model's inputs are those that transformers' feature extractor makes."""
        rate = source.processor.sampling_rate
        for label, samples in _sounds(rate, self._longest_s(source), self._shortest_s(source)):
            heard = samples.astype(np.float32) / 32768
            inputs = source.processor(heard, sampling_rate=rate, return_tensors="pt")
            yield Probe(label, {"audio": wav(samples, rate)}, [inputs])

    def inputs_of(self, source: Source, payload: Json, rows: Sequence[Row]) -> Sequence[Mapping[str, Any]] | None:
        """What transformers' feature extractor makes of the samples that the worker decodes, and cuts into windows."""
        online: Any = self.online  # of tasks in general only the protocol is known
        task = online(self.task_config(source, {}), DEFAULT_LIMITS)
        task.features = heard = _Heard(task.features)
        task.preprocess(task.parse(payload))
        rate = source.processor.sampling_rate
        return [source.processor(samples, sampling_rate=rate, return_tensors="pt") for samples in heard.samples]

    def _longest_s(self, source: Source) -> float:
        if _kind(source.processor) == "fbank":
            return LONGEST_CHECKED_S
        return min(LONGEST_CHECKED_S, source.max_length * frame(source.config)[1] / source.processor.sampling_rate)

    def _shortest_s(self, source: Source) -> float:
        samples = 400 if _kind(source.processor) == "fbank" else frame(source.config)[0]
        return float(samples / source.processor.sampling_rate)


class _Heard:
    """The worker's features, and the samples that they were made of, row by row."""

    def __init__(self, features: Any) -> None:
        self._features = features
        self.samples: list[Array] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._features, name)

    def row(self, samples: Array, field: str) -> Row:
        """As the worker makes it."""
        self.samples.append(samples)
        row: Row = self._features.row(samples, field)
        return row


def frame(config: Any) -> tuple[int, int]:
    """Samples that one frame is made of, and samples from one to the next, by the convolutions of a speech model."""
    field = 1 + sum(
        (kernel - 1) * prod(config.conv_stride[:number]) for number, kernel in enumerate(config.conv_kernel)
    )
    return field, prod(config.conv_stride)


def _seconds(recipe: Recipe, config: Any, rate: int) -> int:
    """Seconds of the longest recording: what was asked for, else the default, or what the model takes if that is less.

    A graph has the relative positions of conformers as a table of `max_source_positions`, which PyTorch makes longer as
    it needs. Raises Refused for more.
    """
    asked = recipe.max_length or LONGEST_DEFAULT_S
    if getattr(config, "position_embeddings_type", None) != "relative":
        return asked
    field, stride = frame(config)
    most = max(1, (config.max_source_positions * stride + field - 1) // rate)
    if recipe.max_length is not None and asked > most:
        raise Refused(
            f"--max-length {asked} is more than the {most} s that the model's {config.max_source_positions} positions "
            "last; give fewer"
        )
    return min(asked, most)


def _kind(processor: Any) -> str:
    return _KINDS[type(processor).__name__]


def _sounds(rate: int, longest_s: float, shortest_s: float) -> Iterator[tuple[str, Array]]:
    """Labels and 16-bit samples, as long as they fit."""
    draw = np.random.default_rng(0)

    def time(seconds: float) -> Array:
        return np.arange(round(min(max(seconds, shortest_s), longest_s) * rate)) / rate

    def chirp(seconds: float, low: float, high: float) -> Array:
        at = time(seconds)
        return np.sin(2 * np.pi * at * (low + (high - low) * at / (2 * seconds)))

    sounds = {
        "tone": 0.5 * chirp(0.5, 440, 440),
        "chirp": 0.4 * chirp(1.0, 100, 3000),
        "quiet chirp": 0.01 * chirp(0.8, 2000, 200),
        "noise": 0.2 * draw.standard_normal(len(time(0.7))),
        "beeps": 0.5 * chirp(1.3, 300, 900) * (np.sin(2 * np.pi * 4 * time(1.3)) > 0),
        "shortest": 0.5 * chirp(shortest_s, 500, 500),
        "offset": 0.3 + 0.1 * chirp(0.41, 200, 400),
        "longest": 0.3 * chirp(longest_s, 200, 2000) + 0.05 * draw.standard_normal(len(time(longest_s))),
    }
    for label, samples in sounds.items():
        yield label, (np.clip(samples, -1, 1) * 32767).astype("<i2")
