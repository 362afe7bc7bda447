"""A config.json as transformers 5 writes it, in the words of the transformers 4 that is pinned.

That one takes no notice of keys that it does not know, so that a model, and the parity gate's reference with it, would
be built with defaults instead. Rule: what cannot be said exactly is refused; a config.json without such keys, or with
the older ones beside them, is left alone.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from export.errors import Refused

Settings = Mapping[str, Any]

_FULL, _SLIDING = "full_attention", "sliding_attention"
_ORIGINAL = "original_max_position_embeddings"
_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_SCALING = {
    *("rope_type", "factor", "attention_factor", "beta_fast", "beta_slow", "long_factor", "short_factor", _ORIGINAL),
    *("low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim", "truncate"),
}
"""What both versions read of rope's dictionary, in the same meaning."""
_ALSO_SCALED = ("gemma", "gemma2", "glm", "glm4", "helium", "ministral", "mistral", "vaultgemma")
"""Architectures whose models read rope_scaling, though their configs do not name it."""
_CONSTANTS: Mapping[tuple[str, str], Any] = {
    ("esm", "rope_theta"): 10000.0,
    ("gpt_oss", "swiglu_alpha"): 1.702,
    ("gpt_oss", "swiglu_limit"): 7.0,
    ("hgnet_v2", "stage_downsample_strides"): [2, 2, 2, 2],
    ("hgnet_v2", "stem_strides"): [2, 1, 1, 2, 1],
}
"""Newer keys, by architecture, of what transformers 4 has as constants in its code."""


class _InexactError(Exception):
    """Says what transformers 4 has no words for."""


def in_older_words(raw: Settings, kind: type[Any], model: str) -> dict[str, Any]:
    """Keys to set in the config.json `raw` for config class `kind` to mean what transformers 5 means by it; often none.

    Raises Refused where transformers 4 cannot mean that.
    """
    import transformers

    try:
        return dict(_changes(raw, kind))
    except _InexactError as error:
        raise Refused(
            f"{model}'s config.json is of transformers 5, and transformers {transformers.__version__} cannot take it "
            f"exactly: {error}; write there in the keys of transformers 4 what it means, or choose another model"
        ) from None


def _changes(raw: Settings, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    for (name, key), value in _CONSTANTS.items():
        if name == kind.model_type and raw.get(key) not in (None, value):
            raise _InexactError(f"{key} is {_short(raw[key])}, where it always has {_short(value)}")
    known = inspect.signature(kind).parameters
    newer = (_rope(raw, kind), _experts(raw, known), _global_layers(raw, known), _backbone(raw, known))
    for key, value in chain.from_iterable(newer):
        there = raw[key] if key in raw else getattr(known.get(key), "default", None)
        if _plain(there) == _plain(value):
            continue
        if raw.get(key) is not None:
            raise _InexactError(f"{key} is {_short(there)}, its newer keys say {_short(value)}")
        yield key, value
    for key, part in raw.items():
        if isinstance(part, dict) and (changes := _changes_of_part(key, part)):
            yield key, {**part, **changes}


def _changes_of_part(key: str, part: Settings) -> dict[str, Any]:
    """Those of the config of a part, such as a backbone or the half for texts, under `key`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    name = part.get("model_type")
    if isinstance(name, str) and name in CONFIG_MAPPING_NAMES:
        return dict(_changes(part, CONFIG_MAPPING[name]))
    if part.get("rope_parameters") is not None:
        raise _InexactError(f"{key} has rope_parameters")
    return {}


def _rope(raw: Settings, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Rotary positions, of which transformers 5 has one dictionary, or one for each type of layers."""
    rope = raw.get("rope_parameters")
    known = inspect.signature(kind).parameters
    if not rope or "rope_parameters" in known:
        return
    if not isinstance(rope, dict):
        raise _InexactError(f"rope_parameters is {_short(rope)}")
    theta = next((key for key in ("rotary_emb_base", "global_rope_theta", "rope_theta") if key in known), None)
    local = next((key for key in ("rope_local_base_freq", "local_rope_theta") if key in known), None)
    if theta is None:
        raise _InexactError(f"{kind.model_type} has no rope_theta")
    full: Settings = rope
    if nested := any(isinstance(one, dict) for one in rope.values()):
        if set(rope) != {_FULL, _SLIDING} or not all(isinstance(one, dict) for one in rope.values()):
            raise _InexactError(f"rope_parameters is of {', '.join(sorted(rope))}")
        full, sliding = rope[_FULL], rope[_SLIDING]
        slides_by = _theta(raw, sliding, local or theta)
        if _type(sliding) != "default" or sliding.get("partial_rotary_factor") is not None:
            raise _InexactError(f"rope_parameters scales {_SLIDING}")
        # olmo3 scales its full attention alone; modernbert-decoder has a key for the other base, and does not read it
        has_one = local is None or kind.model_type == "modernbert-decoder"
        if (local is None and kind.model_type != "olmo3") or (has_one and slides_by != _theta(raw, full, theta)):
            raise _InexactError(f"{kind.model_type} has one rope_theta for all layers")
        if local is not None:
            yield local, slides_by
    if (local or kind.model_type == "olmo3") and not nested:
        raise _InexactError(f"rope_parameters is not of {_FULL} and {_SLIDING}")
    yield theta, _theta(raw, full, theta)
    part = full.get("partial_rotary_factor")
    takes = next((key for key in ("rotary_pct", "partial_rotary_factor") if key in known), None)
    if takes is not None and part is not None:
        yield takes, part
    elif part not in (None, 1):
        raise _InexactError(f"{kind.model_type} has no partial_rotary_factor")
    yield from _scaling(raw, full, kind)


def _scaling(raw: Settings, rope: Settings, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """What stretches the positions of `rope`, and the positions that longrope counts from."""
    known = inspect.signature(kind).parameters
    if strange := sorted(set(rope) - _SCALING - {"type", "rope_theta", "partial_rotary_factor"}):
        raise _InexactError(f"rope_parameters has {', '.join(strange)}")
    how = _type(rope)
    if how not in _TYPES or (how != "default" and "rope_scaling" not in known and kind.model_type not in _ALSO_SCALED):
        raise _InexactError(f"{kind.model_type} has no rope_type {how}")
    if how == "default":
        if "rope_scaling" in known:
            yield "rope_scaling", None
        return
    scaling = {key: value for key, value in rope.items() if key in _SCALING and value is not None}
    scaling["rope_type"] = how
    if how == "longrope":  # older: counts from a key beside the dictionary, and scales by that ratio where it is there
        of_rope = scaling.pop(_ORIGINAL, None)
        positions, original = raw.get("max_position_embeddings"), raw.get(_ORIGINAL, of_rope)
        if not isinstance(positions, int) or not isinstance(original, int) or original < 1:
            raise _InexactError(f"rope_parameters has no {_ORIGINAL}")
        factor, ratio = scaling.pop("factor", None), positions / original
        if original == positions and _ORIGINAL not in known and _ORIGINAL not in raw:
            scaling["factor"] = factor or 1.0
        elif factor not in (None, ratio) and "attention_factor" not in scaling:
            raise _InexactError(f"rope_parameters has factor {_short(factor)}, and longrope's is {ratio:g} there")
        else:
            yield _ORIGINAL, original
    if kind.model_type.startswith("phi3"):  # takes these three alone
        if set(scaling) != {"rope_type", "short_factor", "long_factor"}:
            raise _InexactError(f"phi3 has no more to scale by than longrope's two lists: {', '.join(sorted(scaling))}")
        scaling["type"] = scaling.pop("rope_type")
    yield "rope_scaling", scaling


def _theta(raw: Settings, rope: Settings, older: str) -> Any:
    """The base of the frequencies of `rope`. Raises _InexactError without one: the versions' defaults differ."""
    theta = rope.get("rope_theta", raw.get(older))
    if not isinstance(theta, (int, float)):
        raise _InexactError("rope_parameters has no rope_theta")
    return theta


def _type(rope: Settings) -> Any:
    return rope.get("rope_type") or rope.get("type") or "default"


def _experts(raw: Settings, known: Settings) -> Iterator[tuple[str, Any]]:
    if "num_experts" in known and raw.get("num_local_experts") is not None:
        yield "num_experts", raw["num_local_experts"]


def _global_layers(raw: Settings, known: Settings) -> Iterator[tuple[str, Any]]:
    """ModernBERT's layers, which transformers 5 names one by one."""
    types, key = raw.get("layer_types"), "global_attn_every_n_layers"
    if types is None or key not in known or "layer_types" in known:
        return
    for every in range(1, len(types) + 1):
        if types == [_SLIDING if layer % every else _FULL for layer in range(len(types))]:
            found = raw.get(key)  # with few layers several numbers mean the same
            same = isinstance(found, int) and types == [_SLIDING if i % found else _FULL for i in range(len(types))]
            yield key, found if same else every
            return
    raise _InexactError("layer_types is no full_attention every so many layers")


def _backbone(raw: Settings, known: Settings) -> Iterator[tuple[str, Any]]:
    """The backbone of DETR and its relatives, which is timm's and pretrained unless older keys say otherwise."""
    if isinstance(raw.get("backbone_config"), dict) and getattr(known.get("use_timm_backbone"), "default", None):
        yield from {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False}.items()


def _plain(value: Any) -> Any:
    """`value`, a dictionary without keys that say nothing and with its type under one name."""
    if not isinstance(value, dict):
        return value
    named = {**value, "rope_type": _type(value)}
    return {key: one for key, one in named.items() if one is not None and key != "type"}


def _short(value: Any) -> str:
    return json.dumps(value)[:80]
