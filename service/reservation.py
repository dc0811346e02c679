"""A replica's share of a cluster that others use too: it reserves as many cores as it computes with threads.

Separate from the deployment because it is arithmetic. Imports no Ray.
"""

from collections.abc import Iterable


def cores_each(node_cores: Iterable[float], num_free: float, num_replicas: int) -> int:
    """Most cores that each of some replicas can reserve, all alike, at least 1.

    node_cores: of each node. num_free: cores of all nodes together that nobody has reserved.
    """
    nodes = [int(cores) for cores in node_cores]
    for cores in range(max([1, *nodes]), 1, -1):
        if sum(node // cores for node in nodes) >= num_replicas and cores * num_replicas <= num_free:
            return cores
    return 1


def replica_threads(asked: int, reserved_cores: float, usable_cores: int) -> int:
    """Threads of a replica: as many as asked for; else the cores it has reserved; 0 if it has reserved none."""
    if asked or not reserved_cores:
        return asked
    return max(1, min(int(reserved_cores), usable_cores))
