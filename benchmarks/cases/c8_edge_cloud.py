"""C8: small models at the edge and a large one in the cloud (Intelligence per Watt, arXiv 2511.07885)."""

from __future__ import annotations

from cases import Case, Row, boards_j, scenario
from hsim import load, simulate_path

LOCAL_FRACTION = 0.887  # of queries that local models answer as well
ACCURACY = 0.80
ORACLE, ROUTED = 80.4, 64.3  # per cent of energy saved


def joules_a_query(side: str) -> float:
    """Joules of the boards for one query."""
    result = simulate_path(load(scenario("c8-edge-cloud"), [f"architecture={side}"]))
    return boards_j(result, "llm") / result.tasks


def saving(accuracy: float, local_j: float, cloud_j: float) -> float:
    """Per cent saved by a router that keeps that part of what local models can answer; all else goes to the cloud."""
    kept = accuracy * LOCAL_FRACTION
    return 100 * kept * (1 - local_j / cloud_j)


def case() -> Case:
    """The oracle's saving, the router's, and their ratio."""
    both = joules_a_query("local"), joules_a_query("cloud")
    oracle, routed = saving(1.0, *both), saving(ACCURACY, *both)
    rows = (
        Row("energy saved by an oracle", ORACLE, oracle, "%", WHY_ORACLE),
        Row("energy saved by a router right in 80 % of cases", ROUTED, routed, "%", WHY_ROUTED),
        Row("the router's saving over the oracle's", ROUTED / ORACLE, routed / oracle, "", WHY_RATIO),
    )
    return Case("C8", "Edge and cloud: intelligence per watt", "c8-edge-cloud", "arXiv 2511.07885 (second hand)", rows)


WHY_ORACLE = WHY_ROUTED = WHY_RATIO = ""
