"""instructor in every mode for OpenAI's routes: whole, streamed in part, and asked again with its own history."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import instructor
import openai
from instructor.core.exceptions import IncompleteOutputException, InstructorRetryException
from pydantic import AfterValidator, BaseModel

from tests.clients.capabilities import MAX_TOKENS, MODEL_ID, SPELLED_REPORT, Checks, spelled_call

checks = Checks()
USER: Any = {"role": "user", "content": f"Repeat this: ```json\n{SPELLED_REPORT}\n```"}
FORCED_MODES = ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS")
PROMPTED_MODES = ("JSON", "MD_JSON")  # the form is only in the prompt, and the model is too small to follow it


class Report(BaseModel):
    """The weather somewhere."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


def refusing_once() -> Any:
    """A validator that refuses the first answer, so that instructor asks again with what was said."""
    refusals = ["say it again"]

    def refuse(value: Any) -> Any:
        if refusals:
            raise ValueError(refusals.pop())
        return value

    return refuse


def once_refused() -> type[BaseModel]:
    """The form, refused at first."""
    refuse = refusing_once()

    class Checked(BaseModel):
        """The weather somewhere, checked."""

        city: Annotated[Literal["Paris", "Berlin"], AfterValidator(refuse)]
        unit: Literal["C", "F"]

    return Checked


def client_of(mode: str) -> Any:
    """An instructor client in one mode."""
    return instructor.from_openai(openai.OpenAI(max_retries=0, timeout=60), mode=instructor.Mode[mode])


def add_checks(mode: str) -> None:
    """A mode in which the service sees to it that the answer fits."""
    client, row = client_of(mode), f"instructor {mode}"
    limit = "max_output_tokens" if mode.startswith("RESPONSES") else "max_tokens"
    fields = {"model": MODEL_ID, "messages": [USER], limit: MAX_TOKENS, "temperature": 0}

    @checks.add(row, "structured")
    def structured() -> None:
        assert isinstance(client.create(response_model=Report, max_retries=0, **fields), Report)

    @checks.add(row, "second turn")
    def second_turn() -> None:
        form = once_refused()
        assert isinstance(client.create(response_model=form, max_retries=1, **fields), form)

    @checks.add(row, "streamed")
    def streamed() -> None:
        assert list(client.create_partial(response_model=Report, max_retries=0, **fields))[-1].city


def finish_reason_of(call: Callable[[], object]) -> str:
    """How the last answer of a call ended; "stop" if instructor was content with it."""
    try:
        call()
    except (InstructorRetryException, IncompleteOutputException) as error:
        return str(error.last_completion.choices[0].finish_reason)
    return "stop"


def add_prompted_checks(mode: str) -> None:
    """A mode that asks for the form in words: its requests are answered, also those with its history."""
    client, row = client_of(mode), f"instructor {mode}"
    fields = {"model": MODEL_ID, "messages": [USER], "max_tokens": MAX_TOKENS, "temperature": 0}

    @checks.add(row, "plain")
    def plain() -> None:
        reason = finish_reason_of(lambda: client.create(response_model=Report, max_retries=0, **fields))
        assert reason in ("stop", "length")

    @checks.add(row, "second turn")
    def second_turn() -> None:
        num_requests: list[int] = []
        client.on("completion:kwargs", lambda **_fields: num_requests.append(1))
        long = fields | {"max_tokens": 8 * MAX_TOKENS}  # instructor does not ask again after an answer that was cut
        reason = finish_reason_of(lambda: client.create(response_model=once_refused(), max_retries=1, **long))
        assert reason in ("stop", "length")
        assert len(num_requests) == 2


for forced_mode in FORCED_MODES:
    add_checks(forced_mode)
for prompted_mode in PROMPTED_MODES:
    add_prompted_checks(prompted_mode)


@checks.add("instructor PARALLEL_TOOLS", "tools")
def parallel_tools() -> None:
    """Several calls in one answer; this mode leaves the choice to the model."""
    told = {"role": "user", "content": f"Repeat this: {spelled_call('Report')}"}
    reports = client_of("PARALLEL_TOOLS").create(
        model=MODEL_ID,
        messages=[told],
        response_model=Iterable[Report],
        temperature=0,
        max_tokens=8 * MAX_TOKENS,
    )
    kinds = {type(report) for report in reports}
    assert kinds == {Report}


if __name__ == "__main__":
    checks.run()
