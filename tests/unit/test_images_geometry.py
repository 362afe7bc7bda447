"""What an image becomes, where no processor of transformers is to be compared with."""

import numpy as np
import pytest
from PIL import Image

from engine.errors import BundleError, InvalidInput
from engine.images.geometry import EXTENT, PIXELS, Geometry


def test_an_image_so_narrow_that_resizing_would_blow_it_up_is_refused():
    geometry = Geometry(224, 224, "shortest", (224, 0), crop=True)
    image = Image.new("RGB", (1, 40_000))
    with pytest.raises(InvalidInput, match="`images\\[2\\]` is 1 x 40000, so narrow that .* 224 x 8960000 .*crop it"):
        geometry.feeds(image, "images[2]", 50_000_000)


def test_an_image_larger_than_its_canvas_is_made_to_fit():
    geometry = Geometry(40, 60, "bounded", (40, 80), canvas=True)
    for size, extent in (((300, 100), (20, 60)), ((100, 300), (40, 13)), ((90, 60), (40, 60)), ((1, 4000), (40, 1))):
        feeds = geometry.feeds(Image.new("RGB", size, "white"), "image", 1 << 20)
        assert tuple(feeds[EXTENT]) == extent
        assert feeds[PIXELS].shape == (40, 60, 3)
        assert (feeds[PIXELS][: extent[0], : extent[1]] == 255).all()
        assert feeds[PIXELS].sum() == extent[0] * extent[1] * 3 * 255


def test_an_image_that_is_to_fit_a_box_touches_it():
    geometry = Geometry(64, 64, "fit", (40, 60), canvas=True)
    for size, extent in (((300, 100), (20, 60)), ((10, 30), (40, 13)), ((60, 40), (40, 60)), ((1, 4000), (40, 1))):
        assert tuple(geometry.feeds(Image.new("RGB", size), "image", 1 << 20)[EXTENT]) == extent
    assert Geometry(30, 40, "fit", (40, 60), canvas=True).target(20, 30) == (26, 40)


def test_a_way_of_resizing_that_a_later_version_brought_is_refused():
    with pytest.raises(BundleError, match="resizes images by 'stretch', which this worker does not know; update it"):
        Geometry.from_config({"height": 32, "width": 32, "resize": "stretch"})
    assert Geometry.from_config({"height": 32, "width": 32}) == Geometry(32, 32)


def test_an_image_of_the_right_size_is_taken_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    feeds = Geometry(32, 48, "exact", (32, 48)).feeds(Image.fromarray(pixels), "image", 1 << 20)
    assert np.array_equal(feeds[PIXELS], pixels)


@pytest.mark.parametrize("size", [(3000, 40), (20, 4000)], ids=["cut", "cut and padded"])
def test_what_is_cut_away_is_not_kept(size: tuple[int, int]):
    feeds = Geometry(32, 32, crop=True).feeds(Image.new("RGB", size), "image", 1 << 20)
    kept = feeds[PIXELS]
    while isinstance(kept.base, np.ndarray):
        kept = kept.base
    assert kept.nbytes == 32 * 32 * 3
