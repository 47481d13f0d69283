"""The planner: the best fleet of those that a scenario's lists allow, with a certificate.

>>> from hsim.plan import PlanOptions, plan, read_problem
>>> problem = read_problem("agents-gpu-only", ["fleet.gpu-tier.count=[1, 2]", "workload.tasks=200"])
>>> [fleet.name for fleet in problem.fleets]
['1 x hgx-h100-8', '2 x hgx-h100-8']
"""

from hsim.plan.planner import PlanOptions, plan
from hsim.plan.preview import preview
from hsim.plan.problem import Problem, problem_of, read_problem
from hsim.plan.result import Fleet, Judged, Plan, Preview, Step

__all__ = [
    "Fleet",
    "Judged",
    "Plan",
    "PlanOptions",
    "Preview",
    "Problem",
    "Step",
    "plan",
    "preview",
    "problem_of",
    "read_problem",
]
