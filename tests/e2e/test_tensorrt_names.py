"""Every name of TensorRT that we use exists in the real bindings of 8.6 and of 10.13, with the parameters that we give.

The bindings import without TensorRT's libraries, a GPU or a driver when empty functions stand in for what they link.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.tensorrt_names import OBJECTS, Use, _uses, sources, takes, uses

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "wheels"
BINDINGS = {"8.6": "tensorrt-bindings==8.6.1", "10.13": "tensorrt-cu11-bindings==10.13.0.35"}
SIGNATURES = {  # what the syntax tree does not tell: called with a starred argument, or by TensorRT on classes of ours
    "IOptimizationProfile.set_shape": "input min opt max",
    "ILogger.log": "severity msg",
    "IProgressMonitor.phase_start": "phase_name parent_phase num_steps",
    "IProgressMonitor.step_complete": "phase_name step",
    "IProgressMonitor.phase_finish": "phase_name",
    "ICudaEngine.create_execution_context": "strategy",
    "IExecutionContext.set_device_memory": "memory size",
}
ONLY_SINCE_10 = (
    "IProgressMonitor",
    "IBuilderConfig.progress_monitor",
    "ExecutionContextAllocationStrategy.USER_MANAGED",
    "ICudaEngine.create_execution_context",  # takes a strategy since
)
ONLY_RTX = ("IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability", "ComputeCapability")
"""What the code uses behind a question for the version."""

_PROBE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tensorrt_bindings as trt
found = {}
for name in json.load(sys.stdin):
    value = trt
    for part in name.split("."):
        value = getattr(value, part, None)
    found[name] = None if value is None else value.__doc__ or ""
print(json.dumps({"version": trt.__version__, "names": found}))
"""


def _wheel(requirement: str) -> Path:
    """The wheel in build/wheels; fetched once."""
    name, version = requirement.replace("-", "_").split("==")
    pattern = f"{name}-{version}-cp311-*.whl"
    if not list(WHEELS.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        options = ["--retries", "1", "--timeout", "10", "--only-binary", ":all:", "--dest", str(WHEELS), requirement]
        done = subprocess.run([*pip, *options], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{requirement} could not be fetched: {done.stderr.strip().splitlines()[-1:]}")
    return next(WHEELS.glob(pattern))


_OBJECT = """
#include <stdlib.h>
static void *methods[512], **object;
static void *answer(void) { return object; }
static void *make(void) {
    for (int i = 0; !object && i < 512; i++) methods[i] = (void *)answer;
    if (!object) (object = calloc(2, 4096)), object = (void **)(((size_t)object + 4095) / 4096 * 4096);
    object[0] = methods, object[1] = object;
    return object;
}
"""
"""All that the bindings get: it has every method, and each returns it again. As a bool that is false, for its address
ends in zeros; so it says no to whatever sets something."""


def _stand_ins(library: Path, folder: Path) -> None:
    """Libraries with the names that `library` links; the first has what is missing, functions that give _OBJECT."""
    if not (shutil.which("gcc") and shutil.which("readelf")):
        pytest.skip("gcc and readelf are needed to build stand-ins for TensorRT's libraries")
    folder.mkdir()

    def read(*options: str) -> str:
        return subprocess.run(["readelf", "-W", *options, library], capture_output=True, text=True, check=True).stdout

    missing = re.findall(r"FUNC\s+GLOBAL\s+DEFAULT\s+UND (\w+)\s*$", read("--dyn-syms"), re.MULTILINE)
    source = _OBJECT + "".join(f"void *{name}(void) {{ return make(); }}\n" for name in missing)
    for name in re.findall(r"\[(libnv\w+\.so\.\d+)\]", read("-d")):
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / name), f"-Wl,-soname,{name}"]
        subprocess.run(command, input=source, text=True, check=True)
        source = ""


class Bindings:
    """The names of one version, asked for in a process of its own."""

    def __init__(self, requirement: str, folder: Path) -> None:
        self._site, self._libraries = folder / "site", folder / "lib"
        with zipfile.ZipFile(_wheel(requirement)) as wheel:
            wheel.extractall(self._site)
        _stand_ins(self._site / "tensorrt_bindings" / "tensorrt.so", self._libraries)

    def run(self, source: str, said: str = "") -> subprocess.CompletedProcess[str]:
        """Run Python's `source` where the bindings are, with `said` on its standard input."""
        command = [sys.executable, "-c", source, str(self._site)]
        env = {"LD_LIBRARY_PATH": str(self._libraries), "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, input=said, env=env, capture_output=True, text=True)

    def docstrings(self, names: set[str]) -> dict[str, str | None]:
        """Name -> docstring; None for a name that is not there."""
        done = self.run(_PROBE, json.dumps(sorted(names)))
        assert done.returncode == 0, done.stderr
        found: dict[str, str | None] = json.loads(done.stdout)["names"]
        return found


_REFUSED = """
import sys
sys.path.insert(0, sys.argv[1])
import tensorrt_bindings as trt
from pathlib import Path
from engine.backends.tensorrt_api import content_of, make_execution_context, messages, set_profile
cuda_engine = trt.Runtime(messages(trt)).deserialize_cuda_engine(content_of(Path(trt.__file__)))
handle = make_execution_context(trt, cuda_engine)
print(handle.set_input_shape("x", (1, 2)), handle.set_tensor_address("x", 256), flush=True)
print(set_profile(handle, 0, 1))
"""


@pytest.fixture(scope="module", params=BINDINGS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    return Bindings(BINDINGS[request.param], tmp_path_factory.mktemp("bindings"))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Bindings]:
    return [Bindings(one, tmp_path_factory.mktemp("bindings")) for one in BINDINGS.values()]


def complaints(found: list[Use], docstrings: dict[str, str | None]) -> list[str]:
    """A line for each name that is missing and for each call that no signature takes."""
    said = []
    for use in found:
        docstring = docstrings[use.name]
        if docstring is None:
            said.append(f"{use.where}: there is no {use.name}")
        elif use.call and "(self" in docstring and not takes(docstring, use.name.rpartition(".")[2], use.call):
            said.append(f"{use.where}: {use.name} takes something else: {docstring.splitlines()[0]}")
    return said


def ours() -> list[Use]:
    return [use for file in sources(ROOT) for use in uses(file)]


def test_every_name_that_we_use_is_there_and_takes_what_we_give(bindings: Bindings):
    required = [use for use in ours() if not use.optional and use.name not in ONLY_SINCE_10 + ONLY_RTX]
    assert len({use.name for use in required}) > 25
    assert complaints(required, bindings.docstrings({use.name for use in required})) == []


def test_a_name_that_we_ask_for_is_there_in_one_version_at_least(both: list[Bindings]):
    """Beside those of TensorRT-RTX, whose builder runs for real in another test."""
    names = {use.name for use in ours() if use.optional} | set(ONLY_SINCE_10)
    assert names
    known = [one.docstrings(names) for one in both]
    missing = {name for name in names if all(found[name] is None for found in known)}
    assert missing <= set(ONLY_RTX)
    assert all(known[1][name] is not None for name in ONLY_SINCE_10)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_that_the_source_does_not_show(bindings: Bindings, name: str):
    known = bindings.docstrings({name, "IProgressMonitor"})
    docstring = known[name]
    if known["IProgressMonitor"] is None and name.startswith((*ONLY_SINCE_10, "IExecutionContext.set_device_memory")):
        pytest.skip("this version is before 10")
    assert docstring is not None
    method, parameters = name.rpartition(".")[2], SIGNATURES[name].split()
    assert takes(docstring, method, (len(parameters), ())), docstring
    assert takes(docstring, method, (0, parameters)), docstring


def test_what_the_bindings_do_where_tensorrt_says_no(both: list[Bindings]):
    """A profile that is refused ends the process in 8.6, whose bindings hold no interpreter lock there."""
    old, new = (one.run(_REFUSED) for one in both)
    assert (new.stdout, new.returncode) == ("False False\nFalse\n", 0), new.stderr
    assert (old.stdout, old.returncode) == ("False False\n", -signal.SIGSEGV), old.stderr


def test_the_files_that_call_tensorrt_are_covered():
    """Each holds its objects in variables that OBJECTS knows; else nothing would be checked, silently."""
    files = {file.name: {use.name for use in uses(file)} for file in sources(ROOT)}
    assert {"network.py", "messages.py", "builder.py", "tensorrt.py", "tensorrt_api.py"} <= set(files)
    assert all(files.values())
    running = {"Runtime", "ICudaEngine", "IExecutionContext", "TensorIOMode"}
    building = set(OBJECTS.values()) - running - {"ILogger.Severity", "ExecutionContextAllocationStrategy"}
    for name, classes in (("network.py", building), ("tensorrt.py", running)):
        assert classes <= {use.partition(".")[0] for use in files[name]}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("trt.BuilderFlag.NONSENSE", "there is no BuilderFlag.NONSENSE"),
        ("self._execution_context.execute_async_v9(1)", "there is no IExecutionContext.execute_async_v9"),
        ("parser.parse_from_file()", "OnnxParser.parse_from_file takes something else"),
        ("config.set_timing_cache(cache, ignore=True)", "IBuilderConfig.set_timing_cache takes something else"),
        ("builder.create_network(1, 2)", "Builder.create_network takes something else"),
    ],
)
def test_a_wrong_name_or_call_is_found(bindings: Bindings, source: str, complaint: str):
    found = list(_uses(ast.parse(source), "test.py"))
    said = complaints(found, bindings.docstrings({use.name for use in found}))
    assert len(said) == 1
    assert complaint in said[0]


def test_right_ones_are_not(bindings: Bindings):
    source: Any = """
config.set_timing_cache(cache, ignore_mismatch=False)
execution_context.set_input_shape("x", (1, 2))
trt.MemoryPoolType.WORKSPACE.name
"""
    found = list(_uses(ast.parse(source.replace(".name", "")), "test.py"))
    assert complaints(found, bindings.docstrings({use.name for use in found})) == []
