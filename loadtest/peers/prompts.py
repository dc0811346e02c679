"""Prompts of a stated length that share nothing, and a chat whose requests share a long beginning.

The words are one token each for the default model, so a prompt of N words has N tokens, give or take one. Everything is
seeded: each server gets the same prompts, each round and each stream others.
"""

import random
from dataclasses import dataclass

WORDS = (
    "river stone quiet copper meadow signal winter garden thread marble engine morning paper island shadow timber "
    "valley compass silver candle bridge cotton thunder window feather museum bottle market doctor summer bread "
    "letter planet mirror school ocean forest music garage ticket dinner pencil hammer castle village farmer teacher "
    "painter soldier captain library kitchen blanket basket rabbit turtle horse tiger eagle spider monkey dragon "
    "mountain desert glacier canyon storm cloud rain snow wind fire smoke ash sand clay iron gold steel glass wood "
    "leather silk wool linen sugar salt pepper honey butter cheese apple orange lemon cherry grape onion garlic "
    "carrot potato tomato bean rice corn wheat barley coffee tea wine beer water milk juice soup salad cake pie "
    "cookie chocolate carried opened painted measured crossed followed answered gathered repaired promised counted "
    "borrowed covered listened watched pulled pushed dropped planted cleaned between under above behind before after "
    "without toward across slowly quickly gently never always often sometimes early late north south east west"
)
VOCABULARY = tuple(WORDS.split())


@dataclass(frozen=True)
class Scenario:
    """What every request of a cell looks like: words of its own, after `shared_words` that all have in common."""

    name: str
    own_words: int
    shared_words: int = 0
    num_streams: tuple[int, ...] = ()  # empty: as many as the run asks for


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("short", 32),
        Scenario("medium", 200),
        Scenario("long", 1500),
        Scenario("shared-prefix", 20, shared_words=600, num_streams=(16,)),
    )
}


class PromptWriter:
    """The prompts of one stream, one after the other."""

    def __init__(self, scenario: Scenario, cell_seed: str, stream: int) -> None:
        self._scenario = scenario
        self._own = random.Random(f"{cell_seed}/{scenario.name}/{stream}")
        # The same for all streams of a cell, another one in the next round.
        self._shared = _sentence(random.Random(f"{cell_seed}/{scenario.name}/shared"), scenario.shared_words)

    def next_prompt(self) -> str:
        """A prompt that no stream has sent before."""
        own = _sentence(self._own, self._scenario.own_words)
        if not self._shared:
            return own
        return f"{self._shared}.\n\nQuestion: {own}?\nAnswer:"


def _sentence(generator: random.Random, num_words: int) -> str:
    return " ".join(generator.choice(VOCABULARY) for _ in range(num_words))
