import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from engine.bundle import CHECKSUM, MANIFEST, SCHEMA_VERSION, Bundle, open_bundle, write_manifest
from engine.errors import BundleError
from engine.files import digest
from engine.tasks import load_task
from export.bundle_folder import changed_bundle_folder, is_mount_point, new_bundle_folder
from tests.bundles import write_small_bundle

GRAPH = "graphs/model/fp32.onnx"
FILES = [MANIFEST, CHECKSUM, "tokenizer.json", GRAPH]


def test_a_whole_bundle_opens_and_verifies(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    bundle.verify()
    assert bundle.manifest.task == "feature-extraction"
    assert bundle.manifest.graphs["model"].inputs[0].shape == ("batch", "length")
    assert sorted(p.relative_to(small_bundle).as_posix() for p in small_bundle.rglob("*") if p.is_file()) == sorted(
        FILES
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_one_flipped_byte_in_any_file_is_found(small_bundle: Path, name: str, position: float):
    raw = bytearray((small_bundle / name).read_bytes())
    raw[int(position * (len(raw) - 1))] ^= 1
    (small_bundle / name).write_bytes(raw)
    with pytest.raises(BundleError, match=r"does not match .*copy the bundle again"):
        open_bundle(small_bundle).verify()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(small_bundle: Path, name: str):
    (small_bundle / name).unlink()
    with pytest.raises(BundleError, match="is not a bundle|missing|cannot be read"):
        open_bundle(small_bundle).verify()


def test_a_folder_that_is_missing_is_told_from_a_volume_that_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    volume = tmp_path / "runpod-volume"
    monkeypatch.setattr("engine.files.no_bundle.VOLUME", volume)
    with pytest.raises(BundleError, match=r"\(there is no .*/runpod-volume\); attach the network volume"):
        open_bundle(volume / "bundles")
    volume.mkdir()
    with pytest.raises(BundleError, match=r"/bundles is not a bundle \(no such folder\)"):
        open_bundle(volume / "bundles")


def test_a_bundle_from_before_its_task_read_a_key_is_refused(small_bundle: Path):
    config = dict(open_bundle(small_bundle).manifest.task_config)
    del config["normalize"]
    rewrite_manifest(small_bundle, task_config=config)
    with pytest.raises(
        BundleError, match="task_config has no 'normalize', which its task reads; export the model again"
    ):
        load_task(open_bundle(small_bundle))


def test_a_truncated_file_is_found_by_its_size(small_bundle: Path):
    os.truncate(small_bundle / "tokenizer.json", 10)
    with pytest.raises(BundleError, match="has 10 bytes, the manifest says"):
        open_bundle(small_bundle).verify()


def rewrite_manifest(bundle: Path, **changes: object) -> None:
    data = {**json.loads((bundle / MANIFEST).read_text()), **changes}
    raw = json.dumps(data).encode()
    (bundle / MANIFEST).write_bytes(raw)
    (bundle / CHECKSUM).write_text(f"{hashlib.sha256(raw).hexdigest()}  {MANIFEST}\n")


def test_weights_are_those_that_a_graph_names(small_bundle: Path):
    for name in ("weights.bin", "int8.cpu.bin", "plans/other.plan"):
        (small_bundle / "graphs/model" / name).parent.mkdir(exist_ok=True)
        (small_bundle / "graphs/model" / name).write_bytes(b"content")
    model = onnx.load(small_bundle / GRAPH)
    for tensor, location in zip(model.graph.initializer, ["int8.cpu.bin"], strict=False):
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    (small_bundle / "graphs/model/int8.cpu.onnx").write_bytes(model.SerializeToString())
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    bundle = open_bundle(small_bundle)
    assert bundle.weights_of("graphs/model/int8.cpu.onnx") == ["graphs/model/int8.cpu.bin"]
    assert bundle.weights_of(GRAPH) == []
    (small_bundle / GRAPH).unlink()
    with pytest.raises(BundleError, match=r"fp32\.onnx cannot be read"):
        bundle.weights_of(GRAPH)


@pytest.mark.parametrize("name", ["graphs/model/weights.bin", "graphs/model/plans/sm_89.plan"])
def test_what_one_engine_opens_is_compared_when_it_is_named(small_bundle: Path, name: str):
    (small_bundle / name).parent.mkdir(exist_ok=True)
    (small_bundle / name).write_bytes(b"content")
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    bundle = open_bundle(small_bundle)
    (small_bundle / name).write_bytes(b"changed")
    bundle.verify_common()
    bundle.verify([GRAPH])
    for names in ([GRAPH, name], None):
        with pytest.raises(BundleError, match="does not match"):
            bundle.verify(names)
    (small_bundle / name).write_bytes(b"cut")
    with pytest.raises(BundleError, match="has 3 bytes, the manifest says 7"):
        bundle.verify_common()


@pytest.mark.parametrize(
    ("precision", "precisions", "provider", "file"),
    [
        ("fp32", {}, "cpu", ("fp32.cpu.onnx", True)),
        ("fp32", {}, "cuda", ("fp32.onnx", False)),
        ("int8", {}, "cpu", ("int8.cpu.onnx", True)),
        ("int8", {}, "cuda", ("fp32.onnx", False)),
        ("int8", {"cuda": "fp16"}, "cuda", ("fp16.onnx", False)),
        ("fp16", {}, "cpu", ("fp16.onnx", False)),
        ("bf16", {}, "cpu", ("fp32.onnx", False)),
    ],
)
def test_the_file_of_a_provider(
    precision: str, precisions: dict[str, str], provider: str, file: tuple[str, bool], small_bundle: Path
):
    manifest = open_bundle(small_bundle).manifest
    graph = replace(
        manifest.graphs["model"],
        onnx={name: f"{name}.onnx" for name in ("fp32", "fp16")},
        fused={name: f"{name}.cpu.onnx" for name in ("fp32", "int8")},
    )
    changed = replace(manifest, precision=precision, precisions=precisions, graphs={"model": graph})
    assert Bundle(small_bundle, changed).onnx_of("model", provider) == file


@pytest.fixture
def large_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its graph takes three pieces and a bit."""
    size = (write_small_bundle(tmp_path / "once") / GRAPH).stat().st_size
    monkeypatch.setattr(digest, "PIECE_BYTES", size * 3 // 10)
    return write_small_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("position", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_one_flipped_byte_in_any_piece_is_found(large_bundle: Path, position: float):
    bundle = open_bundle(large_bundle)
    assert {name: len(digests) for name, digests in bundle.manifest.pieces.items()}[GRAPH] == 4
    bundle.verify()
    raw = bytearray((large_bundle / GRAPH).read_bytes())
    raw[int(position * (len(raw) - 1))] ^= 1
    (large_bundle / GRAPH).write_bytes(raw)
    with pytest.raises(BundleError, match=r"fp32\.onnx does not match .*copy the bundle again"):
        bundle.verify()


@pytest.mark.parametrize("size", [0, 1000, 1001, 2000, 2500])
def test_a_file_and_its_pieces_are_hashed_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(digest, "PIECE_BYTES", 1000)
    monkeypatch.setattr(digest, "_CHUNK_BYTES", 300)
    content = bytes(number * number % 251 for number in range(size))
    (tmp_path / "file").write_bytes(content)
    pieces = [content[begin : begin + 1000] for begin in range(0, size, 1000)] if size > 1000 else []
    expected = hashlib.sha256(content).hexdigest(), [hashlib.sha256(piece).hexdigest() for piece in pieces]
    assert digest.sha256_and_pieces(tmp_path / "file", size) == expected


def test_pieces_leave_the_digest_of_the_whole_file_to_others(large_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """As sha256sum computes it; and a bundle of an earlier schema, without pieces, is verified by it."""
    entry = json.loads((large_bundle / MANIFEST).read_text())["files"][GRAPH]
    assert entry["sha256"] == hashlib.sha256((large_bundle / GRAPH).read_bytes()).hexdigest()
    files = json.loads((large_bundle / MANIFEST).read_text())["files"]
    nothing: list[dict[str, list[str]]] = [{}, {"pieces": []}]
    for empty in nothing:
        old = {name: {"size": one["size"], "sha256": one["sha256"], **empty} for name, one in files.items()}
        rewrite_manifest(large_bundle, schema_version="1.1", files=old)
        open_bundle(large_bundle).verify()
    old[GRAPH]["sha256"] = "0" * 64
    rewrite_manifest(large_bundle, files=old)
    with pytest.raises(BundleError, match="does not match"):
        open_bundle(large_bundle).verify()


def test_pieces_that_are_not_all_there_are_refused(large_bundle: Path):
    files = json.loads((large_bundle / MANIFEST).read_text())["files"]
    del files[GRAPH]["pieces"][-1]
    rewrite_manifest(large_bundle, files=files)
    with pytest.raises(BundleError, match="3 pieces of a file of"):
        open_bundle(large_bundle)


def test_a_newer_schema_is_refused_with_the_fix(small_bundle: Path):
    rewrite_manifest(small_bundle, schema_version="2.0")
    with pytest.raises(BundleError, match=r"schema 2\.0, this worker reads 1\.x; update the worker"):
        open_bundle(small_bundle)


@pytest.mark.parametrize("version", ["1.9", "1.10"])
def test_what_a_newer_version_said_of_a_bundle_is_not_written_over(small_bundle: Path, version: str):
    rewrite_manifest(small_bundle, schema_version=version, something_new=[1])
    before = (small_bundle / MANIFEST).read_bytes()
    sentence = "small-bundle was made by a newer version, and what that added would be lost; update this one$"
    with pytest.raises(BundleError, match=sentence), changed_bundle_folder(small_bundle):
        pytest.fail("the work was begun")
    assert (small_bundle / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("version", ["1", "1.0", SCHEMA_VERSION])
def test_a_bundle_of_an_earlier_version_is_changed(small_bundle: Path, version: str):
    rewrite_manifest(small_bundle, schema_version=version)
    with changed_bundle_folder(small_bundle) as folder:
        write_manifest(folder, open_bundle(folder).manifest)
    open_bundle(small_bundle).verify()
    assert json.loads((small_bundle / MANIFEST).read_bytes())["schema_version"] == SCHEMA_VERSION


def test_a_newer_minor_schema_is_read(small_bundle: Path):
    rewrite_manifest(small_bundle, schema_version="1.9", something_new=[1])
    open_bundle(small_bundle).verify()


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "graphs/../../outside"])
def test_a_manifest_cannot_point_outside(small_bundle: Path, name: str):
    rewrite_manifest(small_bundle, files={name: {"size": 1, "sha256": "0"}})
    with pytest.raises(BundleError, match="leaves the bundle"):
        open_bundle(small_bundle)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_has_is_refused(small_bundle: Path, name: str):
    rewrite_manifest(small_bundle, files={name: {"size": 1, "sha256": "0"}})
    with pytest.raises(BundleError, match=r"manifest\.json is not what schema .* describes"):
        open_bundle(small_bundle)


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_is_not_waited_for(small_bundle: Path, kind: str):
    """In the place of an empty file, whose size it has."""
    (small_bundle / "empty").touch()
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    open_bundle(small_bundle).verify()
    (small_bundle / "empty").unlink()
    if kind == "fifo":
        os.mkfifo(small_bundle / "empty")
    else:
        (small_bundle / "empty").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="empty is not a file; copy the bundle again"):
        open_bundle(small_bundle).verify()


def test_a_size_that_no_file_has_is_refused(small_bundle: Path):
    rewrite_manifest(small_bundle, files={"a": {"size": 10**30, "sha256": "0", "pieces": ["0"]}})
    with pytest.raises(BundleError, match=r"manifest\.json is not what schema .* describes"):
        open_bundle(small_bundle)


def test_a_manifest_without_its_fields_is_refused(small_bundle: Path):
    rewrite_manifest(small_bundle, graphs={"model": {}})
    with pytest.raises(BundleError, match="not what schema"):
        open_bundle(small_bundle)


@pytest.mark.parametrize("raw", [b"[]", b"{", b'{"schema_version": "1.0", "graphs": [], "files": {}}'])
def test_a_manifest_of_another_shape_is_refused(small_bundle: Path, raw: bytes):
    (small_bundle / MANIFEST).write_bytes(raw)
    (small_bundle / CHECKSUM).write_text(f"{hashlib.sha256(raw).hexdigest()}  {MANIFEST}\n")
    with pytest.raises(BundleError, match="is not a JSON object|not what schema"):
        open_bundle(small_bundle)


def test_a_folder_that_may_not_be_looked_into_is_named(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Root may look into any; so the refusal that another user meets is made here."""

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(BundleError, match="cannot be read .Permission denied."):
        open_bundle(small_bundle)


def test_the_checksum_is_what_sha256sum_reads(small_bundle: Path):
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUM], cwd=small_bundle, check=True, capture_output=True)


def test_a_folder_that_is_no_bundle_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(BundleError, match="python -m export MODEL --out"):
        open_bundle(tmp_path)


def test_a_path_from_a_folder_that_was_deleted_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(BundleError, match="relative to a working directory that was deleted; start in another"):
        open_bundle(Path("bundle"))


def test_a_failed_export_takes_the_folders_above_that_it_made(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    out = tmp_path / "mine/new/newer/out"
    with pytest.raises(RuntimeError), new_bundle_folder(out):
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    with pytest.raises(RuntimeError), new_bundle_folder(out):
        (tmp_path / "mine/new/other").touch()
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "new", "other"]


def test_an_error_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(RuntimeError), new_bundle_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_destination_is_refused(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(BundleError, match="not empty"), new_bundle_folder(tmp_path / "out"):
        pass


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path):
    """As users have one to a larger disk."""
    (tmp_path / "disk").mkdir()
    out = tmp_path / "out"
    out.symlink_to("disk/bundle")
    write_small_bundle(out)
    with changed_bundle_folder(out) as folder:
        (folder / "more").touch()
        write_manifest(folder, open_bundle(folder).manifest)
    assert out.is_symlink()
    assert "more" in open_bundle(tmp_path / "disk/bundle").manifest.files
    assert sorted(path.name for path in tmp_path.rglob("*") if ".partial" in path.name) == []
    (tmp_path / "other").symlink_to("empty")
    (tmp_path / "empty").mkdir()
    open_bundle(write_small_bundle(tmp_path / "other")).verify()


@pytest.mark.parametrize(("inside", "path"), [("", "."), ("graphs", ".."), ("", "../small-bundle")])
def test_a_bundle_is_changed_from_within(small_bundle: Path, monkeypatch: pytest.MonkeyPatch, inside: str, path: str):
    monkeypatch.chdir(small_bundle / inside)
    with changed_bundle_folder(Path(path)) as folder:
        assert folder.resolve().parent == small_bundle.parent
        (folder / "more").touch()
        write_manifest(folder, open_bundle(folder).manifest)
    open_bundle(small_bundle).verify()
    assert "more" in open_bundle(small_bundle).manifest.files
    assert [one.name for one in small_bundle.parent.iterdir() if ".partial" in one.name] == []


def test_a_volume_is_refused_before_the_work(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing can be renamed to where one is mounted, as a user of Docker meets it."""
    assert (is_mount_point(Path("/proc")), is_mount_point(small_bundle)) == (True, False)
    monkeypatch.setattr("export.bundle_folder.is_mount_point", lambda path: True)
    sentence = "small-bundle is where a volume is mounted, and a bundle is a folder in it; name .*small-bundle/bundle"
    with pytest.raises(BundleError, match=sentence), changed_bundle_folder(small_bundle):
        pytest.fail("the work was begun")
    shutil.rmtree(small_bundle)
    with pytest.raises(BundleError, match=sentence), new_bundle_folder(small_bundle):
        pytest.fail("the work was begun")


def test_of_two_runs_at_the_same_time_the_first_is_kept(small_bundle: Path, tmp_path: Path):
    def change(name: str) -> None:
        with changed_bundle_folder(small_bundle) as folder:
            (folder / name).touch()
            if name == "second":
                change("first")
            write_manifest(folder, open_bundle(folder).manifest)

    with pytest.raises(BundleError, match="was changed by another run meanwhile; do it again"):
        change("second")
    assert set(open_bundle(small_bundle).manifest.files) & {"first", "second"} == {"first"}
    with (
        pytest.raises(BundleError, match="out was filled by another run meanwhile; name another folder"),
        new_bundle_folder(tmp_path / "out") as folder,
    ):
        write_small_bundle(tmp_path / "out")
        (folder / CHECKSUM).touch()
    open_bundle(tmp_path / "out").verify()


def test_what_a_killed_run_left_is_removed_and_what_runs_is_kept(tmp_path: Path):
    # As in containers, where every run has the same process id.
    dead, alive = (tmp_path / f".out.partial-{os.getpid()}-{name}" for name in ("dead", "alive"))
    dead.mkdir()
    alive.mkdir()
    hold = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", hold, str(alive)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        write_small_bundle(tmp_path / "out")
        assert not dead.exists()
        assert alive.exists()
        owner.kill()
    shutil.rmtree(tmp_path / "out")
    write_small_bundle(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_being_filled_is_held(tmp_path: Path):
    with pytest.raises(RuntimeError), new_bundle_folder(tmp_path / "out") as folder:
        write_small_bundle(tmp_path / "other")
        with pytest.raises(RuntimeError), new_bundle_folder(tmp_path / "out"):
            assert folder.exists()
            raise RuntimeError
        assert folder.exists()
        raise RuntimeError


def test_without_locks_the_process_id_protects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, alive = (tmp_path / f".out.partial-{owner}-abc" for owner in (ended.pid, os.getpid()))
    dead.mkdir()
    alive.mkdir()
    write_small_bundle(tmp_path / "out")
    assert (dead.exists(), alive.exists()) == (False, True)


def test_equal_content_gives_equal_bytes(tmp_path: Path):
    first, second = write_small_bundle(tmp_path / "a"), write_small_bundle(tmp_path / "b")
    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()


def test_whom_the_umask_lets_may_read_it(small_bundle: Path):
    """It is made beside its place under another name, as temporary folders are, which nobody else may read."""
    (small_bundle.parent / "plain").mkdir()
    assert small_bundle.stat().st_mode == (small_bundle.parent / "plain").stat().st_mode


def test_a_file_that_the_manifest_does_not_list_is_not_handed_out(small_bundle: Path):
    shutil.copy(small_bundle / "tokenizer.json", small_bundle / "other.json")
    with pytest.raises(BundleError, match="no 'other.json'"):
        open_bundle(small_bundle).file("other.json")
