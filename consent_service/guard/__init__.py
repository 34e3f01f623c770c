"""The front door: what every request passes before the framework sees it, and what every refusal looks like."""

from consent_service.guard.door import Guard
from consent_service.guard.metrics import METRICS_TYPE, render_metrics
from consent_service.guard.operations import Operation
from consent_service.guard.refusals import Problem, problem, problems

__all__ = ["METRICS_TYPE", "Guard", "Operation", "Problem", "problem", "problems", "render_metrics"]
