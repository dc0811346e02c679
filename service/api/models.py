"""GET /v1/models: what is served."""

from fastapi import APIRouter

from service.api.dependencies import GeneratorDependency
from service.api.errors import ApiError
from service.api.generation import Generator
from service.api.responses import KEY_ERRORS
from service.schemas.base import ErrorBody
from service.schemas.operations import ModelCard, ModelList

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=KEY_ERRORS)


@router.get("/models")
async def list_models(generator: GeneratorDependency) -> ModelList:
    """The served model, once for each of its names."""
    return ModelList(data=[_card(generator, model_id) for model_id in generator.model_ids])


@router.get("/models/{model_id:path}", responses={404: {"model": ErrorBody}})
async def get_model(model_id: str, generator: GeneratorDependency) -> ModelCard:
    """The served model, if that is one of its names."""
    generator.check_model(model_id)
    return _card(generator, model_id)


@router.post("/embeddings", responses={404: {"model": ErrorBody}})
async def embeddings(generator: GeneratorDependency) -> None:
    """Not here: says so, whatever is sent."""
    message = f"model {generator.model_id!r} generates text and has no embedder; serve an embedding model elsewhere"
    raise ApiError(404, message, param="model", code="no_embedder")


def _card(generator: Generator, model_id: str) -> ModelCard:
    return ModelCard(
        id=model_id,
        created=generator.created,
        context_tokens=generator.context_tokens,
        max_model_len=generator.context_tokens,
        precision=generator.manifest.precision,
    )
