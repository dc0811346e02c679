"""POST /tokenize and /detokenize: what a text is to the model."""

from fastapi import APIRouter, Response

from service.api.dependencies import GeneratorDependency
from service.api.responses import REQUEST_ERRORS, json_response
from service.engine.request_check import blaming
from service.schemas.tokenization import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

router = APIRouter(tags=["Attend"], responses=REQUEST_ERRORS)


@router.post("/tokenize", response_model=TokenizeResponse)
async def tokenize(body: TokenizeRequest, generator: GeneratorDependency) -> Response:
    """Token ids of a text, or of a conversation through the model's chat template."""
    generator.check_model(body.model)
    ids = await _token_ids(body, generator)
    tokenizer = generator.prompts.tokenizer
    strings = [tokenizer.token_text(token_id) for token_id in ids] if body.return_token_strs else None
    answer = TokenizeResponse(count=len(ids), max_model_len=generator.context_tokens, tokens=ids, token_strs=strings)
    return json_response(answer, leaves_out=set() if body.return_token_strs else {"token_strs"})


async def _token_ids(body: TokenizeRequest, generator: GeneratorDependency) -> list[int]:
    prompts = generator.prompts
    if body.prompt is not None:
        return await prompts.encode(
            body.prompt, add_special_tokens=body.add_special_tokens is not False, parse_special=body.parse_special
        )
    assert body.messages is not None, "the schema asks for one of them"
    with blaming({"prompt": "messages"}):
        prompt = await prompts.of_messages(
            body.messages,
            body.tools or (),
            add_generation_prompt=body.add_generation_prompt,
            add_special_tokens=bool(body.add_special_tokens),
        )
        return list(prompt.ids)


@router.post("/detokenize", response_model=DetokenizeResponse)
async def detokenize(body: DetokenizeRequest, generator: GeneratorDependency) -> Response:
    """The text of token ids."""
    generator.check_model(body.model)
    with blaming({"prompt": "tokens"}):
        generator.engine_loop.limits.check_ids("prompt", tuple(body.tokens))
    text = generator.prompts.tokenizer.decode(body.tokens, skip_special_tokens=body.skip_special_tokens)
    return json_response(DetokenizeResponse(prompt=text))
