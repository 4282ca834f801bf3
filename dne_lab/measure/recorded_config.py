"""What records are compared by of the configuration that they hold; whole ones are read by `core.config.from_dict`."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    """Keys that are known are checked, others may be there."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class RecordedData(_Part):
    """Where the classes come from."""

    size: int | None = None
    order_rule: str | None = None


class RecordedConfig(_Part):
    """A configuration as older and younger versions wrote it."""

    precision: str = ""
    data: RecordedData = Field(default_factory=RecordedData)
    network: dict[str, Any] = {}
    loss: dict[str, Any] = {}
    learn: dict[str, Any] = {}
