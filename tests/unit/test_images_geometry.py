"""What an image becomes, where no processor of transformers is to be compared with."""

import numpy as np
import pytest
from PIL import Image

from engine.errors import InvalidInput
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


def test_an_image_of_the_right_size_is_taken_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    feeds = Geometry(32, 48, "exact", (32, 48)).feeds(Image.fromarray(pixels), "image", 1 << 20)
    assert np.array_equal(feeds[PIXELS], pixels)
