"""`python -m export plan BUNDLE --on-runpod GPU[,GPU]`: plans from rented GPUs, one pod a type, one after the other.

    bundle ── price and limits ── check ── pod ── send ── build ── fetch what is new ── end the pod ── compare ── bundle

The check is of what shows without a GPU: that the graph in half precision answers as in fp32, that lengths fit.
What comes back is judged by changes.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from engine.bundle import CHECKSUM, MANIFEST, SIGNATURE, Bundle, open_bundle, write_manifest
from engine.plans.sidecar import SUFFIX
from engine.sizes import readable
from engine.table import table
from export.bundle_folder import changed_bundle_folder, finish_exchange, refuse_newer
from export.command import interrupts
from export.command.arguments import Parser
from export.command.exit_codes import INTERRUPTED, OK
from export.command.outcome import Outcome, outcome_of, plans_added
from export.command.progress import stage
from export.command.terminal import without_effect
from export.errors import Refused, Unavailable
from export.plans.recipe import plan_command
from export.pods.api import Api
from export.pods.changes import HALF, manifest_of, new_files
from export.pods.client import PodClient
from export.pods.gpus import check as check_gpus
from export.pods.gpus import check_recipe
from export.pods.pod import Pod, load_api, rented
from export.pods.server import PORT

PROXY = "https://{pod}-{port}.proxy.runpod.net"
_SPARE_DISK_GB = 10
_LEAST_S = 60.0
"""What --time-limit takes at least, and what the cost limit has to buy."""


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    bundle: Path
    gpu_types: tuple[str, ...]
    image: str
    registry: str
    """RunPod's id of the credential that the image is pulled with; empty for a public one."""
    cloud: str
    cost_limit: float
    """Dollars for all pods together."""
    time_limit_s: float
    """For each pod."""
    dry_run: bool
    proxy: str
    pause_s: float
    """Between two looks at what a pod does."""
    plan_arguments: tuple[str, ...]
    """For `python -m export plan` on the pod."""


def main(argv: Sequence[str]) -> Outcome:
    """Add a plan for every GPU type to the bundle. Raises Refused, ParityFailed or BundleError.

    GPU types that were done before one fails, or is interrupted, keep their plans: the outcome names them.
    """
    order = order_from_argv(argv)
    finish_exchange(order.bundle)
    before = open_bundle(order.bundle)
    refuse_newer(order.bundle)
    before.verify()
    _check_bundle(order, before)
    api = load_api()
    prices = {gpu_type: api.hourly_price(gpu_type, order.cloud) for gpu_type in order.gpu_types}
    _print_prices(order, prices)
    if order.dry_run:
        print("dry run: no pod was created")
        return Outcome(OK)
    _check_here(order)
    try:
        _rent_each(api, order, prices)
    except BaseException as error:
        if (outcome := _with_plans(order, before, error)) is None:
            raise
        return outcome
    bundle, names = _added(order, before)
    with without_effect():
        print(f"\nbundle    {order.bundle}")
    return Outcome(
        OK,
        next="build the image again with this bundle; sign it again if it is signed",
        more=plans_added(bundle, names),
    )


def _rent_each(api: Api, order: Order, prices: dict[str, float]) -> None:
    spent = 0.0
    for gpu_type in order.gpu_types:
        interrupts.check()  # for what came while a pod was ended
        seconds = min(order.time_limit_s, (order.cost_limit - spent) / prices[gpu_type] * 3600)
        if seconds < _LEAST_S:
            left = max(seconds, 0)
            raise Refused(f"--cost-limit leaves {left:.0f} s of {gpu_type}, and a pod needs a minute; raise it")
        begin, goes_on = time.monotonic(), False
        try:
            _add_plans(api, order, gpu_type, seconds)
            goes_on = gpu_type != order.gpu_types[-1]
        finally:
            took = time.monotonic() - begin
            spent += took / 3600 * prices[gpu_type]
            with nullcontext() if goes_on else without_effect():  # no more is paid for what nobody reads
                print(f"{gpu_type}: {took:.0f} s; about ${spent:.2f} of ${order.cost_limit:.2f} spent", flush=True)


def _added(order: Order, before: Bundle) -> tuple[Bundle, list[str]]:
    """The bundle as it is now, and the plans that it has and `before` had not."""
    bundle = open_bundle(order.bundle)
    old = before.manifest.files
    return bundle, [name for name, of in bundle.manifest.files.items() if name.endswith(SUFFIX) and of != old.get(name)]


def _with_plans(order: Order, before: Bundle, error: BaseException) -> Outcome | None:
    """What `error` comes to behind plans that are in the bundle by now; None without any, and of a defect."""
    bundle, names = _added(order, before)
    outcome = outcome_of(KeyboardInterrupt() if isinstance(error, BrokenPipeError) else error)
    if outcome is None or not names:
        return None
    why = "interrupted" if outcome.code == INTERRUPTED else outcome.sentence
    kept = f"{', '.join(names)} had come by then and stays; sign the bundle again if it was signed"
    return replace(outcome, sentence=f"{why}; {kept}", more=plans_added(bundle, names))


def order_from_argv(argv: Sequence[str]) -> Order:
    """The order of a command line. Options that are not known here go to the pod as they are. Raises Refused."""
    parser = _parser()
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])  # alone: `--on-runpod --help` lacks the GPU
    if argv and argv[0].startswith("-"):
        # Options for the pod are not known here, nor whether a word that follows one is its value.
        raise Refused("the bundle comes first: python -m export plan BUNDLE --on-runpod GPU --image NAME")
    asked, others = parser.parse_known_args(argv)
    gpu_types = tuple(dict.fromkeys(name.strip() for name in asked.on_runpod.split(",") if name.strip()))
    if not gpu_types:
        raise Refused("--on-runpod names no GPU; give RunPod's ids, such as 'NVIDIA L4,NVIDIA A40'")
    check_gpus(gpu_types)
    if not 0 < asked.cost_limit < 1000 or not _LEAST_S <= asked.time_limit <= 6 * 3600:
        raise Refused("--cost-limit takes dollars from 0 up to 1000, --time-limit seconds from 60 to 21600")
    _, recipe = plan_command([str(asked.bundle), *others])  # refuses here what the pod would refuse
    check_recipe(recipe, gpu_types)
    if not asked.image.strip():
        raise Refused("--image is empty; name this worker's image, built with WITH_BUILDER=1, which pods can pull")
    if any(not word.isprintable() or '"' in word for word in (asked.image, asked.registry, *gpu_types)):
        raise Refused("--image, --registry and --on-runpod take plain names; leave out quotes and line breaks")
    return Order(
        bundle=asked.bundle,
        gpu_types=gpu_types,
        image=asked.image,
        registry=asked.registry.strip(),
        cloud=asked.cloud.upper(),
        cost_limit=asked.cost_limit,
        time_limit_s=asked.time_limit,
        dry_run=asked.dry_run,
        proxy=asked.proxy,
        pause_s=asked.pause,
        plan_arguments=tuple(others),
    )


def _check_bundle(order: Order, bundle: Bundle) -> None:
    """Raise Refused for a precision of the bundle's that a GPU lacks, and for a graph that a pod would make anew."""
    _, recipe = plan_command([str(order.bundle), *order.plan_arguments])
    recipe = recipe.of(bundle.manifest.precisions)
    check_recipe(recipe, order.gpu_types)
    precision = recipe.precision
    there = [graph.onnx[precision] for graph in bundle.manifest.graphs.values() if precision in graph.onnx]
    if there and precision in HALF and recipe.form:
        raise Refused(
            f"--form {recipe.form} makes {there[0]} anew, and a pod may change no graph of the bundle; leave --form "
            "out, or build where the GPU is"
        )


def _print_prices(order: Order, prices: dict[str, float]) -> None:
    rows = [("GPU", "an hour", "at most")]
    for gpu_type, price in prices.items():
        most = min(order.cost_limit, price * order.time_limit_s / 3600)
        rows.append((gpu_type, f"${price:.2f}", f"${most:.2f}"))
    print(table(rows))
    print(f"limits: {order.time_limit_s:.0f} s a GPU, ${order.cost_limit:.2f} in all; image {order.image}")


def _check_here(order: Order) -> None:
    """What a pod would find out for money. Raises Refused or ParityFailed."""
    if lacking := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
        print(f"not checked before: {' and '.join(lacking)} not installed here (requirements/export.txt)")
        return
    from export.plans.precision import check_without_gpu

    _, recipe = plan_command([str(order.bundle), *order.plan_arguments])
    check_without_gpu(order.bundle, recipe)


def _add_plans(api: Api, order: Order, gpu_type: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    bundle = open_bundle(order.bundle)
    size = sum(size for size, _ in bundle.manifest.files.values())
    print(f"\n{gpu_type}")
    try:
        with (
            rented(
                api,
                gpu_type,
                order.image,
                registry=order.registry,
                cloud=order.cloud,
                disk_gb=_SPARE_DISK_GB + 4 * size // 10**9,
                time_limit_s=seconds,
            ) as pod,
            changed_bundle_folder(order.bundle) as copy,
        ):
            _build(pod, order, bundle, copy, deadline)
    except TimeoutError:
        raise Refused(f"the pod had {seconds:.0f} s and was ended; raise --time-limit or --cost-limit") from None
    except BrokenPipeError:  # of stdout, whose reader has ended
        raise
    except ConnectionError as error:  # of export/pods/client.py; what the disk here says is another matter
        raise Unavailable(f"the pod cannot be reached ({error}) and was ended; try again") from error


def _build(pod: Pod, order: Order, bundle: Bundle, copy: Path, deadline: float) -> None:
    """Have the pod build, and bring what is new into `copy`."""
    client = PodClient(order.proxy.format(pod=pod.id, port=PORT), pod.token, deadline, pod.is_alive, order.pause_s)
    begin = time.monotonic()
    with stage("pod") as note:
        try:
            state = client.wait()
            pod.was_seen = True
        except TimeoutError:  # as behind an image that is never pulled, which no status tells
            raise Refused(
                f"the pod did not answer in {time.monotonic() - begin:.0f} s and was ended; RunPod may not find "
                f"{order.image}, or may not pull it: check --image, name a credential with --registry if it is private,"
                " or raise --time-limit or --cost-limit"
            ) from None
        note(pod.id)
    with stage("send") as note:
        # An image that was built with this bundle has it already.
        note("the image has it" if state["baked"] == bundle.sha256 else readable(client.send(bundle)))
    with stage("build"):
        client.build(order.plan_arguments, show=lambda line: print(f"  | {line}", flush=True))
    with stage("fetch") as note:
        for name in (MANIFEST, CHECKSUM):
            client.fetch(name, copy / name)
        built = open_bundle(copy)
        new, manifest = new_files(bundle, built), manifest_of(bundle, built)
        note(readable(sum(client.fetch(name, copy / name) for name in new)))
    built.verify()
    (copy / SIGNATURE).unlink(missing_ok=True)  # of the bundle as it was
    write_manifest(copy, manifest)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m export plan --on-runpod",
        usage="python -m export plan BUNDLE --on-runpod GPU[,GPU] --image NAME [options]",
        description="Build plans on rented RunPod pods and bring them into a bundle. Needs RUNPOD_API_KEY.",
        epilog="All other options go to `python -m export plan` on the pod. Every pod is terminated: when its plan is "
        "there, on an error, on Ctrl-C, and when a limit is reached. Exit codes are those of `python -m export plan`.",
    )
    parser.add_bundle()
    parser.add_argument("--on-runpod", required=True, metavar="GPU[,GPU]", help="RunPod's GPU ids, such as 'NVIDIA L4'")
    parser.add_argument("--image", required=True, metavar="NAME", help="this worker's image, built with WITH_BUILDER=1")
    parser.add_argument(
        "--registry", default="", metavar="ID", help="RunPod's id of the credential that a private image is pulled with"
    )
    parser.add_argument("--cloud", choices=("secure", "community"), default="secure", help="(default: %(default)s)")
    parser.add_argument("--cost-limit", type=float, default=2.0, metavar="USD", help="for all pods (default: 2.00)")
    parser.add_argument("--time-limit", type=float, default=1800.0, metavar="S", help="for each pod (default: 1800)")
    parser.add_json()
    parser.add_argument("--dry-run", action="store_true", help="show prices and limits, create nothing")
    # For tests:
    parser.add_argument("--proxy", default=PROXY, help=argparse.SUPPRESS)
    parser.add_argument("--pause", type=float, default=3.0, help=argparse.SUPPRESS)
    return parser
