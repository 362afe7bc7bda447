"""Cross-encoders, offline: a classifier's graph with one logit, and the function that sentence-transformers applies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.errors import Refused
from export.gate.measures import Measure, kendall, of_both
from export.model_files.json_files import TEXT, check_keys, read_json
from export.model_files.sentence_files import MODULES, class_name, read_modules, read_transformer_options
from export.tasks.base import Layout, Probe
from export.tasks.text_classification import TextClassificationExport
from export.text import sample_texts, texts, tokens_of

if TYPE_CHECKING:
    from engine.tasks.base import Json
    from engine.tensors import Arrays
    from export.recipe import Recipe
    from export.source import Source

_QUERY = "What is the answer?"
_DEFAULT = "torch.nn.modules.activation.Sigmoid"  # sentence-transformers', of one output
_OLD = "sbert_ce_default_activation_function"
_FUNCTIONS = {"Sigmoid": "sigmoid", "Identity": "none"}
_GENERATE = ("ForCausalLM", "ForConditionalGeneration")
_TRANSFORMER = "sequence-classification"


class TextRankingExport(TextClassificationExport):
    """Sequence classification models with one output; such classes speak for text-classification."""

    tag: ClassVar[str] = "text-ranking"
    exporter: ClassVar[str] = "text-classification"
    measures_of_all: ClassVar[Sequence[Measure]] = (
        # The order of documents: one moves past another where their scores are nearly equal. A tau of 0.9 is one pair
        # of twenty.
        Measure("kendall", 0.99, 0.8, at_least=True, column="order", half_limit=0.95),
    )

    def claims(self, root: Path, config: Mapping[str, Any]) -> bool:
        """A CrossEncoder's files, where it has one output: one with more, such as NLI's, is a classifier."""
        if len(config.get("id2label") or "1") != 1 or config.get("num_labels") not in (None, 1):
            return False
        settings = read_json(root / "config_sentence_transformers.json")
        return _OLD in config or "sentence_transformers" in config or settings.get("model_type") == "CrossEncoder"

    def layout(self, root: Path, recipe: Recipe) -> Layout:
        """Activation and length, in the forms that versions of sentence-transformers write them."""
        says_how = (root / MODULES).is_file()
        folder = _transformer(root) if says_how else ""
        settings = read_json(root / "config_sentence_transformers.json")
        config = read_json(root / folder / "config.json")
        if (settings.get("prompts") or {}).get(settings.get("default_prompt_name")):
            raise Refused("the model puts a prompt before every text, which text-ranking cannot; export another model")
        of_config = config.get("sentence_transformers") or {}
        check_keys(root / folder / "config.json", of_config, {"activation_fn": TEXT})
        # The new key is null for the default, whatever the old one says.
        found = of_config["activation_fn"] if "activation_fn" in of_config else config.get(_OLD)
        activation = settings.get("activation_fn") or found or _DEFAULT
        package, _, name = activation.rpartition(".")
        if package.partition(".")[0] != "torch" or name not in _FUNCTIONS:
            raise Refused(
                f"the model's activation is {activation}, a bundle takes one of {', '.join(_FUNCTIONS)}, by its path "
                "in torch, for the library takes no other; choose another model"
            )
        options = read_transformer_options(root / folder, _TRANSFORMER) if says_how else {}
        settings = {
            "function": _FUNCTIONS[name],
            "max_length": options.get("max_seq_length"),
            "lowercase": options.get("do_lower_case"),
            "says_how": says_how,
        }
        return Layout(folder, settings)

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The tokenizer. Raises Refused for a chat template, into which a CrossEncoder puts the pairs by itself."""
        found = super().processors(folder, model, layout, recipe)
        if found["tokenizer"].chat_template is not None and not layout.settings["says_how"]:
            raise Refused(
                f"{model}'s tokenizer has a chat template, into which sentence-transformers puts query and document, "
                "and a bundle cannot; export another model, or, where this one was trained on plain pairs, take the "
                "template out of its files"
            )
        return found

    def check(self, model: str, config: Any) -> None:
        """One output."""
        super().check(model, config)
        if generators := [name for name in getattr(config, "architectures", None) or [] if name.endswith(_GENERATE)]:
            raise Refused(
                f"{model} is a {generators[0]}, which ranks by the logits of two words, and a bundle by one output "
                "alone; export a conversion of it to sequence classification with one label, or another model"
            )
        if config.num_labels != 1:
            raise Refused(
                f"{model} has {config.num_labels} outputs, a reranker has one; try --task text-classification"
            )

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """The function and the length."""
        return {"max_length": source.max_length, "function": self.function(source)}

    def probes(self, source: Source) -> Iterator[Probe]:
        """One query with every text."""
        for label, text in texts(source, [{"texts": ["Sarah wrote it in London.", "混合的文本 🙂"]}]):
            yield self.probe(source, label, text)

    def probe(self, source: Source, label: str, text: str) -> Probe:
        """`text` as a document."""
        return Probe(label, {"query": _QUERY, "documents": [text]}, [tokens_of(source, _QUERY, text)])

    def samples(self, source: Source) -> Iterator[Json]:
        """One query with every text."""
        return ({"query": _QUERY, "documents": [text]} for text in sample_texts(source))

    def function(self, source: Source) -> str:
        """As the CrossEncoder's files say."""
        return str(source.settings["function"])

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """Whether the documents are in the same order."""
        return [kendall(*of_both(expected, found, "logits"))]


def _transformer(root: Path) -> str:
    """The folder of the one module that a CrossEncoder here has. Raises Refused for more, or for another."""
    modules = [(class_name(kind), path) for kind, path in read_modules(root)]
    names = [name for name, _ in modules]
    if names != ["Transformer"]:
        raise Refused(
            f"modules.json lists {', '.join(names) or 'nothing'}; of a CrossEncoder a bundle holds one Transformer "
            "alone, so export a model without the others"
        )
    return modules[0][1]


TASK = TextRankingExport()
