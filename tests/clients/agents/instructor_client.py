"""instructor in every mode for OpenAI's routes: whole, streamed in part, and asked again with its own history."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import instructor
import openai
from pydantic import AfterValidator, BaseModel

from tests.clients.capabilities import MAX_TOKENS, MODEL_ID, SPELLED_REPORT, Checks

checks = Checks()
USER: Any = {"role": "user", "content": f"Repeat this: ```json\n{SPELLED_REPORT}\n```"}
MODES = ("TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA", "MD_JSON", "RESPONSES_TOOLS")


class Report(BaseModel):
    """The weather somewhere."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


def once_refused() -> type[BaseModel]:
    """A form whose validator refuses the first answer, so that instructor asks again with what was said."""
    refusals = ["say it again"]

    def refuse(value: str) -> str:
        if refusals:
            raise ValueError(refusals.pop())
        return value

    class Checked(BaseModel):
        """The weather somewhere, checked."""

        city: Annotated[Literal["Paris", "Berlin"], AfterValidator(refuse)]
        unit: Literal["C", "F"]

    return Checked


def add_checks(name: str) -> None:
    """One mode."""
    client = instructor.from_openai(openai.OpenAI(max_retries=0, timeout=60), mode=instructor.Mode[name])
    limit = {"max_output_tokens" if name.startswith("RESPONSES") else "max_tokens": MAX_TOKENS, "temperature": 0}
    row = f"instructor {name}"

    @checks.add(row, "structured")
    def structured() -> None:
        report = client.create(model=MODEL_ID, messages=[USER], response_model=Report, max_retries=0, **limit)
        assert isinstance(report, Report)

    @checks.add(row, "second turn")
    def second_turn() -> None:
        form = once_refused()
        assert isinstance(
            client.create(model=MODEL_ID, messages=[USER], response_model=form, max_retries=1, **limit), form
        )

    @checks.add(row, "streamed")
    def streamed() -> None:
        pieces = client.create_partial(model=MODEL_ID, messages=[USER], response_model=Report, max_retries=0, **limit)
        assert list(pieces)[-1].city


for mode in MODES:
    add_checks(mode)


@checks.add("instructor PARALLEL_TOOLS", "tools")
def parallel_tools() -> None:
    """Several calls in one answer."""
    client = instructor.from_openai(openai.OpenAI(max_retries=0, timeout=60), mode=instructor.Mode.PARALLEL_TOOLS)
    reports = client.create(model=MODEL_ID, messages=[USER], response_model=Iterable[Report], max_tokens=4 * MAX_TOKENS)
    assert all(isinstance(report, Report) for report in reports)


if __name__ == "__main__":
    checks.run()
