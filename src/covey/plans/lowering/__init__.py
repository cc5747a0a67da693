"""The lowering: training steps written in JAX become ONNX graphs that stock onnxruntime executes.

A traced program (a jaxpr, after JAX's own differentiation) is walked equation by equation: :mod:`registry` calls one
small rule for each primitive, and the rules lie in modules by topic. :mod:`graph` builds the graph, :mod:`export` makes
models of functions, and :mod:`check` compares a model with JAX before it may ship.
"""

from covey.plans.lowering.check import Agreement, compare, count_roundings, loop, run_model, tolerance
from covey.plans.lowering.export import STEPS, lower, lower_scan

__all__ = ["STEPS", "Agreement", "compare", "count_roundings", "loop", "lower", "lower_scan", "run_model", "tolerance"]
