"""Models, health, metrics discovery, version."""

from typing import Literal

from pydantic import BaseModel, Field


class ModelCard(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "attend"
    context_tokens: int
    max_model_len: int
    precision: str


class ModelList(BaseModel):
    """Body of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Status(BaseModel):
    """Body of /health and /ready."""

    status: str


class TargetGroup(BaseModel):
    """One group of Prometheus's HTTP service discovery."""

    targets: list[str]
    labels: dict[str, str] = Field(default_factory=dict)


class Version(BaseModel):
    """Body of /version."""

    version: str
    model: str
    precision: str
    licence: str
    onnxruntime: str
