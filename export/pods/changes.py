"""What a pod may change in a bundle: what plans add.

Every file that was there keeps its hash, except for parity.json, the timing cache, and plans of the pod's own
architecture with their sidecars. The manifest is written here, from the one that was here: the pod's has to say the
same, but for graphs in half precision that the plans were built from.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace

from engine.bundle import MANIFEST, Bundle, Manifest
from engine.errors import BundleError
from engine.plans.sidecar import TIMING_CACHE

_MAY_CHANGE = re.compile(rf"parity\.json|graphs/[^/]+/plans/{re.escape(TIMING_CACHE)}")
_OF_A_PLAN = re.compile(r"graphs/[^/]+/plans/(sm_\d+)\b[^/]*\.(?:plan|json)")
HALF = ("fp16", "bf16")


def new_files(old: Bundle, new: Bundle) -> list[str]:
    """What `new` has beyond `old`. Raises BundleError when the pod changed or lost anything else.

    A pod has one GPU, whose plans it may build anew; those of other architectures stay as they were.
    """
    before, after = old.manifest.files, new.manifest.files
    found = [name for name in after if after[name] != before.get(name)]
    added = [name for name in found if name not in before]
    built = set(map(_architecture, added)) - {""} or set(map(_architecture, found)) - {""}
    own = built if len(built) == 1 else set()
    wrong = [
        name
        for name in before
        if after.get(name) != before[name]
        and (name not in after or not (_MAY_CHANGE.fullmatch(name) or _architecture(name) in own))
    ]
    if wrong:
        raise BundleError(f"the pod changed {', '.join(wrong)}; the bundle here stays as it was")
    halves = {path for made in _halves(old).values() for path in made.values()}
    odd = [
        name
        for name in added
        if not (_MAY_CHANGE.fullmatch(name) or _architecture(name) or re.sub(r"\.bin$", ".onnx", name) in halves)
    ]
    if odd:
        raise BundleError(f"the pod added {', '.join(odd)}, which no plan needs; the bundle here stays as it was")
    if not built:
        raise BundleError("the pod sent no plan; the bundle here stays as it was")
    return found


def manifest_of(old: Bundle, new: Bundle) -> Manifest:
    """That of `old`, with the graphs in half precision that `new` brings.

    Raises BundleError where that of `new` says anything else; an older image leaves out what it does not know.
    """
    graphs = dict(old.manifest.graphs)
    for name, halves in _halves(old).items():
        brought = {one: path for one, path in halves.items() if path in new.manifest.files}
        graphs[name] = replace(graphs[name], onnx={**graphs[name].onnx, **brought})
    manifest = replace(old.manifest, graphs=graphs)
    names = [field.name for field in fields(Manifest) if field.name not in ("files", "pieces")]
    if changed := [name for name in names if getattr(manifest, name) != getattr(new.manifest, name)]:
        raise BundleError(
            f"the pod changed {', '.join(changed)} in {MANIFEST}; the bundle here stays as it was; build --image from "
            "this version"
        )
    return manifest


def _halves(bundle: Bundle) -> dict[str, dict[str, str]]:
    """For every graph the files, by precision, of those in half precision that it lacks."""
    return {
        name: {one: f"graphs/{name}/{one}.onnx" for one in HALF if one not in graph.onnx}
        for name, graph in bundle.manifest.graphs.items()
    }


def _architecture(name: str) -> str:
    """Which GPUs a plan is for, or the plan of a sidecar, as in "sm_89"; "" where `name` is neither."""
    found = _OF_A_PLAN.fullmatch(name)
    return found.group(1) if found else ""
