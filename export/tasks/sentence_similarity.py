"""Sentence similarity, offline: feature-extraction's graph, checked by its measures."""

from __future__ import annotations

from typing import ClassVar

from export.tasks.feature_extraction import FeatureExtractionExport


class SentenceSimilarityExport(FeatureExtractionExport):
    """The same models; without --task they are exported for feature-extraction."""

    tag: ClassVar[str] = "sentence-similarity"
    exporter: ClassVar[str] = "feature-extraction"


TASK = SentenceSimilarityExport()
