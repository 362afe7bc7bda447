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


class Preset(Strict):
    name: Text
    defaults: dict[Variable, str | int | float | bool]


class HubConfig(Strict):
    runs_on: Literal["GPU", "CPU"]
    container_disk_in_gb: Annotated[int, Field(ge=5, le=1000)]
    gpu_ids: Text
    gpu_count: Annotated[int, Field(ge=1, le=8)]
    allowed_cuda_versions: list[Cuda]
    presets: list[Preset] = []
    env: list[EnvEntry] = []


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


class TestsConfig(Strict):
    gpu_type_id: Text
    gpu_count: Annotated[int, Field(ge=1, le=8)]
    env: list[EnvValue] = []
    allowed_cuda_versions: list[Cuda] = []


class Tests(Strict):
    tests: Annotated[list[Test], Field(min_length=1)]
    config: TestsConfig
