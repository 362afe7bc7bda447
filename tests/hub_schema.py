"""The fields of .runpod/hub.json and .runpod/tests.json, as RunPod's publishing guide has them. Others are errors."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

CUDA_11_8_POOLS = {
    "AMPERE_16", "AMPERE_24", "AMPERE_48", "AMPERE_80", "ADA_24", "ADA_48_PRO", "ADA_80_PRO", "HOPPER_141",
}  # fmt: skip
"""RunPod's GPU pools of Ampere, Ada and Hopper. ADA_32_PRO is the RTX 5090, which is Blackwell in spite of its name."""
TURING_TO_HOPPER = re.compile(
    r"(NVIDIA )?(Tesla T4|T4|A2|A30|A40|A100.*|L4|L40S?|H100.*|H200.*|GH200.*|RTX A\d{4}|RTX [2456]000 Ada Generation"
    r"|GeForce RTX (20|30|40)\d0.*)"
)
"""RunPod's ids of single GPUs from compute capability 7.5 to 9.0."""


def unserved(gpu_ids: str) -> list[str]:
    """What `gpuIds` lets in that CUDA 11.8 does not serve; a GPU behind a minus is one that a pool goes without."""
    taken = [one.strip() for one in gpu_ids.split(",") if not one.strip().startswith("-")]
    return [one for one in taken if one not in CUDA_11_8_POOLS and not TURING_TO_HOPPER.fullmatch(one)]


Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Cuda = Annotated[str, StringConstraints(pattern=r"^1[0-9]\.[0-9]+$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Option(Strict):
    label: Text
    value: str


class Input(Strict):
    name: Text
    type: Literal["string", "number", "boolean", "huggingface"]
    description: Text
    default: str | int | float | bool | None = None
    required: bool = False
    advanced: bool = False
    options: list[Option] | None = None
    min: int | float | None = None
    max: int | float | None = None
    true_value: str | None = None
    false_value: str | None = None

    @model_validator(mode="after")
    def default_is_of_the_type(self) -> Input:
        if self.type == "number" and (isinstance(self.default, bool) or not isinstance(self.default, int | float)):
            raise ValueError(f"{self.name}: a number's default must be one")
        if self.type == "string" and not isinstance(self.default, str):
            raise ValueError(f"{self.name}: a string's default must be one")
        return self


class EnvEntry(Strict):
    key: Variable
    input: Input | None = None
    value: str | None = None

    @model_validator(mode="after")
    def is_asked_for_or_static(self) -> EnvEntry:
        if (self.input is None) == (self.value is None):
            raise ValueError(f"{self.key}: either an input or a value")
        return self


class Preset(Strict):
    name: Text
    defaults: dict[Variable, str | int | float | bool]


class Machine(Strict):
    """GPUs, or a flavor of CPU."""

    gpu_count: Annotated[int, Field(ge=1, le=8)] | None = None
    allowed_cuda_versions: list[Cuda] = []
    cpu_flavor: Text | None = None

    def check(self, gpus: str | None, *, cpu: bool) -> None:
        of_gpus = (gpus, self.gpu_count, self.allowed_cuda_versions or None)
        if (self.cpu_flavor is not None) != cpu or (cpu and any(one is not None for one in of_gpus)):
            raise ValueError("a CPU needs cpuFlavor and nothing of a GPU, a GPU no cpuFlavor")
        if not cpu and None in of_gpus[:2]:
            raise ValueError("a GPU needs its id and gpuCount")


class HubConfig(Machine):
    runs_on: Literal["GPU", "CPU"]
    endpoint_type: Literal["LB"] | None = None
    container_disk_in_gb: Annotated[int, Field(ge=5, le=1000)]
    gpu_ids: Text | None = None
    presets: list[Preset] = []
    env: list[EnvEntry] = []

    @model_validator(mode="after")
    def has_what_its_machine_needs(self) -> HubConfig:
        self.check(self.gpu_ids, cpu=self.runs_on == "CPU")
        return self


class Hub(Strict):
    title: Text
    description: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    type: Literal["serverless", "pod"]
    category: Literal["audio", "embedding", "image", "language", "video"]
    icon_url: str | None = None
    config: HubConfig


class Test(Strict):
    name: Text
    input: dict[str, Any]
    timeout: Annotated[int, Field(ge=1)] | None = None
    """Milliseconds."""


class EnvValue(Strict):
    key: Variable
    value: str


class TestsConfig(Machine):
    gpu_type_id: Text | None = None
    env: list[EnvValue] = []

    @model_validator(mode="after")
    def has_what_its_machine_needs(self) -> TestsConfig:
        self.check(self.gpu_type_id, cpu=self.cpu_flavor is not None)
        return self


class Tests(Strict):
    tests: Annotated[list[Test], Field(min_length=1)]
    config: TestsConfig
