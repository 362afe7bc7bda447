"""What the tasks on texts refuse before anything is traced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.errors import Refused
from export.gate.rare_tokens import rare_texts
from export.recipe import Recipe
from export.tasks import export_task
from export.text import sample_texts, texts
from export.tokenizer.fast import fast_tokenizer, lowercase, tokenizer_file
from export.tokenizer.vocabulary import check_tokens, without
from tests import models


@pytest.mark.parametrize(
    "task", ["feature-extraction", "text-ranking", "zero-shot-classification", "question-answering"]
)
def test_attention_to_blocks_drawn_at_random_is_refused(task: str):
    labels = {"entailment": 0, "neutral": 1, "contradiction": 2}
    config = SimpleNamespace(attention_type="block_sparse", num_labels=1, label2id=labels, id2label={0: "entailment"})
    with pytest.raises(Refused, match="m attends to blocks .* set attention_type to original_full in its config.json"):
        export_task(task).check("m", config)
    config.attention_type = "original_full"
    export_task(task).check("m", config)


@pytest.mark.parametrize("name", ["is_causal", "use_bidirectional_attention"])
def test_attention_that_transformers_does_not_know_is_refused(name: str):
    asked = name != "is_causal"
    config = SimpleNamespace(model_type="qwen2", **{name: asked})
    with pytest.raises(Refused, match=f"has {name} (true|false), which transformers' qwen2 takes no notice of: its to"):
        export_task("feature-extraction").check("m", config)
    encoder, own_code = {"model_type": "bert"}, {"auto_map": {"AutoModel": "own.Model"}}
    for known in ({"model_type": "gemma3_text"} if asked else {name: True}, encoder, own_code):
        export_task("feature-extraction").check("m", SimpleNamespace(**{**vars(config), **known}))


def test_samples_of_an_alphabet_of_letters_are_made_of_them(tmp_path: Path):
    """As of proteins: int8 is judged on them."""
    from transformers import EsmTokenizer

    letters, vocabulary = list("LAGVSERTIDPKQNFYMHWC"), tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *letters, "<mask>"]))
    EsmTokenizer(str(vocabulary)).save_pretrained(tmp_path)
    tokenizer = fast_tokenizer(tmp_path, "esm", Recipe("m", None, tmp_path))
    source: Any = SimpleNamespace(tokenizer=tokenizer, max_length=64, config=None)
    assert {token for text in sample_texts(source) for token in tokenizer.tokenize(text)} == set(letters)


@pytest.mark.parametrize("make", [models.tiny_bert, models.tiny_roberta])
def test_rare_texts_are_made_of_tokens_that_no_sample_holds(make: Callable[[Path], Path], tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make(tmp_path / "model"))
    source: Any = SimpleNamespace(tokenizer=tokenizer, max_length=64, config=None)

    def tokens(text: str) -> list[int]:
        found: list[int] = source.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    samples = {token for text in sample_texts(source) for token in tokens(text)}
    rare = [text for label, text in texts(source, []) if label.startswith("rare tokens")]
    assert rare
    assert samples.isdisjoint({token for text in rare for token in tokens(f"o {text}")[1:]})
    assert rare == [text for label, text in texts(source, []) if label.startswith("rare tokens")]


def test_a_vocabulary_that_ordinary_texts_exhaust_has_no_rare_text(tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.tiny_bert(tmp_path / "model"))
    assert list(rare_texts(tokenizer, [" ".join(tokenizer.get_vocab())])) == []


@pytest.mark.parametrize(
    "of_model",
    [
        {"vocab": {"[PAD]": 0, "A": 1, "C": 2, "G": 3, "T": 4, "AC": 5}, "merges": [("A", "C")]},
        {"vocab": {"[PAD]": 0, "[UNK]": 1, "A": 2, "C": 3}, "merges": [], "unk_token": "[UNK]", "fuse_unk": True},
    ],
)
@pytest.mark.parametrize(("limit", "made"), [(4096, range(2032, 2048)), (512, range(513, 5000))])
def test_the_longest_text_of_an_alphabet_that_has_no_words(of_model: Any, limit: int, made: range):
    """As of DNA: what it does not know is nothing, or one token however much it is."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE(**of_model))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    source: Any = SimpleNamespace(tokenizer=tokenizer, max_length=limit, config=None)
    found = dict(texts(source, []))["longest"]
    assert len(backend.encode(found)) in made


def with_tokens(folder: Path, **added: Any) -> tuple[Any, int]:
    """tiny_bert's tokenizer with `added` tokens, and how many tokens its model has embeddings of."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.tiny_bert(folder))
    rows = len(tokenizer)
    tokenizer.add_special_tokens(added)
    return tokenizer, rows


def test_added_tokens_without_an_embedding_are_taken_out(tmp_path: Path):
    tokenizer, rows = with_tokens(tmp_path, additional_special_tokens=["<image>", "<audio>"])
    tokenizer.add_tokens(["covid"])
    text = "the quick <image> fox [MASK] jumps"
    kept, meant = tokenizer("the [MASK] fox", "jumps")["input_ids"], tokenizer("the quick < image > fox [MASK] jumps")
    assert max(tokenizer(text)["input_ids"]) >= rows
    assert check_tokens("m", tokenizer, rows) == ["<image>", "<audio>", "covid"]
    assert tokenizer(text)["input_ids"] == meant["input_ids"]
    assert tokenizer("the [MASK] fox", "jumps")["input_ids"] == kept
    assert max(tokenizer.get_vocab().values()) < rows
    assert max(tokenizer(" ".join(tokenizer.all_special_tokens))["input_ids"]) < rows
    assert check_tokens("m", tokenizer, rows) == []


def test_what_is_said_of_tokens_that_are_taken_out():
    assert without(["<a>"]) == "its tokenizer without <a>, which it has no embedding of"
    assert without(["<a>", "<b>", "<c>"]) == "its tokenizer without <a> and 2 more, which it has no embedding of"


def test_a_token_for_padding_may_be_without_an_embedding(tmp_path: Path):
    tokenizer, rows = with_tokens(tmp_path, pad_token="<padding>")
    assert check_tokens("m", tokenizer, rows) == []
    assert tokenizer.pad_token_id == rows


@pytest.mark.parametrize("kind", ["vocabulary", "mask_token", "at the ends", "for padding, and at the ends"])
def test_tokens_without_an_embedding_that_cannot_be_taken_out_are_refused(tmp_path: Path, kind: str):
    from tokenizers import processors

    named = {"mask_token": "mask_token", "for padding, and at the ends": "pad_token"}.get(kind)
    tokenizer, rows = with_tokens(tmp_path, **({named: "<new>"} if named else {"additional_special_tokens": ["<new>"]}))
    if kind.endswith("at the ends"):
        ends = processors.TemplateProcessing("$A <new>", "$A $B <new>", special_tokens=[("<new>", rows)])
        tokenizer.backend_tokenizer.post_processor = ends
    if kind == "vocabulary":
        rows -= 1
    with pytest.raises(Refused, match=f"as token {rows}, and its model embeddings of {rows} tokens alone; take the to"):
        check_tokens("m", tokenizer, rows)
    assert "<new>" in tokenizer.get_vocab()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("make", "token", "is_special"),
    [
        (models.tiny_bert, "[MASK]", True),
        (models.tiny_bert, "New York", False),
        (models.tiny_mpnet, "<mask>", True),
        (models.tiny_roberta, "<mask>", True),
    ],
)
def test_added_tokens_are_looked_for_where_transformers_does(
    make: Callable[[Path], Path], token: str, is_special: bool, first: bool, tmp_path: Path
):
    """Though tokenizer.json and tokenizer_config.json differ in whether that is before a text is normalized."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    folder = make(tmp_path / "model")
    (folder / "special_tokens_map.json").unlink()
    of_file, config = (json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    known = config["added_tokens_decoder"]
    if not is_special:
        added = dict.fromkeys(("lstrip", "rstrip", "single_word", "special", "normalized"), False)
        number = len(of_file["model"]["vocab"])
        known[str(number)] = {"content": token, **added}
        of_file["added_tokens"].append({"id": number, "content": token, **added})
    for tokens, normalized in ((of_file["added_tokens"], first), (known.values(), not first)):
        (one,) = (one for one in tokens if one["content"] == token)
        one["normalized"] = normalized
    models.write_json(folder / "tokenizer.json", of_file)
    models.write_json(folder / "tokenizer_config.json", config)
    source: Any = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(folder))
    source.tokenizer(["a", "a b"], padding=True, truncation=True, max_length=8)
    found = Tokenizer.from_str(tokenizer_file(source))
    assert (found.padding, found.truncation) == (None, None)
    for variant in (token, token.lower(), token.upper()):
        for text in (variant, f"the {variant} cat", f"the{variant}cat {variant}"):
            assert found.encode(text).ids == source.tokenizer(text)["input_ids"], text


def test_an_added_word_that_lowercasing_hides_stays_hidden(tmp_path: Path):
    """As in sentence-transformers, which lowercases what a tokenizer reads after its words were added."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.tiny_roberta(tmp_path / "model"))
    tokenizer.add_tokens(["COVID-19", "A", "mrna"])  # the second one is of the vocabulary itself
    source: Any = SimpleNamespace(tokenizer=tokenizer, max_length=64, config=None)
    assert "COVID-19" in dict(texts(source, []))["added tokens"]
    lowercase(tokenizer.backend_tokenizer)
    found = Tokenizer.from_str(tokenizer_file(source))
    for text in ("COVID-19 in Berlin", "covid-19", "A Covid-19", "a cat", "mrna MRNA", "<mask> <MASK>"):
        assert found.encode(text).ids == tokenizer(text)["input_ids"], text
    assert found.token_to_id("mrna") in found.encode("mrna").ids


def test_an_added_word_that_no_file_can_say_where_to_find_is_refused(tmp_path: Path):
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.tiny_roberta(tmp_path / "model"))
    tokenizer.add_tokens(["ab"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "aa")  # in memory "ab" is found in "aab"
    source: Any = SimpleNamespace(tokenizer=tokenizer)
    with pytest.raises(Refused, match="the tokenizer finds 'ab', which was added to it, in other places than a tokeni"):
        tokenizer_file(source)


def test_the_gate_sees_punctuation_that_is_repeated_and_markup(tmp_path: Path):
    """What int8 answered worst on all-MiniLM-L6-v2 where it was chosen by words alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.tiny_bert(tmp_path / "model"))
    source: Any = SimpleNamespace(tokenizer=tokenizer, max_length=64, config=None)
    found = [text for _, text in texts(source, [])]
    assert {mark * 64 for mark in "!?\u2026"} < set(found)
    assert any(text.count("</p>") > 1 for text in found)
