"""GET /v1/models: what is served."""

from fastapi import APIRouter

from service.api.dependencies import GeneratorDependency
from service.api.generation import Generator
from service.schemas import ErrorBody, ModelCard, ModelList

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.get("/models")
async def list_models(generator: GeneratorDependency) -> ModelList:
    """The served model, as a list of one."""
    return ModelList(data=[_card(generator)])


@router.get("/models/{model_id:path}", responses={404: {"model": ErrorBody}})
async def get_model(model_id: str, generator: GeneratorDependency) -> ModelCard:
    """The served model, if that is its id."""
    generator.check_model(model_id)
    return _card(generator)


def _card(generator: Generator) -> ModelCard:
    return ModelCard(
        id=generator.model_id,
        created=generator.created,
        context_tokens=generator.context_tokens,
        precision=generator.manifest.precision,
    )
