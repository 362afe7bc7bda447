"""Pictures for jobs, made on the spot."""

from __future__ import annotations

import base64
import io


def photograph(width: int = 640, height: int = 480) -> str:
    """A JPEG in base64: soft shapes with some noise."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = draw.normal(0, 8, (height, width, 3))
    content = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(content, "JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode()
