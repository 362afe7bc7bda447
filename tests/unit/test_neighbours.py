"""Rank agreement of neighbours, of texts and of images, and of scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.vectors import OUTPUT
from export.gate.measures import NEIGHBOURS, compare_scores, neighbours
from export.tasks import export_task

VECTORS = np.random.default_rng(0).standard_normal((21, 8))


def test_equal_vectors_and_scaled_ones_have_the_same_neighbours():
    assert neighbours(VECTORS, VECTORS) == 1
    assert neighbours(VECTORS, 3 * VECTORS) == 1


def test_two_that_change_places_are_seen():
    swapped = VECTORS[[1, 0, *range(2, 21)]]
    assert neighbours(VECTORS, swapped) < NEIGHBOURS.limit
    assert np.isnan(neighbours(VECTORS, np.full_like(VECTORS, np.nan)))


def test_of_few_rows_it_is_not_all_the_others():
    few = VECTORS[:10]
    assert neighbours(few, few[::-1]) < NEIGHBOURS.limit
    assert neighbours(few[:2], few[:2]) == 1


@pytest.mark.parametrize("tag", ["image-feature-extraction", "image-text-embedding", "zero-shot-image-classification"])
def test_tasks_on_images_that_answer_with_vectors_compare_them(tag: str):
    task = export_task(tag)
    source: Any = None  # these tasks compare vectors alone
    assert task.measures_of_all == (NEIGHBOURS,)

    def of_all(found: Any) -> float:
        rows = [[{OUTPUT: vector} for vector in vectors] for vectors in (VECTORS, found)]
        (figure,) = task.compare_all(source, *rows)
        return figure

    assert of_all(VECTORS) == 1
    assert of_all(VECTORS[::-1]) < NEIGHBOURS.limit


def test_scores_that_are_next_to_equal_may_change_places():
    assert compare_scores(np.array([0.5, 0.50005]), np.array([0.50005, 0.5]))[1] == 1
    assert compare_scores(np.array([0.5, 0.6]), np.array([0.6, 0.5]))[1] == 0
