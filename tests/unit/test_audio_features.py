"""Our features against transformers' feature extractors, and frames against torch's convolutions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.zoo.audio import RATE
from engine.audio.decode import LOUDEST
from engine.audio.features import Fbank, Waveform, features_from
from engine.bucket import Bucket
from engine.errors import BundleError, InvalidInput
from engine.tensors import Row, TensorSpec, fill
from tests.audio_files import sounds

WAVEFORM = {"kind": "waveform", "rate": RATE, "normalize": True, "field": 400, "stride": 320}


@pytest.fixture(scope="module")
def transformers() -> Any:
    import transformers

    return transformers


@pytest.mark.parametrize("name", sounds())
@pytest.mark.parametrize("normalize", [True, False])
def test_waveforms_equal_transformers(transformers: Any, name: str, normalize: bool):
    samples = sounds()[name]
    expected = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)(samples, sampling_rate=RATE)
    row = Waveform({**WAVEFORM, "normalize": normalize}, 2000).row(samples, "audio")
    assert np.array_equal(row.feeds["input_values"], expected["input_values"][0])
    assert row.feeds["input_values"].dtype == np.float32
    assert row.feeds["input_length"] == len(samples)


@pytest.mark.filterwarnings("ignore:At least one mel filter:UserWarning")  # 128 bins are AST's own default
@pytest.mark.parametrize("name", sounds())
@pytest.mark.parametrize(("frames", "bins", "normalize"), [(128, 64, True), (40, 128, False)])
def test_spectrograms_equal_transformers(transformers: Any, name: str, frames: int, bins: int, normalize: bool):
    theirs = transformers.ASTFeatureExtractor(max_length=frames, num_mel_bins=bins, do_normalize=normalize)
    expected = theirs(sounds()[name], sampling_rate=RATE)["input_values"][0]
    settings = {"rate": RATE, "frames": frames, "bins": bins, "normalize": normalize}
    row = Fbank({**settings, "mean": theirs.mean, "std": theirs.std}).row(sounds()[name], "audio")
    found = row.feeds["input_values"]
    assert found.shape == (frames, bins)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5
    assert row.length == 1


@pytest.mark.parametrize("samples", [1, 399, 400, 559, 560])
def test_a_spectrogram_of_hardly_any_sound(samples: int):
    config = {"rate": RATE, "frames": 4, "bins": 16, "normalize": False, "mean": 0.0, "std": 1.0}
    found = Fbank(config).row(np.full(samples, 0.1, np.float32), "audio").feeds["input_values"]
    assert (found != 0).any(axis=1).sum() == max(0, (samples - 400) // 160 + 1)


@settings(max_examples=50)
@given(st.integers(400, 5000), st.sampled_from([((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)), ((8, 4), (4, 3))]))
def test_frames_are_counted_as_the_convolutions_make_them(samples: int, stack: tuple[Any, Any]):
    from types import SimpleNamespace

    from export.audio import frame

    kernels, strides = stack
    field, stride = frame(SimpleNamespace(conv_kernel=kernels, conv_stride=strides))
    length = samples
    for kernel, step in zip(kernels, strides, strict=True):
        length = (length - kernel) // step + 1
    waveform = Waveform({**WAVEFORM, "field": field, "stride": stride}, 2000)
    assert waveform.frames(samples) == length
    # The bucket of so many frames holds the row, whatever is left over behind the last frame.
    assert (
        samples <= TensorSpec("x", "float32", ("batch", f"{stride}*length+{field - 1}")).shape_at(Bucket(1, length))[1]
    )


def test_a_row_fills_its_bucket():
    spec = TensorSpec("input_values", "float32", ("batch", "320*length+399"))
    rows = [Row({"input_values": np.ones(count, np.float32)}, frames) for count, frames in ((719, 1), (1039, 2))]
    target = np.full(spec.shape_at(Bucket(2, 2)), np.nan, np.float32)
    fill(target, rows, spec)
    assert target.shape == (2, 1039)
    assert target.sum(axis=1).tolist() == [719, 1039]


@pytest.mark.parametrize("axis", ["frames", "2*batch", "length*2", "-1*length", "length+x", ""])
def test_an_axis_that_is_none_is_named(axis: str):
    with pytest.raises(ValueError, match="is no axis; known are batch, length and multiples"):
        TensorSpec("x", "float32", ("batch", axis)).shape_at(Bucket(1, 1))


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (399, "`audio` lasts 0.0249375 s, the model needs at least 0.025 s"),
        (16_400, "`audio` lasts 1.025 s, the model takes 1.025 s at once"),
        (20_000, "`audio` lasts 1.25 s, the model takes 1.025 s at once"),
    ],
)
def test_too_short_and_too_long(samples: int, sentence: str):
    waveform = Waveform(WAVEFORM, 50)
    assert waveform.row(np.zeros(16_399, np.float32), "audio").length == 50
    with pytest.raises(InvalidInput) as error:
        waveform.row(np.zeros(samples, np.float32), "audio")
    assert str(error.value) == sentence


@pytest.mark.parametrize("name", ["waveform", "fbank"])
def test_the_loudest_that_is_decoded_makes_numbers(name: str):
    """Louder ones are refused before; these overflow nothing, neither in sums nor in squares."""
    fbank = {"kind": "fbank", "rate": RATE, "frames": 40, "bins": 64, "normalize": True, "mean": -4.2, "std": 4.5}
    features = features_from({"features": WAVEFORM if name == "waveform" else fbank, "max_length": 2000})
    samples = np.full(30 * RATE, LOUDEST, np.float32)
    samples[::3] *= -1
    found = features.row(samples, "audio").feeds["input_values"]
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0.5


def test_features_of_a_newer_bundle_are_refused():
    with pytest.raises(BundleError, match="of kind 'mel', known are waveform and fbank"):
        features_from({"features": {"kind": "mel"}})
