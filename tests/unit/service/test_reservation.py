"""On a shared cluster a replica computes with as many threads as it has reserved cores."""

import pytest

from service.reservation import cores_each, replica_threads

CLUSTERS = [
    ([8.0], 8, 1, 8, "one replica, one node"),
    ([8.0], 8, 2, 4, "two share a node"),
    ([8.0, 8.0], 16, 2, 8, "a node each"),
    ([8.0, 8.0], 16, 3, 4, "three on two nodes: two fit on one"),
    ([16.0, 4.0], 20, 2, 8, "both on the larger node"),
    ([16.0, 4.0], 20, 5, 4, "all alike, so that any fits anywhere"),
    ([0.0, 8.0], 8, 1, 8, "a head that computes nothing"),
    ([8.0], 3, 1, 3, "somebody else has reserved five"),
    ([2.0], 2, 4, 1, "more replicas than cores"),
    ([], 0, 1, 1, "no node yet"),
]


@pytest.mark.parametrize(
    ("nodes", "num_free", "num_replicas", "cores", "reason"), CLUSTERS, ids=[row[4] for row in CLUSTERS]
)
def test_replicas_reserve_as_much_as_all_of_them_can_have(
    nodes: list[float], num_free: float, num_replicas: int, cores: int, reason: str
) -> None:
    """At least one core each."""
    assert cores_each(nodes, num_free, num_replicas) == cores, reason


@pytest.mark.parametrize(
    ("asked", "reserved", "usable", "threads"),
    [(0, 4.0, 8, 4), (0, 1.0, 8, 1), (0, 0.5, 8, 1), (0, 4.0, 2, 2), (3, 4.0, 8, 3), (0, 0.0, 8, 0), (6, 0.0, 2, 6)],
)
def test_a_replica_uses_what_it_has_reserved(asked: int, reserved: float, usable: int, threads: int) -> None:
    """Unless it is told otherwise, or its control group grants less; 0 leaves the choice to the session."""
    assert replica_threads(asked, reserved, usable) == threads
