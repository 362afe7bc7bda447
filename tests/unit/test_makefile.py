"""Where make lets uv look for packages."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from pip._internal.models.index import PyPI

ROOT_CAUSE = "PyPI's torch is for CUDA and needs another cuda-python than requirements/dev.txt pins"
AS_PIP = {"UV_INDEX_STRATEGY": "unsafe-best-match"}


def exported(*options: str, **environ: str) -> dict[str, str]:
    """uv's variables as a recipe of the Makefile sees them."""
    said = make("--silent", "--file", "-", "shown", *options, **environ)
    return dict(
        line.split("=", 1)
        for line in said.splitlines()
        if line.startswith("UV_") and not line.startswith("UV_CONFIG_FILE=")
    )


def make(*arguments: str, **environ: str) -> str:
    """What make prints; `--file -` has a target `shown` that prints its environment."""
    ours = ("PIP_", "UV_", "MAKE", "NO_INDEX")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    clean |= {"PIP_CONFIG_FILE": "/dev/null", "UV_CONFIG_FILE": "/dev/null"}  # this machine's own change nothing
    recipe = "include Makefile\nshown:\n\t@env\n"
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(command, input=recipe, env={**clean, **environ}, text=True, capture_output=True, check=True)
    return done.stdout


def test_without_a_python_no_image_of_another_model_is_built():
    command = ["make", "--silent", "image", "MODEL=org/name", "DOCKER=echo", "PYTHON=no-such-python"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "name a Python with PYTHON=" in done.stderr


def test_without_a_python_there_is_a_sentence(tmp_path: Path):
    for tool in ("grep", "make", "tr"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    environ = {"PATH": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null", "UV_CONFIG_FILE": "/dev/null"}
    command = ["make", "--silent", "demo", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    sentence, *rest = done.stderr.splitlines()
    assert sentence == "found no Python 3.11; name one: make PYTHON=/path/to/python3.11 demo"
    assert all(line.startswith("make: ***") for line in rest)


def test_an_image_is_told_the_model_by_its_name_whatever_that_holds(tmp_path: Path):
    """A local model's is that of its folder, and a bundle may come from anyone."""
    model = "org/it's  (my) \"; touch injected; $HOME `id` $$ #é"
    folder = ["--silent", f"--directory={tmp_path}", f"--file={Path.cwd() / 'Makefile'}", "DOCKER=printf '%s\\n'"]

    def told(*options: str, **environ: str) -> list[str]:
        arguments = make("image", *folder, *options, **environ).splitlines()
        assert arguments[:2] == ["build", "--tag"]
        assert arguments[-1] == "."
        assert list(tmp_path.iterdir()) in ([], [tmp_path / "bundle"])
        return [one for one in arguments if one.startswith(("MODEL=", "REVISION=", "BUNDLE_SHA256="))]

    assert told() == []
    assert told(MODEL=model.replace("$", "$$")) == [f"MODEL={model}"]
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text(json.dumps({"model": model, "revision": None}))
    (tmp_path / "bundle/manifest.sha256").write_text(f"{'0' * 64}  manifest.json\n")
    assert told() == [f"MODEL={model}", "REVISION=", f"BUNDLE_SHA256={'0' * 64}"]
    assert told("MODEL=other") == ["MODEL=other", *told()[1:]]


def checkout(folder: Path, *also: str) -> Path:
    """The Makefile, and the files `also`, in a folder of their own below `folder`, whose path has a space."""
    root = folder / "path with space/my fork"
    for name in ("Makefile", *also):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, root / name)
    return root


def program(path: Path, script: str) -> Path:
    """A script for bash at `path` that does `script`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_space_in_the_checkouts_path_removes_no_other_folder(tmp_path: Path):
    """PyCUDA's folder is removed before it is made anew; it was named by what stands before the first space."""
    script = "tests/cuda_driver/install_pycuda.sh"
    headers = "tests/cuda_driver/with_cuda_headers.sh"
    root = checkout(tmp_path, script, headers, "requirements/build.txt", "requirements/tensorrt.txt")
    (root / "build/pycuda/of before").mkdir(parents=True)
    os.utime(root / "build/pycuda", (0, 0))
    for name in ("path", "path.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").touch()
    # Installs nothing: each folder that is named to it holds a file.
    python = 'while [ "$1" != --target ]; do shift; done; mkdir -p "$2" && touch "$2/installed"'
    program(root / ".venv/bin/python", python)
    program(root / "on path/cc", "exit 0")
    environ = {"PATH": f"{root / 'on path'}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    make("--silent", f"--directory={root}", "--file=Makefile", "--old-file=setup", "build/pycuda", **environ)
    assert (tmp_path / "path/precious.txt").exists()
    assert (tmp_path / "path.new/precious.txt").exists()
    assert [path.name for path in (root / "build").rglob("*")] == ["pycuda", "installed"]


def test_cudas_libraries_are_linked_anew_in_a_checkout_whose_path_has_a_space(tmp_path: Path):
    """Their folder is removed as well. No name here means anything to a shell, and HOME is the test's own."""
    root = checkout(tmp_path, "requirements/dev.txt", "requirements/all.txt", "requirements/build.txt")
    venv = root / ".venv-gpu"
    library = venv / "lib/python3.11/site-packages/nvidia/cublas/lib/libcublas.so.11"
    library.parent.mkdir(parents=True)
    library.touch()
    (venv / "lib/cuda/of before").mkdir(parents=True)
    (tmp_path / "path").mkdir()
    (tmp_path / "path/precious.txt").touch()
    for name in ("python", "uv"):
        program(venv / "bin" / name, "exit 0")
    for stamp in ("uv", "dev"):
        (venv / f"{stamp}.stamp").touch()
    options = (f"--directory={root}", "EXTRA=gpu", f"WITH_CUDA_HEADERS={shutil.which('env')}")
    make("--silent", "--file=Makefile", *options, "setup", HOME=str(tmp_path))
    assert (tmp_path / "path/precious.txt").exists()
    (link,) = (venv / "lib/cuda").iterdir()
    assert (link.name, link.resolve()) == (library.name, library)
    said = make("--silent", "--file=-", *options, "shown", HOME=str(tmp_path), LD_LIBRARY_PATH="")
    assert f"LD_LIBRARY_PATH={link.parent}\n" in said


@pytest.mark.parametrize(
    ("fails_at", "how"),
    [
        ("", ""),
        ("requirements/tensorrt.txt", "exit 1"),
        ("requirements/peers-litserve.txt", "exit 1"),
        ("requirements/tensorrt.txt", "kill -INT 0; sleep 9"),  # Ctrl-C
    ],
)
def test_a_lock_that_fails_leaves_every_pin_as_it_was(tmp_path: Path, fails_at: str, how: str):
    """Those of torch are taken out before the first package is looked for."""
    names = [str(path) for path in Path("requirements").glob("*.txt")]
    root = checkout(tmp_path, *names, "pyproject.toml")
    before = {name: (root / name).read_text() for name in names}
    assert any("\ntorch==" in text for text in before.values())
    # Resolves what it is asked for to one package.
    resolved = "echo torch==9.9+cpu > ${@: -1}"
    program(root / ".venv/bin/uv", f'if [ "${{@: -1}}" = "{fails_at}" ]; then {how or ":"}; else {resolved}; fi')
    (root / ".venv/uv.stamp").touch()
    command = ["make", "--silent", "lock"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=root, env=clean, capture_output=True, text=True, start_new_session=True)
    after = {name: (root / name).read_text() for name in names}
    if fails_at:
        assert done.returncode != 0
        assert after == before
    else:
        assert done.returncode == 0, done.stderr
        assert after["requirements/dev.txt"] == "torch==9.9\n"
        assert after["requirements/cpu.txt"] == "torch==9.9+cpu\n"


def test_torch_is_the_one_for_the_cpu_where_packages_come_from_pypi():
    assert exported() == {"UV_TORCH_BACKEND": "cpu"}, ROOT_CAUSE


@pytest.mark.parametrize(
    ("given", "uv"),
    [
        ({"PIP_FIND_LINKS": "/wheels"}, {"UV_FIND_LINKS": "/wheels"}),
        ({"PIP_INDEX_URL": "https://example.org/simple"}, {"UV_DEFAULT_INDEX": "https://example.org/simple"}),
        (
            {"PIP_EXTRA_INDEX_URL": "https://a.example/ https://b.example/"},
            {"UV_INDEX": f"{PyPI.simple_url} https://a.example/", "UV_DEFAULT_INDEX": "https://b.example/", **AS_PIP},
        ),
        (
            {"PIP_INDEX_URL": "https://a.example/", "PIP_EXTRA_INDEX_URL": "https://b.example/"},
            {"UV_INDEX": "https://a.example/", "UV_DEFAULT_INDEX": "https://b.example/", **AS_PIP},
        ),
        ({"UV_INDEX": "https://example.org/simple"}, {"UV_INDEX": "https://example.org/simple"}),
        ({"UV_INDEX_URL": "https://example.org/simple"}, {"UV_INDEX_URL": "https://example.org/simple"}),
        ({"UV_INDEX": "https://a.example/", "PIP_INDEX_URL": "https://b.example/"}, {"UV_INDEX": "https://a.example/"}),
    ],
)
def test_places_of_ones_own_are_the_only_ones(given: dict[str, str], uv: dict[str, str]):
    assert exported(**given) == uv
    assert exported(**given, UV_TORCH_BACKEND="cpu") == {**uv, "UV_TORCH_BACKEND": "cpu"}


def test_a_further_index_that_lacks_this_machines_wheel_does_not_hide_it(tmp_path: Path):
    """soundfile's for any machine is without libsndfile; a mirror that had only that one gave an export that failed."""
    whole, partial, into = tmp_path / "whole", tmp_path / "partial", tmp_path / "into"
    this_machine = sysconfig.get_platform().translate(str.maketrans("-.", "__"))
    for index, tags in ((whole, ("any", this_machine)), (partial, ("any",))):
        for tag in tags:
            add_wheel(index / "thing", tag)
    uv = exported(PIP_INDEX_URL=whole.as_uri(), PIP_EXTRA_INDEX_URL=partial.as_uri())
    command = ["uv", "pip", "install", "--no-cache", "--quiet", "--target", str(into), "thing"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], env={**clean, **uv}, check=True)
    assert (into / "thing.py").read_text() == this_machine


def add_wheel(folder: Path, tag: str, name: str = "thing", module: str = "thing", content: str = "") -> None:
    """A wheel of `name` 1.0 for machines of `tag`, whose module is `content` or that tag, in a page of an index."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-1.0.dist-info"
    files = {
        f"{module}.py": content or tag,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-{tag}\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{about}/RECORD"))
    wheel = f"{name}-1.0-py3-none-{tag}.whl"
    with zipfile.ZipFile(folder / wheel, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    with (folder / "index.html").open("a") as page:
        page.write(f'<a href="{wheel}">{wheel}</a>\n')


@pytest.mark.parametrize(
    ("content", "uv"),
    [
        ("[global]\nindex-url = https://example.org/simple\n", {"UV_DEFAULT_INDEX": "https://example.org/simple"}),
        ("[install]\nfind-links =\n    /wheels\n    /more\n", {"UV_FIND_LINKS": "/wheels,/more"}),
        ("[global]\ncert = /authorities.pem\n", {"UV_TORCH_BACKEND": "cpu"}),
    ],
)
def test_a_pip_conf_counts_as_pips_variables_do(tmp_path: Path, content: str, uv: dict[str, str]):
    (tmp_path / "pip.conf").write_text(content)
    assert exported(f"PIP_FILES={tmp_path / 'pip.conf'}") == uv


def test_a_python_in_any_folder_is_one_word(tmp_path: Path):
    python = program(tmp_path / "it's  (my) $HOME/python", f'exec {shlex.quote(sys.executable)} "$@"')
    (tmp_path / "pip.conf").write_text("[global]\nextra-index-url = https://example.org/simple\n")
    named = [f"PYTHON={python}".replace("$", "$$"), f"PIP_FILES={tmp_path / 'pip.conf'}"]
    expected = {"UV_INDEX": PyPI.simple_url, "UV_DEFAULT_INDEX": "https://example.org/simple", **AS_PIP}
    assert exported(*named) == expected
    lines = make("--dry-run", "setup", f"VENV={tmp_path / 'venv'}", *named).splitlines()
    (venv,) = (line for line in lines if "-m venv" in line)
    assert shlex.split(venv)[0] == str(python)


def test_a_python_may_be_a_command_of_several_words(tmp_path: Path):
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://example.org/simple\n")
    named = [f"PYTHON=env -u NOBODY {sys.executable}", f"PIP_FILES={tmp_path / 'pip.conf'}"]
    assert exported(*named) == {"UV_DEFAULT_INDEX": "https://example.org/simple"}


def test_files_below_a_home_of_any_name_are_read(tmp_path: Path):
    """This machine's own may say more: places of pip's files add up, and the last one's --find-links counts."""
    home = tmp_path / "it's my home"
    nobodys = {"HOME": str(home), "XDG_CONFIG_HOME": "", "PIP_CONFIG_FILE": "", "UV_CONFIG_FILE": ""}
    config = home / ".config/pip/pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text("[global]\nfind-links = /wheels-of-home\n")
    assert exported(**nobodys)["UV_FIND_LINKS"] == "/wheels-of-home"
    given = home / "pip of mine.conf"
    given.write_text("[global]\nfind-links = /wheels-of-mine\n")
    for name in (str(given), "~/pip of mine.conf"):
        assert exported(**{**nobodys, "PIP_CONFIG_FILE": name})["UV_FIND_LINKS"] == "/wheels-of-mine"
    places = home / ".config/uv/uv.toml"
    places.parent.mkdir()
    places.write_text('[[index]]\nurl = "https://example.org/simple"\n')
    assert exported(**nobodys) == {}


def test_a_place_for_results_is_one_word():
    given = ["OUT=my results/all", "BASELINE=of before (1).json", "TORCH_PYTHON=~/my torch/python"]
    for target, expected in {
        "bench-quick": ["--json", "my results/all", "--baseline", "of before (1).json"],
        "gpu": ["--out", "my results/all", "--torch-python", ".venv-gpu/torch-python"],
        "latency": ["--torch-python", f"{Path.home()}/my torch/python"],
    }.items():
        extra = ["EXTRA=gpu"] if target == "gpu" else []
        lines = make("--dry-run", "--old-file=setup", target, *extra, *given).splitlines()
        (command,) = (line for line in lines if "-m benchmarks" in line)
        assert shlex.split(command)[4:] == expected


@pytest.mark.parametrize(
    ("content", "uv"),
    [
        ('[[index]]\nurl = "https://example.org/simple"\n', {}),
        ('[pip]\nindex-url = "https://example.org/simple"\n', {}),
        ('link-mode = "copy"\n', {"UV_TORCH_BACKEND": "cpu"}),
    ],
)
def test_a_uv_toml_that_names_places_counts(tmp_path: Path, content: str, uv: dict[str, str]):
    (tmp_path / "uv.toml").write_text(content)
    assert exported(UV_CONFIG_FILE=str(tmp_path / "uv.toml")) == uv


@pytest.mark.parametrize(
    ("content", "environ", "is_handed_on"),
    [
        ("", {"PIP_NO_INDEX": "1"}, True),
        ("[global]\nno-index = True\n", {}, True),
        ("[install]\nno_index = yes\n", {"PIP_FIND_LINKS": "/wheels"}, True),
        ("[global]\nno-index = true\n", {"PIP_NO_INDEX": "0"}, False),
        ("", {"PIP_NO_INDEX": "1", "UV_INDEX": "https://example.org/simple"}, False),  # uv is told of its own
        ("", {}, False),
    ],
)
def test_pips_no_index_is_handed_on_to_uv_which_has_no_variable_for_it(
    tmp_path: Path, content: str, environ: dict[str, str], is_handed_on: bool
):
    (tmp_path / "pip.conf").write_text(content)
    options = [f"PIP_FILES={tmp_path / 'pip.conf'}", f"VENV={tmp_path / 'venv'}"]
    said = make("--dry-run", "setup", *options, **environ)
    (installs,) = (line for line in said.splitlines() if "uv pip install" in line)
    assert ("--no-index" in installs.split()) == is_handed_on
    assert ("UV_TORCH_BACKEND" in exported(options[0], **environ)) == (not is_handed_on and "UV_INDEX" not in environ)


# With EXTRA=gpu


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """As after `make EXTRA=gpu setup`, for make."""
    (tmp_path / "venv/bin").mkdir(parents=True)
    for stamp in ("uv", "dev", "gpu"):
        (tmp_path / f"venv/{stamp}.stamp").touch()
    return tmp_path / "venv"


def test_the_libraries_of_the_packages_are_found_before_the_machines(venv: Path):
    def path(*options: str, **environ: str) -> list[str]:
        said = make("--silent", "--file", "-", "shown", f"VENV={venv}", *options, **environ).splitlines()
        return [line for line in said if line.startswith("LD_LIBRARY_PATH=")]

    cuda = f"LD_LIBRARY_PATH={venv}/lib/cuda"
    assert path("EXTRA=gpu", LD_LIBRARY_PATH="") == [cuda]
    assert path("EXTRA=gpu", LD_LIBRARY_PATH="/a:/b") == [f"{cuda}:/a:/b"]
    assert path(LD_LIBRARY_PATH="/a:/b") == ["LD_LIBRARY_PATH=/a:/b"]


def test_they_lie_in_one_folder_and_pycuda_is_compiled_with_the_headers_of_a_package(venv: Path, tmp_path: Path):
    site, compiles = venv / "lib/python3.11/site-packages", tmp_path / "with_cuda_headers.sh"
    for name in (
        "nvidia/cublas/lib/libcublas.so.11",
        "nvidia/cudnn/lib/libcudnn.so.8",
        "tensorrt_libs/libnvinfer.so.10",
    ):
        (site / name).parent.mkdir(parents=True)
        (site / name).touch()
    compiles.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "ran"}\n')
    (venv / "bin/uv").write_text("#!/bin/sh\n")
    for script in (compiles, venv / "bin/uv"):
        script.chmod(0o755)
    for _ in range(2):  # again, as after new pins
        (venv / "gpu.stamp").unlink()
        make("--silent", "EXTRA=gpu", "setup", f"VENV={venv}", f"WITH_CUDA_HEADERS={compiles}", PIP_NO_INDEX="1")
    assert (tmp_path / "ran").read_text().split() == [
        f"{venv}/bin/python", f"{venv}/bin/uv", "pip", "install", "--no-index", "--python", f"{venv}/bin/python",
        "--build-constraints", "requirements/build.txt", "-r", "requirements/all.txt",
    ]  # fmt: skip
    found = {link.name: link.resolve() for link in (venv / "lib/cuda").iterdir()}
    assert sorted(found) == ["libcublas.so.11", "libcudnn.so.8", "libnvinfer.so.10"]
    assert all(str(target).startswith(str(site)) for target in found.values())


@pytest.mark.parametrize("before", ["", "/a b:/c"])
def test_torch_gets_the_libraries_of_the_machine(venv: Path, before: str):
    options = ("--silent", "EXTRA=gpu", f"VENV={venv}", f"TORCH_PYTHON={sys.executable}")
    make(*options, "torch-python", LD_LIBRARY_PATH=before)
    asked = [f"{venv}/torch-python", "-c", "import os, sys; print(sys.argv[1], os.environ['LD_LIBRARY_PATH'])", "x y"]
    said = subprocess.run(asked, env={"LD_LIBRARY_PATH": "/other"}, text=True, capture_output=True, check=True)
    assert said.stdout == f"x y {before}\n"
    for target in ("gpu", "latency"):
        assert f"--torch-python {venv}/torch-python" in make("--dry-run", *options, target)
        assert "--torch-python 'none'" in make("--dry-run", *options[:-1], "TORCH_PYTHON=none", target)
    assert f"--torch-python '{sys.executable}'" in make("--dry-run", options[-1], f"VENV={venv}", "latency")


def test_new_pins_for_the_cpu_leave_onnx_runtime_the_one_for_cuda(tmp_path: Path):
    """Their files are the same ones: what puts one over the other and then removes it leaves nothing of either."""
    venv, wheels, uv = tmp_path / "venv", tmp_path / "wheels", Path(sys.executable).with_name("uv")
    for name in ("onnxruntime", "onnxruntime_gpu"):
        add_wheel(wheels, "any", name, "onnxruntime", f"built = {name!r}")
    pins, with_headers = tmp_path / "all.txt", program(tmp_path / "with_cuda_headers", 'shift; exec "$@"')
    pins.write_text("onnxruntime-gpu==1.0\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (venv / "bin/uv").symlink_to(uv)
    for stamp in ("uv", "dev"):
        (venv / f"{stamp}.stamp").touch()
    where = {"UV_CACHE_DIR": str(tmp_path / "cache"), "PIP_FIND_LINKS": str(wheels), "PIP_NO_INDEX": "1"}
    options = (
        "--silent",
        "EXTRA=gpu",
        "setup",
        f"VENV={venv}",
        f"GPU_PINS={pins}",
        f"WITH_CUDA_HEADERS={with_headers}",
    )
    for _ in range(2):
        make(*options, **where)
        said = subprocess.check_output(
            [venv / "bin/python", "-c", "import onnxruntime as o; print(o.built)"], text=True
        )
        assert said == "onnxruntime_gpu\n"
        (venv / "gpu.stamp").unlink()
        # As dev.stamp does with requirements/dev.txt, which names the one for the CPU.
        dev = ["pip", "install", "--quiet", "--no-index", "--find-links", str(wheels), "onnxruntime==1.0"]
        subprocess.run([uv, *dev, "--python", venv / "bin/python"], env={**os.environ, **where}, check=True)
