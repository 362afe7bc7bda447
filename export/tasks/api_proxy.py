"""Calls to another service: a task without a model, whose bundle says no more than that it is this one."""

from __future__ import annotations

from typing import ClassVar

from export.tasks.base import ExportTask


class ApiProxyExport(ExportTask):
    """Nothing to load, trace or compare."""

    tag: ClassVar[str] = "api-proxy"
    has_model: ClassVar[bool] = False


TASK = ApiProxyExport()
