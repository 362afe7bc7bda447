"""object-detection, image-segmentation and depth-estimation answer like transformers' pipelines."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from benchmarks.zoo.images import HEADS
from tests.architectures import few
from tests.e2e.images.conftest import decoded, encoded, picture
from tests.e2e.images.test_classification import pipeline_images

DETECTION, SEGMENTATION, DEPTH = "object-detection", "image-segmentation", "depth-estimation"

# Where a processor keeps the aspect ratio and the bundle has one size, answers equal the pipeline's for images of its
# aspect ratio. A pixel is less than 1e-3 of their size.
WIDE = [encoded(picture(1200, 900, seed), "JPEG") for seed in range(3)]
OTHERS = [
    encoded(picture(900, 1200, 3), "JPEG"),
    encoded(picture(1000, 1000, 4), "JPEG"),
    encoded(picture(1400, 1000, 5), "JPEG"),
]


def _architectures(task: str) -> tuple[str, ...]:
    """None of a task that a fork has removed."""
    return HEADS[task][1] if task in HEADS else ()


def assert_same_objects(found: list[Any], expected: list[Any]) -> None:
    """Same labels in the same order; corners are cut to whole pixels, so that a hair's breadth may make one of it."""
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert all(abs(one["box"][name] - corner) <= 1 for name, corner in other["box"].items())
        assert list(one["box"]) == list(other["box"])


def check_objects(entry: Any, images: list[str], pad: tuple[int, int] | None = None) -> None:
    if pad:
        entry.pipeline.image_processor.pad_size = {"height": pad[0], "width": pad[1]}
    expected = [entry.expect(image, threshold=0.0) for image in pipeline_images(images)]
    found = entry.served.ask({"images": images, "threshold": 0.0})
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_objects(ours, theirs)
    assert all(len(answer) >= 12 for answer in found)
    assert len({answer[0]["score"] for answer in found}) == len(images)
    alone = entry.served.ask_all([{"image": image, "threshold": 0.0} for image in images])
    for ours, theirs in zip(alone, found, strict=True):
        assert_same_objects(ours, theirs)
    # A threshold between two scores parts them.
    scores = sorted(one["score"] for one in expected[0])
    threshold = (scores[-4] + scores[-3]) / 2
    clear = entry.served.ask({"image": images[0], "threshold": threshold})
    assert_same_objects(clear, [one for one in expected[0] if one["score"] > threshold])
    assert len(clear) == 3


@pytest.mark.parametrize("architecture", ["detr", "conditional-detr"])
def test_objects_on_a_canvas(zoo: Any, architecture: str):
    """On the square that holds every image: as with the processor's own `pad_size`, whatever the aspect ratio."""
    check_objects(zoo(DETECTION, architecture), [*WIDE, *OTHERS], (64, 64))


def test_objects_of_the_canvas_own_aspect_ratio(zoo: Any):
    """Nothing is padded: as the pipeline answers by default."""
    check_objects(zoo(DETECTION, "detr", "--image-size", "48x64"), WIDE)


@pytest.mark.parametrize("architecture", ["detr", "yolos"])
def test_objects_in_a_box_on_a_canvas(zoo: Any, architecture: str):
    """As transformers' guide to fine-tuning has it; YOLOS is not told where on the canvas the image is."""
    padded = {"size": {"max_height": 64, "max_width": 56}, "do_pad": True, "pad_size": {"height": 64, "width": 64}}
    check_objects(zoo(DETECTION, architecture, "--precision", "fp32", processor=padded), [*WIDE, *OTHERS])


def test_objects_at_a_fixed_size(zoo: Any):
    check_objects(zoo(DETECTION, "rt-detr"), [*WIDE, *OTHERS])


def test_objects_of_the_bundles_own_aspect_ratio(zoo: Any):
    """YOLOS knows no padding; images of another aspect ratio are squeezed, as with the processor's own fixed `size`."""
    entry = zoo(DETECTION, "yolos")
    check_objects(entry, WIDE)
    entry.pipeline.image_processor.size = {"height": 48, "width": 64}
    check_objects(entry, [*WIDE, *OTHERS])


@pytest.mark.parametrize("architecture", few(_architectures(SEGMENTATION), ("segformer", "beit", "dpt")))
def test_masks(zoo: Any, images: list[str], architecture: str):
    entry = zoo(SEGMENTATION, architecture)
    expected = [entry.expect(image) for image in pipeline_images(images)]
    found = entry.served.ask({"images": images})
    lengths = entry.served.ask({"images": images, "mask_format": "rle"})
    for ours, coded, theirs in zip(found, lengths, expected, strict=True):
        assert [one["label"] for one in ours] == [one["label"] for one in theirs]
        for mask, counts, other in zip(ours, coded, theirs, strict=True):
            inside, wanted = decoded(mask["mask"]), np.asarray(other["mask"])
            assert inside.dtype == np.uint8
            assert set(np.unique(inside)) <= {0, 255}
            # Where two classes are equal to the last bits, either may win.
            assert np.mean(inside != wanted) <= 1e-3
            assert mask["score"] is other["score"] is None
            assert np.array_equal(masked(counts["mask"]), inside == 255)
    assert max(map(len, found)) > 1
    assert entry.served.ask_all([{"image": image} for image in images]) == found


def masked(rle: dict[str, Any]) -> Any:
    """The mask that run lengths stand for."""
    values = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(values, rle["counts"]).reshape(rle["size"])


def depth_images(architecture: str, images: list[str]) -> list[str]:
    if architecture == "dpt":  # its processor has a fixed size
        return images
    sizes = {"depth-anything": (90, 90), "glpn": (105, 70)}[architecture]
    return [encoded(picture(*sizes, seed)) for seed in range(4)]


@pytest.mark.parametrize("architecture", few(_architectures(DEPTH), ("dpt", "depth-anything")))
def test_depths(zoo: Any, images: list[str], architecture: str):
    entry = zoo(DEPTH, architecture)
    images = depth_images(architecture, images)
    expected = [entry.expect(image) for image in pipeline_images(images)]
    found = entry.served.ask({"images": images, "predicted_depth": "base64"})
    for ours, theirs in zip(found, expected, strict=True):
        wanted = theirs["predicted_depth"].numpy()
        depth = np.frombuffer(base64.b64decode(ours["predicted_depth"]), "<f4").reshape(ours["height"], ours["width"])
        assert depth.shape == wanted.shape
        assert np.abs(depth - wanted).max() <= 1e-3 * np.abs(wanted).max()
        assert (ours["min"], ours["max"]) == (depth.min(), depth.max())
        grey, drawn = decoded(ours["depth"]).astype(int), np.asarray(theirs["depth"]).astype(int)
        assert np.abs(grey - drawn).max() <= 1
        assert np.ptp(grey) == 255
    alone = entry.served.ask_all([{"image": image, "predicted_depth": "float"} for image in images])
    for ours, theirs in zip(alone, found, strict=True):
        whole = np.frombuffer(base64.b64decode(theirs["predicted_depth"]), "<f4")
        assert np.allclose(np.ravel(ours["predicted_depth"]), whole, rtol=1e-5, atol=1e-5)
    assert "predicted_depth" not in entry.served.ask({"image": images[0]})


def test_options_that_are_wrong_get_a_sentence(zoo: Any):
    for task, architecture, option, sentence in (
        (DETECTION, "yolos", {"threshold": 2}, "`threshold` must be a number from 0 to 1, got 2"),
        (
            DETECTION,
            "yolos",
            {"treshold": 0.5},
            "unknown field `treshold`; known are `image`, `images`, `inputs`, `threshold`",
        ),
        (SEGMENTATION, "segformer", {"mask_format": "coco"}, "`mask_format` must be one of png, rle, got coco"),
        (DEPTH, "dpt", {"predicted_depth": True}, "`predicted_depth` must be one of none, base64, float"),
    ):
        assert sentence in zoo(task, architecture).served.refusal({"image": WIDE[0], **option})
