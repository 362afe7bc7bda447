"""Our CTC decoding against Wav2Vec2CTCTokenizer, id for id."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.audio.ctc import CtcVocabulary, Piece

TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "'S", ".", "N'T", "Ä", "<noise>", "ng"]
OUTPUTS = len(TOKENS) + 2  # a model may have outputs that its vocabulary does not name


@pytest.fixture(scope="module", params=[(False, False, " "), (True, True, " "), (False, True, "_")], ids=str)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, CtcVocabulary]:
    """transformers' tokenizer and ours, as the export makes it."""
    from transformers import Wav2Vec2CTCTokenizer

    lowercase, clean_up, space = request.param
    folder: Path = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(TOKENS)}))
    theirs = Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"),
        do_lower_case=lowercase,
        clean_up_tokenization_spaces=clean_up,
        replace_word_delimiter_char=space,
    )
    config = {"pad": "<pad>", "delimiter": "|", "space": space, "lowercase": lowercase, "clean_up": clean_up}
    return theirs, CtcVocabulary(theirs.convert_ids_to_tokens(list(range(OUTPUTS))), config)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, OUTPUTS - 1), st.integers(1, 3)), max_size=30))
def test_text_characters_and_words_are_the_same(both: tuple[Any, CtcVocabulary], runs: list[tuple[int, int]]):
    theirs, ours = both
    ids = np.array([token for token, count in runs for _ in range(count)], np.int32)
    characters = ours.characters(ids)
    assert ours.text(characters) == theirs.decode(ids)
    expected = theirs.decode(ids, output_char_offsets=True, output_word_offsets=True)
    assert characters == _pieces(expected.char_offsets, "char")
    space = theirs.replace_word_delimiter_char
    assert ours.words(characters) == _pieces(theirs._get_word_offsets(expected.char_offsets, space), "word")


def _pieces(offsets: Any, key: str) -> list[Piece]:
    return [Piece(one[key], int(one["start_offset"]), int(one["end_offset"])) for one in offsets]


def test_repetitions_are_one_and_a_blank_parts_them():
    config = {"pad": "<pad>", "delimiter": "|", "space": " ", "lowercase": False, "clean_up": False}
    vocabulary = CtcVocabulary(TOKENS, config)
    found = vocabulary.characters(np.array([5, 5, 0, 5, 4, 4, 6, 0, 0]))
    assert vocabulary.text(found) == "AA B"
    assert vocabulary.words(found) == [Piece("AA", 0, 4), Piece("B", 6, 7)]
    assert vocabulary.characters(np.zeros(0, np.int32)) == []
