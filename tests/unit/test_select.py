import pytest

from engine.config import ENGINES
from engine.errors import ConfigError
from engine.probe import Gpu
from engine.select import Facts, select

GPU = Gpu("NVIDIA L4", (8, 9))
CPU_BUILD, GPU_BUILD = ["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("facts", "engine", "reason"),
    [
        (Facts(None, CPU_BUILD), "onnxruntime-cpu", "no CUDA driver or no device"),
        (Facts(None, GPU_BUILD), "onnxruntime-cpu", "no CUDA driver or no device"),
        (
            Facts(GPU, CPU_BUILD),
            "onnxruntime-cpu",
            "NVIDIA L4 (sm_89), but the installed ONNX Runtime is the CPU build",
        ),
        (Facts(GPU, GPU_BUILD), "onnxruntime-cuda", "found NVIDIA L4 (sm_89)"),
    ],
)
def test_auto_takes_the_best_that_works(facts: Facts, engine: str, reason: str):
    choice = select("auto", facts)
    assert choice.engine == engine
    assert reason in choice.reason


@pytest.mark.parametrize("facts", [Facts(None, GPU_BUILD), Facts(GPU, CPU_BUILD)])
def test_an_engine_by_name_is_never_replaced(facts: Facts):
    with pytest.raises(ConfigError, match="ENGINE=onnxruntime-cuda cannot run here: .*set ENGINE=auto"):
        select("onnxruntime-cuda", facts)


@pytest.mark.parametrize("name", [name for name in ENGINES if name not in ("auto", "onnxruntime-cuda")])
def test_what_runs_anywhere_is_taken_at_its_word(name: str):
    assert select(name, Facts(None, CPU_BUILD)).engine == name
