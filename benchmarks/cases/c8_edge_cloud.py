"""C8: small models at the edge and a large one in the cloud (Intelligence per Watt, arXiv 2511.07885)."""

from __future__ import annotations

from cases import Case, Row, scenario
from hsim import load, simulate_path

ORACLE, ROUTED = 80.4, 64.3  # per cent of energy saved


def joules_a_query(architecture: str) -> float:
    """Joules of boards for a query: their work, and their idle draw while they serve."""
    result = simulate_path(load(scenario("c8-edge-cloud"), [f"architecture={architecture}"]))
    assert result.energy is not None
    return result.energy.tst_j["occupancy"]["accelerator"]


def case() -> Case:
    """The oracle's saving, the router's, and their ratio."""
    cloud_j = joules_a_query("all-cloud")
    oracle, routed = (100 * (1 - joules_a_query(name) / cloud_j) for name in ("oracle", "router-80"))
    rows = (
        Row("energy saved by an oracle", ORACLE, oracle, "%", WHY_ORACLE),
        Row("energy saved by a router right in 80 % of cases", ROUTED, routed, "%", WHY_ROUTED),
        Row("the router's saving over the oracle's", ROUTED / ORACLE, routed / oracle, "", WHY_RATIO),
    )
    return Case("C8", "Edge and cloud: intelligence per watt", "c8-edge-cloud", "arXiv 2511.07885 (second hand)", rows)


WHY_ORACLE = "Other models and boards than theirs, at 250 + 500 tokens, one query at a time: that the levels agree is partly chance"
WHY_ROUTED = WHY_ORACLE
WHY_RATIO = "0.8 by arithmetic; a little less, since hard queries that seem easy are answered twice"
