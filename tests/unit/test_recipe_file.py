"""recipe.toml: what it says, what it refuses, and that it says as much as the command line."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.command.recipe_file import _KEYS, PLAN, options_of, resolved, text_of, write_recipe
from export.errors import Refused
from export.plans.recipe import PlanRecipe
from export.recipe import Recipe, _parser, command_from_argv
from export.tasks import export_task

EVERYTHING = """
--task feature-extraction --revision v1 --pooling cls --max-length 64 --image-size 4x5
--precision cpu=int8,tensorrt=fp16 --targets cpu,tensorrt --trust-remote-code
--parity-threshold min_cosine=0.9 --parity-data rows.jsonl
--allow-parity-failure --adapter org/lora@v2 --adapter other/lora --exporter dynamo --plan --plan-precision bf16
--batches 1,4 --lengths 16,max --profiles length --builder tensorrt-rtx --compute-capability 8.6,8.9
--optimization-level 5 --workspace-mib 512 --no-library-tactics --pin-types --form sums --layers
""".split()


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *argv: str) -> str:
    with pytest.raises(Refused) as refused:
        command_from_argv(["--recipe", str(written(folder, text)), "--out", str(folder / "bundle"), *argv])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_option_survives_the_way_into_a_file_and_back(tmp_path: Path):
    out, file = tmp_path / "bundle", tmp_path / "deep" / "recipe.toml"
    file.parent.mkdir()
    asked = command_from_argv(["owner/name", *EVERYTHING, "--out", str(out), "--write-recipe", str(file)])
    assert asked.write_recipe == file
    write_recipe(file, asked.recipe)
    found = command_from_argv(["--recipe", str(file)]).recipe
    assert (found.out.resolve(), found.parity_data and found.parity_data.resolve()) == (
        out,
        Path("rows.jsonl").resolve(),
    )
    for field in fields(Recipe):
        if field.name not in ("out", "parity_data"):
            assert getattr(found, field.name) == getattr(asked.recipe, field.name), field.name
    left_open = {field.name for field in fields(Recipe) if not getattr(asked.recipe, field.name)}
    assert left_open == set()  # everything was asked for


def test_every_attribute_of_a_recipe_has_a_key(tmp_path: Path):
    options = options_of(_parser())
    for recipe, table in ((Recipe, ""), (PlanRecipe, PLAN)):
        names = {_KEYS.get(field.name, field.name.replace("_", "-")) for field in fields(recipe)} - {PLAN}
        assert names <= set(options[table])
        assert set(options[table]) <= names


def test_what_is_written_is_what_a_person_would_write():
    recipe = command_from_argv(["owner/name", *EVERYTHING, "--out", "no-such-bundle"]).recipe
    content = tomllib.loads(text_of(recipe))
    assert content["precision"] == {"cpu": "int8", "tensorrt": "fp16"}
    assert content["parity-threshold"] == {"min_cosine": 0.9}
    assert content["adapter"] == ["org/lora@v2", "other/lora"]
    assert content["plan"]["lengths"] == [16, "max"]
    assert content["plan"]["compute-capability"] == ["8.6", "8.9"]
    assert "out" not in content
    assert content["parity-data"] == "rows.jsonl"


@pytest.mark.parametrize("character", ["\x7f", "\x01", "\n", " ", '"', "\\", "\u2028", "è"])
def test_names_of_any_characters_survive_a_recipe(tmp_path: Path, character: str):
    model = tmp_path / f"mo{character}d"
    file = tmp_path / f"re{character}cipe.toml"
    model.mkdir()
    limits = {f"a{character}b": 0.5}  # that the task has no such one is found out later
    asked = Recipe(str(model), "fill-mask", tmp_path / "bundle", f"v{character}1", parity_thresholds=limits)
    write_recipe(file, asked)
    found = command_from_argv(["--recipe", str(file)]).recipe
    assert (Path(found.model).resolve(), found.revision) == (model, f"v{character}1")
    assert found.parity_thresholds == {f"a{character}b": 0.5}
    told = tomllib.loads(text_of(found))  # as it is in the bundle
    assert told["model"] == found.model


def test_options_of_the_command_line_win(tmp_path: Path):
    file = written(
        tmp_path,
        "\ufeff"  # as some editors begin a file
        """model = "owner/name"
revision = "v1"
max-length = 64
parity-threshold = [0.9, "min_cosine=0.8"]
trust-remote-code = true
adapter = "owner/lora"
[plan]
batches = 8""",
    )
    argv = ["--recipe", str(file), "--out", str(tmp_path / "b")]
    recipe = command_from_argv(
        [*argv, "--max-length", "32", "--no-trust-remote-code", "--no-plan", "--adapter", "o/l"]
    ).recipe
    assert (recipe.model, recipe.revision, recipe.max_length) == ("owner/name", "v1", 32)
    assert (recipe.trust_remote_code, recipe.plan, recipe.adapters) == (False, None, ("o/l",))
    assert recipe.parity_thresholds == {"": 0.9, "min_cosine": 0.8}
    assert command_from_argv([*argv, "--parity-threshold", "0.5"]).recipe.parity_thresholds == {"": 0.5}
    other = command_from_argv(["owner/other", *argv]).recipe
    assert (other.model, other.revision) == ("owner/other", None)  # a revision belongs to its model
    assert other.plan is not None
    assert other.plan.batches == (8,)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ci" / "model").mkdir(parents=True)
    (tmp_path / "ci" / "lora").mkdir()
    text = 'model = "model"\nout = "../bundle"\nparity-data = "rows.jsonl"\nadapter = ["./lora", "owner/lora"]\n'
    file = written(tmp_path / "ci", text)
    monkeypatch.chdir(tmp_path)
    for recipe in (
        command_from_argv(["--recipe", str(file)]).recipe,
        command_from_argv(["--recipe", "ci/recipe.toml"]).recipe,
    ):
        assert Path(recipe.model).resolve() == tmp_path / "ci/model"
        assert recipe.out.resolve() == tmp_path / "bundle"
        assert recipe.parity_data is not None
        assert recipe.parity_data.resolve() == tmp_path / "ci/rows.jsonl"
        assert Path(recipe.adapters[0]).resolve() == tmp_path / "ci/lora"
        assert recipe.adapters[1] == "owner/lora"
    written(tmp_path / "ci", 'model = "./gone"')
    missing = command_from_argv(["--recipe", "ci/recipe.toml", "--out", "b"]).recipe
    assert missing.model.startswith(".")  # a path still, so that nobody looks for it on the Hub


def test_a_home_of_nobody_stays_a_path(tmp_path: Path):
    """Which is not there, as the export says when it looks for it."""
    file = written(tmp_path, 'model = "~no-such-user/m"\nadapter = "~no-such-user/lora"')
    copy = tmp_path / "copy.toml"
    recipe = command_from_argv(["--recipe", str(file), "--out", "b", "--write-recipe", str(copy)]).recipe
    assert (recipe.model, recipe.adapters) == ("~no-such-user/m", ("~no-such-user/lora",))
    write_recipe(copy, recipe)
    content = tomllib.loads(copy.read_text())
    assert (content["model"], content["adapter"]) == ("~no-such-user/m", ["~no-such-user/lora"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('model = "m"\nprecison = "int8"', ", line 2: there is no key 'precison'; did you mean 'precision'?"),
        ("max_length = 3", ", line 1: there is no key 'max_length'; did you mean 'max-length'?"),
        ("[plan]\n# sizes\nbatchs = [1]", ", line 3: there is no key 'batchs' in [plan]; did you mean 'batches'?"),
        ("plan.batchs = 1", ", line 1: there is no key 'batchs' in [plan]"),
        ("[qqqq]\na = 1", ", line 1: there is no key 'qqqq'; known are: adapter, allow-parity-failure, "),
        ("plan = true", ", line 1: plan is a table; write [plan]"),
        ("json = true", ", line 1: there is no key 'json'"),
        ('\nmax-length = "many"', ", line 2: max-length: invalid int value: 'many'"),
        ("max-length = 1.5", ", line 1: max-length: invalid int value: '1.5'"),
        ("max-length = true", ", line 1: max-length cannot be true; see docs/export.md"),
        ("max-length = [{a = 1}]", ', line 1: max-length cannot be {"a": 1}'),
        ("revision = 12", ", line 1: revision is a text, got 12; put it in quotes"),
        ("revision = 2024-01-01", ', line 1: revision cannot be "2024-01-01"'),
        ('trust-remote-code = "yes"', ', line 1: trust-remote-code is true or false, got "yes"'),
        *(
            (f'{key} = "a\\u0000b"', f", line 1: {key} holds the character NUL, which no name and no path does")
            for key in ("model", "out", "revision", "task", "parity-data", "adapter")
        ),
        ('adapter = ["a", "\\u0000"]', ", line 1: adapter holds the character NUL"),
        ("[plan]\nbatches = [0, 1]", ", line 2: batches: '0,1' is not a list of whole numbers from 1 up"),
        (
            'exporter = "dyn"',
            ", line 1: exporter: invalid choice: 'dyn' (choose from 'auto', 'optimum', 'torchscript', 'dynamo')",
        ),
        ('model = \ntask = "x"', "is not valid TOML: Invalid value (at line 1, column 9)"),
        ('model = "a"\nmodel = "b"', "is not valid TOML: Cannot overwrite a value"),
        ('model = "m"\ntask = "no-task"', "unknown task 'no-task'; known are: "),
        ("", "name a MODEL, a folder or an id on the Hugging Face Hub"),
    ],
)
def test_a_bad_recipe_is_one_sentence_with_the_line(tmp_path: Path, text: str, sentence: str):
    assert sentence in refusal(tmp_path, text)


def test_a_recipe_that_cannot_be_read(tmp_path: Path):
    for path, sentence in (
        (tmp_path / "none.toml", "there is no recipe "),
        (tmp_path, "cannot be read (Is a directory)"),
    ):
        with pytest.raises(Refused, match=".*") as refused:
            command_from_argv(["--recipe", str(path), "--out", "b"])
        assert sentence in str(refused.value)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match="is not valid TOML"):
        command_from_argv(["--recipe", str(tmp_path / "binary.toml"), "--out", "b"])


def test_a_recipe_is_not_written_over_another_one(tmp_path: Path):
    file = written(tmp_path, 'model = "owner/name"')
    argv = ["owner/name", "--write-recipe", str(file)]
    with pytest.raises(Refused, match="exists; remove it first or name another file with --write-recipe"):
        command_from_argv(argv)
    assert command_from_argv([*argv, "--recipe", str(file)]).write_recipe == file  # the one that is changed
    with pytest.raises(Refused, match="none is not a folder; make it first, or name another --write-recipe"):
        command_from_argv(["owner/name", "--write-recipe", str(tmp_path / "none" / "recipe.toml")])


def test_writing_a_recipe_needs_no_output_folder(tmp_path: Path):
    from export.__main__ import main

    file = tmp_path / "recipe.toml"
    assert main(["owner/name", "--precision", "int8", "--write-recipe", str(file)]) == 0
    content = tomllib.loads(file.read_text())
    assert (content["model"], content["precision"]) == ("owner/name", "int8")
    assert "out" not in content
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def test_the_resolved_recipe_says_what_was_left_open():
    source: Any = SimpleNamespace(
        model="owner/name",
        revision="c0ffee",
        exporter="optimum",
        task=export_task("feature-extraction"),
        adapters=[SimpleNamespace(pinned="owner/lora@abc")],
        max_length=256,
        settings={"pooling": "mean"},
    )
    recipe = resolved(
        Recipe("/home/me/name", None, Path("b"), revision="v1", parity_data=Path("/home/me/rows")), source
    )
    content = tomllib.loads(text_of(recipe))
    assert content == {
        "model": "owner/name",
        "task": "feature-extraction",
        "revision": "c0ffee",
        "pooling": "mean",
        "max-length": 256,
        "precision": "fp32",
        "targets": ["cpu"],
        "parity-data": "rows",
        "adapter": ["owner/lora@abc"],
        "exporter": "optimum",
    }


@pytest.mark.parametrize(
    ("extractor", "asked", "told"),
    [("Wav2Vec2FeatureExtractor", None, 30), ("Wav2Vec2FeatureExtractor", 5, 5), ("ASTFeatureExtractor", None, None)],
)
def test_the_length_of_sound_stays_in_seconds(extractor: str, asked: int | None, told: int | None):
    """In a source it is in frames; and spectrograms, whose length is fixed, take none."""
    source: Any = SimpleNamespace(
        model="m",
        revision=None,
        exporter="torchscript",
        task=export_task("audio-classification"),
        adapters=(),
        max_length=1499,
        settings={},
        config=SimpleNamespace(),
        processor=type(extractor, (), {"sampling_rate": 16_000})(),
    )
    assert resolved(Recipe("m", None, Path("b"), max_length=asked), source).max_length == told
