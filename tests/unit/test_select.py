from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ENGINES, PLAN_PRECISIONS, Settings
from engine.errors import ConfigError
from engine.plans.sidecar import HARDWARE_COMPATIBILITY, PRECISIONS, Machine, PlanFile, mismatch
from engine.probe import Gpu
from engine.select import FASTEST_FIRST, Facts, select
from tests.plans import plan, profiles

L4, H100, B200 = Gpu("NVIDIA L4", (8, 9)), Gpu("NVIDIA H100", (9, 0)), Gpu("NVIDIA B200", (10, 0))
CPU_BUILD, GPU_BUILD = ("CPUExecutionProvider",), ("CUDAExecutionProvider", "CPUExecutionProvider")
TRT = "10.13.0.35"


def plan_file(name: str = "a.plan", **changes: Any) -> PlanFile:
    return PlanFile(plan(**changes), Path("graphs/model/plans") / name)


def settings(**changes: Any) -> Settings:
    return Settings(**{"engine": "auto", "allow_cpu": False, "build_on_boot": False, "precision": "auto", **changes})


def gpu_facts(**changes: Any) -> Facts:
    return Facts(**{"gpu": L4, "providers": GPU_BUILD, "tensorrt": TRT, **changes})


# One step after the other


EXACT = plan_file("exact.plan")
AMPERE = plan_file("ampere.plan", compute_capability="8.0", hardware_compatibility="ampere-plus")
SAME = plan_file("same.plan", gpu_name="NVIDIA L40S", hardware_compatibility="same-compute-capability")
COMPATIBLE = plan_file("compatible.plan", tensorrt_version="10.9.0.34", version_compatible=True)
OTHER_GPU = plan_file("sm_90.plan", compute_capability="9.0")
OTHER_VERSION = plan_file("old.plan", tensorrt_version="8.6.1")
RTX = plan_file("rtx.plan", runtime="tensorrt_rtx", tensorrt_version="1.7.1.116")
USELESS = (OTHER_GPU, OTHER_VERSION, RTX)


@pytest.mark.parametrize(
    ("facts", "wanted", "engine", "step", "plan"),
    [
        (gpu_facts(plans=[*USELESS, COMPATIBLE, AMPERE, SAME, EXACT]), {}, "tensorrt", "exact plan", EXACT),
        (gpu_facts(plans=[*USELESS, COMPATIBLE, AMPERE]), {}, "tensorrt", "plan for several GPUs", AMPERE),
        (gpu_facts(plans=[*USELESS, COMPATIBLE, SAME]), {}, "tensorrt", "plan for several GPUs", SAME),
        (gpu_facts(plans=[*USELESS, COMPATIBLE]), {}, "tensorrt", "version-compatible plan", COMPATIBLE),
        (gpu_facts(plans=USELESS, cached=[EXACT]), {}, "tensorrt", "plan on the volume", EXACT),
        (gpu_facts(plans=USELESS), {"build_on_boot": True}, "tensorrt", "build", None),
        (gpu_facts(plans=USELESS), {}, "onnxruntime-cuda", "ONNX Runtime on CUDA", None),
        (gpu_facts(), {}, "onnxruntime-cuda", "ONNX Runtime on CUDA", None),
        (gpu_facts(plans=[EXACT], tensorrt=None), {}, "onnxruntime-cuda", "ONNX Runtime on CUDA", None),
        (gpu_facts(plans=[EXACT], missing=["pycuda"]), {}, "onnxruntime-cuda", "ONNX Runtime on CUDA", None),
        (
            gpu_facts(providers=CPU_BUILD),
            {"allow_cpu": True},
            "onnxruntime-cpu",
            "ONNX Runtime on the CPU",
            None,
        ),
    ],
)
def test_auto_takes_the_first_step_that_holds(
    facts: Facts, wanted: dict[str, Any], engine: str, step: str, plan: PlanFile | None
):
    choice = select(settings(**wanted), facts)
    assert (choice.engine, choice.plan, choice.build) == (engine, plan, step == "build")
    assert [one.name for one in choice.ladder if one.taken] == [step]
    assert choice.ladder[-1].reason == choice.reason
    assert all(one.reason for one in choice.ladder)
    assert choice.report()[-1] == {"name": step, "taken": True, "reason": choice.reason}


def test_the_steps_that_were_passed_say_why():
    choice = select(settings(), gpu_facts(plans=[OTHER_GPU, AMPERE]))
    first = choice.ladder[0]
    assert (first.name, first.taken) == ("exact plan", False)
    assert "sm_90.plan: it was built for sm_90, and this GPU is NVIDIA L4 (sm_89)" in first.reason
    versions = select(settings(), gpu_facts(plans=[OTHER_GPU])).ladder[2]
    assert (versions.name, versions.reason) == ("version-compatible plan", "the bundle has none")


@pytest.mark.parametrize(("count", "listed"), [(2, ["0", "1"]), (3, ["0", "1", "and 1 more"])])
def test_many_plans_that_do_not_fit_are_not_all_listed(count: int, listed: list[str]):
    many = [plan_file(f"{n}.plan", precision="fp32") for n in range(count)]
    reason = select(settings(precision="fp16"), gpu_facts(plans=many)).ladder[0].reason
    why = ".plan: it is fp32, and PRECISION=fp16 is asked for"
    assert reason == "; ".join(one + why if len(one) == 1 else one for one in listed)


@pytest.mark.parametrize("gpu", [H100, Gpu("NVIDIA H200", (9, 0)), Gpu("Tesla T4", (7, 5))])
def test_every_gpu_before_blackwell_is_used(gpu: Gpu):
    choice = select(settings(), gpu_facts(gpu=gpu))
    assert (choice.engine, choice.reason) == ("onnxruntime-cuda", f"found {gpu}")


def test_the_fastest_precision_of_this_very_gpu_is_taken():
    elsewhere = plan_file("elsewhere.plan", gpu_name="NVIDIA L40S", precision="fp16")
    slow, fast = plan_file("slow.plan", precision="fp32"), plan_file("fast.plan", precision="fp16")
    assert select(settings(), gpu_facts(plans=[elsewhere, slow, fast])).plan == fast
    assert select(settings(), gpu_facts(plans=[elsewhere, slow])).plan == slow
    fits = " fits NVIDIA L4 (sm_89) and TensorRT 10.13.0.35"
    assert select(settings(), gpu_facts(plans=[slow])).reason == f"slow.plan{fits}"
    for name, told in (("NVIDIA L40S", "NVIDIA L40S"), ("", "another GPU")):
        choice = select(settings(), gpu_facts(plans=[elsewhere._replace(plan=plan(gpu_name=name))]))
        assert choice.reason == f"elsewhere.plan{fits}, though built on {told}"


def test_what_was_not_measured_is_taken_in_a_fixed_order():
    left, taken = [plan_file(f"{one}.plan", precision=one) for one in PRECISIONS], []
    while left:
        chosen = select(settings(), gpu_facts(plans=left)).plan
        assert chosen is not None
        left.remove(chosen)
        taken.append(chosen.plan.precision)
    assert taken == ["fp16", "bf16", "int8", "tf32", "fp32"]


def timed(precision: str, *us: int, **changes: Any) -> PlanFile:
    """A plan with one latency for each of the buckets 1 x 8, 1 x 16, 1 x 32, 4 x 8, ..., the last one repeated."""
    ladder = plan(**{key: value for key, value in changes.items() if key in ("batches", "lengths", "profiles")}).ladder
    latencies = (*us, *[us[-1]] * (len(ladder) - len(us))) if us else ()
    return plan_file(f"{precision}.plan", precision=precision, latencies_us=latencies, **changes)


@pytest.mark.parametrize(
    ("plans", "taken"),
    [
        ([timed("fp16", 100), timed("int8", 80)], "int8"),
        ([timed("fp16", 80), timed("int8", 100)], "fp16"),
        ([timed("fp16", 100), timed("int8", 98)], "fp16"),  # which is noise
        ([timed("fp32", 50), timed("tf32", 70), timed("fp16", 90)], "fp32"),
        ([timed("fp16", 100), timed("int8")], "fp16"),  # nothing to compare
        ([timed("fp16", 1000, 10), timed("int8", 500, 20)], "fp16"),  # slower at one bucket of nine
    ],
)
def test_what_was_measured_on_this_gpu_decides(plans: list[PlanFile], taken: str):
    choice = select(settings(), gpu_facts(plans=plans))
    assert choice.plan is not None
    assert choice.plan.plan.precision == taken
    told = f", the fastest of {len(plans)} as measured there"
    assert choice.reason.endswith(told) == all(one.plan.latencies_us for one in plans)


def test_latencies_of_different_gpus_are_not_compared():
    slow, quick = timed("fp16", 900, gpu_name="NVIDIA L40S"), timed("int8", 10, gpu_name="NVIDIA L40")
    assert select(settings(), gpu_facts(plans=[slow, quick])).plan == slow
    assert select(settings(), gpu_facts(plans=[slow, quick, timed("fp32", 5000)])).plan == timed("fp32", 5000)


def test_only_batches_that_the_worker_runs_are_compared():
    """fp16 is faster for one row, int8 for more."""
    single, many = timed("fp16", 10, 10, 10, 100), timed("int8", 20, 20, 20, 50)
    assert select(settings(max_batch_rows=1), gpu_facts(plans=[single, many])).plan == single
    assert select(settings(max_batch_rows=32), gpu_facts(plans=[single, many])).plan == many
    shared = timed("int8", 5, batches=(1,), profiles=profiles((1,)))
    assert select(settings(), gpu_facts(plans=[single, shared])).plan == shared
    for_many = {"batches": (4, 8), "profiles": profiles((4, 8))}  # of which the worker runs none
    slow, quick = timed("fp16", 100, **for_many), timed("int8", 50, **for_many)
    assert select(settings(max_batch_rows=1), gpu_facts(plans=[slow, quick])).plan == quick


def test_a_plan_that_is_alone_is_not_called_the_fastest():
    assert select(settings(), gpu_facts(plans=[timed("fp16", 100)])).reason.endswith("and TensorRT 10.13.0.35")


def test_a_plan_that_ends_early_is_not_taken_for_its_speed():
    """Rows that are longer than its lengths would fail."""
    whole, short = timed("fp16", 100), timed("int8", 5, lengths=(8, 16), profiles=profiles((1, 4, 8), (8, 16)))
    assert select(settings(), gpu_facts(plans=[short, whole])).plan == whole
    assert select(settings(), gpu_facts(plans=[short])).plan == short


def test_nor_is_one_passed_over_for_a_longer_one_that_does_not_fit():
    lengths = (8, 16, 32, 64)
    longer = timed("fp16", 100, compute_capability="9.0", lengths=lengths, profiles=profiles((1, 4, 8), lengths))
    here = timed("fp32", 100)
    assert select(settings(), gpu_facts(plans=[longer, here])).plan == here


LATENCIES = st.lists(st.integers(1, 10**7), min_size=9, max_size=9)


@given(st.lists(st.tuples(st.sampled_from(FASTEST_FIRST), LATENCIES | st.just([])), min_size=1, max_size=5))
def test_no_plan_is_passed_over_for_one_that_is_slower_everywhere(found: list[tuple[str, list[int]]]):
    plans = [
        plan_file(f"{index}.plan", precision=precision, latencies_us=tuple(us))
        for index, (precision, us) in enumerate(found)
    ]
    choice = select(settings(), gpu_facts(plans=plans))
    assert choice == select(settings(), gpu_facts(plans=plans)), "equal facts, equal choices"
    assert choice.plan is not None
    taken = choice.plan.plan
    if all(us for _, us in found):
        for one in plans:
            ratios = [a / b for a, b in zip(taken.latencies_us, one.plan.latencies_us, strict=True)]
            assert min(ratios) <= 1.03, "slower at every bucket than another"
    else:
        assert taken.precision == min((precision for precision, _ in found), key=FASTEST_FIRST.index)


def test_a_precision_that_is_asked_for():
    slow, fast = plan_file("slow.plan", precision="fp32"), plan_file("fast.plan", precision="fp16")
    assert select(settings(precision="fp32"), gpu_facts(plans=[slow, fast])).plan == slow
    choice = select(settings(precision="bf16"), gpu_facts(plans=[slow, fast]))
    assert choice.engine == "onnxruntime-cuda"
    assert "it is fp16, and PRECISION=bf16 is asked for" in choice.ladder[0].reason
    assert "built for sm_90" in select(settings(precision="bf16"), gpu_facts(plans=[OTHER_GPU])).ladder[0].reason


def test_what_failed_a_moment_ago_is_passed_over():
    struck = {str(EXACT.path): "it does not load", "build": "it took too long", "onnxruntime-cuda": "no cuDNN"}
    facts = gpu_facts(plans=[EXACT], struck=struck)
    choice = select(settings(build_on_boot=True, allow_cpu=True), facts)
    assert (choice.engine, choice.reason) == ("onnxruntime-cpu", "no cuDNN; allowed by ALLOW_CPU=1")
    assert [one.reason for one in choice.ladder if one.name in ("build", "ONNX Runtime on CUDA")] == [
        "it took too long",
        "no cuDNN",
    ]
    assert "it does not load" in choice.ladder[0].reason


def test_blackwell_is_told_plainly():
    facts = gpu_facts(gpu=B200, plans=[plan_file(compute_capability="10.0")])
    with pytest.raises(ConfigError, match=r"NVIDIA B200 \(sm_100\), which needs CUDA 12\.8.*choose a GPU up to H200"):
        select(settings(), facts)
    assert select(settings(allow_cpu=True), facts).engine == "onnxruntime-cpu"


# The CPU


@pytest.mark.parametrize(
    "facts", [Facts(None, CPU_BUILD), Facts(None, GPU_BUILD), Facts(None, GPU_BUILD, tensorrt=TRT)]
)
def test_without_a_gpu_that_anybody_asked_for_no_setting_is_needed(facts: Facts):
    choice = select(settings(), facts)
    assert choice.engine == "onnxruntime-cpu"
    assert choice.reason == "no CUDA driver or no device"


def test_packages_for_the_cpu_ask_for_no_gpu():
    choice = select(settings(), Facts(L4, CPU_BUILD))
    assert choice.engine == "onnxruntime-cpu"
    assert choice.reason == "found NVIDIA L4 (sm_89), but the installed ONNX Runtime is the CPU build"


@pytest.mark.parametrize(
    ("facts", "who"),
    [
        (Facts(None, CPU_BUILD, promised="RUNPOD_GPU_COUNT=1"), "RUNPOD_GPU_COUNT=1"),
        (Facts(L4, CPU_BUILD, promised="RUNPOD_GPU_COUNT=1"), "RUNPOD_GPU_COUNT=1"),
        (Facts(None, GPU_BUILD, device_file=True), "/dev shows one"),
        (Facts(L4, CPU_BUILD, tensorrt=TRT), "NVIDIA L4"),
        (gpu_facts(gpu=B200), "NVIDIA B200"),
    ],
)
def test_where_a_gpu_was_asked_for_the_cpu_must_be_allowed(facts: Facts, who: str):
    with pytest.raises(ConfigError) as error:
        select(settings(), facts)
    assert who in str(error.value).partition("a GPU was asked for (")[2]
    assert str(error.value).endswith("set ALLOW_CPU=1 to serve on the CPU all the same")
    choice = select(settings(allow_cpu=True), facts)
    assert choice.engine == "onnxruntime-cpu"
    assert choice.reason.endswith("allowed by ALLOW_CPU=1")


def test_without_any_runtime_nothing_is_chosen():
    with pytest.raises(ConfigError, match="onnxruntime is not installed; pip install -r requirements/cpu.txt, or run"):
        select(settings(allow_cpu=True), Facts(None, ()))


# An engine by name


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (Facts(None, GPU_BUILD), "no CUDA driver or no device"),
        (Facts(L4, ()), "onnxruntime is not installed"),
        (Facts(L4, CPU_BUILD), "found NVIDIA L4 (sm_89), but the installed ONNX Runtime is the CPU build"),
    ],
)
def test_onnxruntime_cuda_is_never_replaced(facts: Facts, why: str):
    with pytest.raises(ConfigError) as error:
        select(settings(engine="onnxruntime-cuda"), facts)
    assert str(error.value) == (
        f"ENGINE=onnxruntime-cuda cannot run here: {why}; run on a machine with an NVIDIA GPU and "
        "requirements/onnxruntime.txt, or set ENGINE=auto"
    )


def test_a_refusal_names_every_step():
    with pytest.raises(ConfigError) as error:
        select(settings(), Facts(None, CPU_BUILD, no_gpu="cuInit ends with error 803", promised="RUNPOD_GPU_COUNT=1"))
    why = "no CUDA driver or no device: cuInit ends with error 803"
    assert str(error.value) == (
        f"ENGINE=auto cannot run here: TensorRT: {why}; ONNX Runtime on CUDA: {why}; ONNX Runtime on the CPU: "
        "a GPU was asked for (RUNPOD_GPU_COUNT=1) and ALLOW_CPU is not 1; "
        "set ALLOW_CPU=1 to serve on the CPU all the same"
    )


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(None, GPU_BUILD, tensorrt=TRT), "no CUDA driver or no device"),
        (Facts(None, (), tensorrt=TRT), "no CUDA driver or no device"),
        (gpu_facts(tensorrt=None), "the package tensorrt is not installed"),
        (gpu_facts(missing=["pycuda", "cuda"]), "pycuda and cuda not installed"),
        (gpu_facts(plans=USELESS), "TensorRT 8.6.1"),
        (gpu_facts(), "the bundle has none"),
        (gpu_facts(gpu=B200), "choose a GPU up to H200"),
    ],
)
def test_tensorrt_never_falls_back(facts: Facts, reason: str):
    with pytest.raises(ConfigError) as error:
        select(settings(engine="tensorrt", allow_cpu=True), facts)
    assert str(error.value).startswith("ENGINE=tensorrt cannot run here: ")
    assert reason in str(error.value)
    could_build = facts.gpu == L4 and facts.tensorrt and not facts.missing
    fix = "set ENGINE=auto to take the next best" + ", or BUILD_ON_BOOT=1 to build a plan here" * bool(could_build)
    assert str(error.value).endswith(f"; {fix}")


@pytest.mark.parametrize("build_on_boot", [False, True])
def test_a_build_that_cannot_be_done_is_not_advised(build_on_boot: bool):
    facts = gpu_facts(struck={"build": "this image has no `export`"})
    with pytest.raises(ConfigError, match="set ENGINE=auto to take the next best$"):
        select(settings(engine="tensorrt", build_on_boot=build_on_boot), facts)


@pytest.mark.parametrize("name", ["fake", "onnxruntime-cpu"])
def test_what_runs_anywhere_is_taken_at_its_word(name: str):
    choice = select(settings(engine=name), Facts(None, ()))
    assert (choice.engine, choice.plan, choice.build, choice.report()) == (name, None, False, [])


# All of it


any_plan = st.fixed_dictionaries(
    {
        "runtime": st.sampled_from(["tensorrt", "tensorrt_rtx"]),
        "tensorrt_version": st.sampled_from([TRT, "10.13.0.34", "10.9.0.34", "8.6.1"]),
        "compute_capability": st.sampled_from(["7.5", "8.0", "8.9", "9.0", "10.0"]),
        "hardware_compatibility": st.sampled_from(HARDWARE_COMPATIBILITY),
        "version_compatible": st.booleans(),
        "precision": st.sampled_from(PRECISIONS),
        "gpu_name": st.sampled_from(["NVIDIA L4", "NVIDIA L40S"]),
    }
)


@st.composite
def any_facts(draw: st.DrawFn) -> Facts:
    found = [plan_file(f"{n}.plan", **changes) for n, changes in enumerate(draw(st.lists(any_plan, max_size=5)))]
    cached = [plan_file(f"cached-{n}.plan", **c) for n, c in enumerate(draw(st.lists(any_plan, max_size=3)))]
    keys = [*(str(one.path) for one in (*found, *cached)), "build", "onnxruntime-cuda"]
    return Facts(
        gpu=draw(st.sampled_from([None, L4, H100, B200, Gpu("Tesla T4", (7, 5))])),
        providers=draw(st.sampled_from([(), CPU_BUILD, GPU_BUILD])),
        promised=draw(st.sampled_from([None, "RUNPOD_GPU_COUNT=1"])),
        device_file=draw(st.booleans()),
        tensorrt=draw(st.sampled_from([None, TRT, "8.6.1"])),
        missing=draw(st.sampled_from([(), ("pycuda",)])),
        plans=found,
        cached=cached,
        struck=dict.fromkeys(draw(st.sets(st.sampled_from(keys))), "it failed"),
    )


any_settings = st.builds(
    Settings,
    engine=st.sampled_from(ENGINES),
    allow_cpu=st.booleans(),
    build_on_boot=st.booleans(),
    precision=st.sampled_from(PLAN_PRECISIONS),
)


@given(any_settings, any_facts())
def test_whatever_the_facts_nothing_is_chosen_that_cannot_run(wanted: Settings, facts: Facts):
    try:
        choice = select(wanted, facts)
    except ConfigError:
        assert wanted.engine in ("auto", "tensorrt", "onnxruntime-cuda")
        if wanted.engine == "auto":  # only ever when the CPU is not allowed, or no runtime for it is there
            assert not facts.providers or not wanted.allow_cpu
        return
    assert wanted.engine in ("auto", choice.engine)
    if choice.engine in ("tensorrt", "onnxruntime-cuda"):
        assert facts.gpu is not None
        assert facts.gpu.compute_capability < (10, 0)
    if choice.engine == "onnxruntime-cuda":
        assert "CUDAExecutionProvider" in facts.providers
        assert "onnxruntime-cuda" not in facts.struck
    if choice.engine == "tensorrt":
        _check_tensorrt(wanted, facts, choice.plan)
        assert choice.build is (choice.plan is None)
        assert not choice.build or (wanted.build_on_boot and "build" not in facts.struck)
    if choice.engine == "onnxruntime-cpu" and wanted.engine == "auto":
        assert facts.providers
        assert wanted.allow_cpu or not facts.promised


def _check_tensorrt(wanted: Settings, facts: Facts, chosen: PlanFile | None) -> None:
    assert facts.gpu is not None
    assert facts.tensorrt is not None
    assert not facts.missing
    machine = Machine(facts.tensorrt, "{}.{}".format(*facts.gpu.compute_capability))

    def fits(one: PlanFile) -> bool:
        allowed = wanted.precision in ("auto", one.plan.precision) and str(one.path) not in facts.struck
        brings_code = one in facts.cached and one.plan.version_compatible
        return allowed and not brings_code and mismatch(one.plan, machine) is None

    fitting = [one for one in (*facts.plans, *facts.cached) if fits(one)]
    assert (chosen in fitting) if chosen is not None else not fitting
    exact = [one.plan for one in facts.plans if fits(one) and _is_plain(one)]
    if exact:
        assert chosen is not None
        assert chosen.plan in exact
        rank = FASTEST_FIRST.index
        same_gpu = [one for one in exact if one.gpu_name == facts.gpu.name] or exact
        assert rank(chosen.plan.precision) == min(rank(one.precision) for one in same_gpu)


def _is_plain(one: PlanFile) -> bool:
    return not one.plan.version_compatible and one.plan.hardware_compatibility == "none"
