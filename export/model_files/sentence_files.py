"""What sentence-transformers' files say about a model: pooling, normalisation, lengths, prompts.

Follows sentence-transformers 5.7, and the forms of the files that older versions wrote. Whatever in them would change
an embedding and has no place in a bundle is refused: ignoring it would answer with other numbers than the model's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.errors import Refused
from export.model_files.dense import Dense, read_dense
from export.model_files.json_files import COUNT, FLAG, TEXT, TEXT_OR_TEXTS, Kind, check_keys, read_json, read_module
from export.pooling import POOLINGS

MODULES = "modules.json"
_TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_TRANSFORMER_KEYS: Mapping[str, Kind] = {"max_seq_length": COUNT, "do_lower_case": FLAG}
_ALWAYS = ("query", "document")
"""Names of prompts that sentence-transformers knows of every model, empty where its files name none."""
_HARMLESS = {*_TRANSFORMER_KEYS, "unpad_inputs"}
_HARMLESS_ARGUMENTS = {"trust_remote_code", "attn_implementation", "dtype", "torch_dtype", "padding_side"}
"""Of the loading of model, config and tokenizer: what a bundle does in a way of its own, with the same numbers."""


def _as_task(task: str, output: str, module_output: str) -> Mapping[str, Any]:
    """What a Transformer module says that does nothing but the task."""
    return {
        "transformer_task": task,
        "module_output_name": module_output,
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
    }


_EXPECTED: Mapping[str, Mapping[str, Any]] = {
    "feature-extraction": _as_task("feature-extraction", "last_hidden_state", "token_embeddings"),
    "fill-mask": _as_task("fill-mask", "logits", "token_embeddings"),
    "sequence-classification": _as_task("sequence-classification", "logits", "scores"),
}
# In the order in which sentence-transformers joins the vectors of several modes.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING_KEYS = {"pooling_mode": TEXT_OR_TEXTS, "include_prompt": FLAG, **dict.fromkeys(_OLD_POOLING_KEYS, FLAG)}


@dataclass(frozen=True)
class SentenceFiles:
    """What the files say; the defaults are what sentence-transformers does with an encoder that has none of them."""

    transformer: str = ""
    """Folder of the transformer's own files inside the model's folder."""
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    dense: tuple[Dense, ...] = ()
    """Layers behind the pooling."""


def read_sentence_files(folder: Path, pooling: str | None = None) -> SentenceFiles:
    """Read the files below `folder`; `pooling` replaces what they say about it.

    Raises Refused for modules, modes and options that a bundle cannot express.
    """
    if not os.path.lexists(folder / MODULES):
        return SentenceFiles(pooling=pooling or _pooling_without_files(folder))
    modules = [(class_name(kind), path) for kind, path in read_modules(folder)]
    names = [name for name, _ in modules]
    # Dropout does nothing outside training.
    for name in names:
        if name not in ("Transformer", "Pooling", "Dense", "Normalize", "Dropout"):
            raise Refused(f"modules.json lists a {name} module, which a bundle cannot hold; export a model without it")
    if names.count("Transformer") != 1 or names[0] != "Transformer":
        raise Refused(f"modules.json must begin with one Transformer module, it lists {', '.join(names)}")
    order = [name for name in names if name != "Dropout"]
    if order != sorted(order, key=("Transformer", "Pooling", "Dense", "Normalize").index):
        raise Refused(f"modules.json lists {', '.join(names)}; a bundle holds Pooling, then Dense, then Normalize")
    dimensions = read_json(folder / "config_sentence_transformers.json").get("truncate_dim")
    if dimensions is not None:
        raise Refused(
            f"the model's files cut every embedding to {dimensions} numbers (truncate_dim), which a bundle leaves to "
            "jobs; take truncate_dim out of config_sentence_transformers.json and let them ask for `dimensions`"
        )
    options = read_transformer_options(folder / modules[0][1])
    prompts, default_prompt = read_prompts(folder)
    return SentenceFiles(
        transformer=modules[0][1],
        pooling=pooling or _pooling(folder, modules, prompts),
        normalize="Normalize" in names,
        max_length=options.get("max_seq_length"),
        lowercase=bool(options.get("do_lower_case", False)),
        prompts=prompts,
        default_prompt=default_prompt,
        dense=tuple(read_dense(folder / path) for name, path in modules if name == "Dense"),
    )


def _pooling_without_files(folder: Path) -> str:
    """The last token's vector of what was trained to continue texts, the mean of all others."""
    config = read_json(folder / "config.json")
    names = config.get("architectures") or [""]
    return "lasttoken" if str(names[0]).endswith("ForCausalLM") and config.get("is_causal", True) else "mean"


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """Class and folder of every module of a model, none without the file. Raises Refused for a file of another form."""
    modules = read_json(folder / MODULES, list)
    if not all(isinstance(module, dict) for module in modules):
        raise Refused(f"{folder / MODULES} is not a list of modules; download the model again")
    for module in modules:
        check_keys(folder / MODULES, module, {"type": TEXT, "path": TEXT})
    return [(module.get("type") or "", module.get("path") or "") for module in modules]


def class_name(kind: str) -> str:
    """The class that a module is of, "custom ..." for one of the model's own.

    `sentence_transformers.models.Pooling` and `sentence_transformers.….pooling.Pooling` are both Pooling.
    """
    package, _, name = kind.rpartition(".")
    return name if package.partition(".")[0] == "sentence_transformers" else f"custom {package}.{name}"


def read_transformer_options(folder: Path, task: str = "feature-extraction") -> dict[str, Any]:
    """The options of the Transformer module in `folder`, whose `transformer_task` must be `task`. Raises Refused."""
    options: dict[str, Any] = next(
        filter(None, (read_json(folder / name, keys=_TRANSFORMER_KEYS) for name in _TRANSFORMER_FILES)), {}
    )
    expected = _EXPECTED[task]
    for name, value in options.items():
        if value and name not in _HARMLESS and value != expected.get(name) and not _is_harmless(name, value):
            if name == "modality_config" and isinstance(value, dict) and "message" in value:
                raise Refused(
                    "the model's sentence-transformers settings put every text into the tokenizer's chat template "
                    "(modality_config has message), which a bundle cannot hold; export a model without it"
                )
            raise Refused(
                f"the model's sentence-transformers settings have {name} = {json.dumps(value)[:80]}, "
                "which a bundle cannot hold; export a model without it"
            )
    return options


def _is_harmless(name: str, value: Any) -> bool:
    """Whether `value` holds arguments alone that change nothing, as jina-embeddings-v2 has them."""
    return name.endswith(("_args", "_kwargs")) and isinstance(value, dict) and set(value) <= _HARMLESS_ARGUMENTS


def read_prompts(folder: Path, kind: str = "SentenceTransformer") -> tuple[dict[str, str], str | None]:
    """Prompts by their names, and the default one's name, of a model that must be a `kind`. Raises Refused."""
    settings = read_json(folder / "config_sentence_transformers.json")
    found = settings.get("model_type", kind)
    if found != kind:
        raise Refused(f"the model is a {found}, not a {kind}; leave --task out, or name another")
    prompts = {name: text or "" for name, text in (settings.get("prompts") or {}).items()}
    default = settings.get("default_prompt_name")
    if default in _ALWAYS and default not in prompts:
        return prompts, None
    if default is not None and default not in prompts:
        raise Refused(f"the model's default prompt {default!r} is not among its prompts ({', '.join(prompts)})")
    return prompts, default


def conversion(folder: Path) -> str:
    """How to come to safetensors, with everything that says how the weights are used beside them."""
    root = next((one for one in (folder, folder.parent) if (one / MODULES).is_file()), None)
    if root is not None:
        kind = read_json(root / "config_sentence_transformers.json").get("model_type") or "SentenceTransformer"
        return f"load the model with {kind}(...) in a sandbox and save it, then export that folder"
    name = next(iter(read_json(folder / "config.json").get("architectures") or []), "AutoModel")
    return (
        f"load it with {name}.from_pretrained(...) in a sandbox, save that with save_pretrained into a copy of the "
        "model's folder, then export the copy"
    )


def _pooling(folder: Path, modules: list[tuple[str, str]], prompts: Mapping[str, str]) -> str:
    found = [path for name, path in modules if name == "Pooling"]
    if len(found) != 1:
        raise Refused(f"modules.json lists {len(found)} Pooling modules instead of one; choose with --pooling")
    settings = read_module(folder / found[0], _POOLING_KEYS)
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_POOLING_KEYS.items() if settings.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise Refused(
            f"the model's pooling is {' + '.join(map(str, modes))}, a bundle takes one of {', '.join(POOLINGS)}; "
            "choose it with --pooling, which changes the embeddings"
        )
    if not settings.get("include_prompt", True) and any(prompts.values()):
        raise Refused("the model leaves its prompts out of pooling, which a bundle cannot; choose with --pooling")
    return str(modes[0])
