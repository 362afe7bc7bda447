"""Sentence similarity, offline: feature-extraction's graph, checked by its measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from export.tasks.feature_extraction import FeatureExtractionExport


class SentenceSimilarityExport(FeatureExtractionExport):
    """The same models; without --task they are exported for feature-extraction."""

    tag: ClassVar[str] = "sentence-similarity"
    exporter: ClassVar[str] = "feature-extraction"
    heads: ClassVar[tuple[str, ...]] = ()

    def claims(self, root: Path, config: Mapping[str, Any]) -> bool:
        """Never: the files say no more than that the model makes embeddings."""
        return False


TASK = SentenceSimilarityExport()
