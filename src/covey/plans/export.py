"""A released model as a file that other programs read: safetensors, or ONNX with the parameters in it."""

from collections.abc import Mapping

from covey.plans.plan import Plan
from covey.types.errors import PlanFormatError
from covey.types.tensors import Tensors

__all__ = ["onnx_bytes", "safetensors_bytes"]


def safetensors_bytes(params: Tensors, notes: Mapping[str, str]) -> bytes:
    """Return the parameters by their names, with ``notes`` as the file's metadata; needs ``safetensors``."""
    from safetensors.numpy import save

    made: bytes = save({name: values.copy() for name, values in params.items()}, dict(notes))
    return made


def onnx_bytes(plan: Plan, params: Tensors, notes: Mapping[str, str]) -> bytes:
    """Return the plan's ``predict`` graph with the parameters as initializers; needs ``onnx``.

    Its inputs are ``input.*`` alone, each with a first dimension of 1; its outputs ``output.*``.

    Args:
        plan: verified and linted.
        params: by the manifest's names.
        notes: the model's metadata.

    Raises:
        PlanFormatError: the plan predicts nothing, or its graph wants something else than inputs and parameters.
    """
    import onnx
    from onnx import numpy_helper

    if "predict" not in plan.graphs:
        raise PlanFormatError("plan", expected="a graph 'predict'", got=", ".join(sorted(plan.graphs)))
    model = onnx.load_from_string(plan.graphs["predict"])
    given = {f"params.{name}": values for name, values in params.items()}
    free = []
    for value in model.graph.input:
        if value.name in given:
            model.graph.initializer.append(numpy_helper.from_array(given[value.name].copy(), value.name))
        elif value.name.startswith("input."):
            free.append(value)
        else:
            raise PlanFormatError("plan: predict.onnx", expected="inputs and parameters", got="another input")
    del model.graph.input[:]
    model.graph.input.extend(free)
    for key, text in notes.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    onnx.checker.check_model(model)
    made: bytes = model.SerializeToString(deterministic=True)
    return made
