"""GET /tokenizer_info, POST /tokenize and /detokenize: what a text is to the model."""

from fastapi import APIRouter, Request, Response

from service.api.dependencies import GeneratorDependency
from service.api.responses import KEY_ERRORS, REQUEST_ERRORS, json_response
from service.engine.request_check import blaming
from service.schemas.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)

router = APIRouter(tags=["Attend"])


@router.get("/tokenizer_info", responses=KEY_ERRORS)
async def tokenizer_info(generator: GeneratorDependency) -> TokenizerInfo:
    """Special tokens and chat template, for evaluators that cut texts into tokens and render chats by themselves."""
    config, special_tokens = generator.manifest.config, generator.manifest.special_tokens
    template = generator.prompts.chat_template
    first_end = generator.prompts.tokenizer.token_text(config.eos_token_ids[0]) if config.eos_token_ids else None
    return TokenizerInfo(
        model_max_length=generator.context_tokens,
        vocab_size=config.vocab_size,
        bos_token=special_tokens.get("bos_token"),
        eos_token=special_tokens.get("eos_token", first_end),
        pad_token=special_tokens.get("pad_token"),
        unk_token=special_tokens.get("unk_token"),
        chat_template=None if template is None else template.source,
    )


@router.post("/tokenize", response_model=TokenizeResponse, responses=REQUEST_ERRORS)
async def tokenize(body: TokenizeRequest, http_request: Request, generator: GeneratorDependency) -> Response:
    """Token ids of a text, or of a conversation through the model's chat template."""
    generator.admit(body, body.model, http_request)
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
            continue_final_message=body.continue_final_message,
            add_special_tokens=bool(body.add_special_tokens),
        )
        return list(prompt.ids)


@router.post("/detokenize", response_model=DetokenizeResponse, responses=REQUEST_ERRORS)
async def detokenize(body: DetokenizeRequest, http_request: Request, generator: GeneratorDependency) -> Response:
    """The text of token ids."""
    generator.admit(body, body.model, http_request)
    with blaming({"prompt": "tokens"}):
        generator.engine_loop.limits.check_ids("prompt", tuple(body.tokens))
    text = generator.prompts.tokenizer.decode(body.tokens, skip_special_tokens=body.skip_special_tokens)
    return json_response(DetokenizeResponse(prompt=text))
