"""Embeddings of images and texts in one space, offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.dual import DualExport, clip_folder, text_inputs
from export.images import images
from export.tasks.base import Probe

if TYPE_CHECKING:
    from export.source import Source


class ImageTextEmbeddingExport(DualExport):
    """CLIP, SigLIP and their relatives; to be asked for by name, for zero-shot-image-classification fits as well."""

    tag: ClassVar[str] = "image-text-embedding"

    def claims(self, root: Path, config: Mapping[str, Any]) -> bool:
        """A CLIPModel of sentence-transformers."""
        return clip_folder(root) is not None

    def probes(self, source: Source) -> Iterator[Probe]:
        """A probe an image, and a probe a text."""
        for label, value, image in images():
            yield Probe(label, {"image": value}, [source.processor.inputs(image)])
        for label, text in self.text_probes(source):
            yield Probe(label, {"text": text}, [text_inputs(source, text)])


TASK = ImageTextEmbeddingExport()
