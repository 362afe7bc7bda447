"""Resizing and encoding of images: a task without a model, whose bundle says no more than that it is this one."""

from __future__ import annotations

from typing import ClassVar

from export.tasks.base import ExportTask


class ImageTransformExport(ExportTask):
    """Nothing to load, trace or compare."""

    tag: ClassVar[str] = "image-transform"
    has_model: ClassVar[bool] = False


TASK = ImageTransformExport()
