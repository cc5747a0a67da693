"""The device runs where neither JAX nor a server is installed."""

import subprocess
import sys

import pytest

BLOCKED = (
    "jax",
    "jaxlib",
    "onnx",
    "optax",
    "starlette",
    "uvicorn",
    "covey.server",
    "covey.storage",
    "covey.simulation",
)

CODE = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import numpy as np
from pathlib import Path
import covey.device.agent, covey.device.evaluate, covey.device.transport
from covey.device.trainer import OnnxTrainer, TrainingJob
from covey.plans.lint import lint_plan
from covey.plans.plan import unpack_plan
from covey.types.tensors import unpack_tensors
plan = unpack_plan(Path(sys.argv[1]).read_bytes())
lint_plan(plan)
params = unpack_tensors(plan.manifest.params, Path(sys.argv[2]).read_bytes())
examples = {{"x": np.ones((5, 3), np.float32), "y": np.ones(5, np.int32)}}
result = OnnxTrainer().run(TrainingJob(plan, 0, params, {{}}, {{}}, bytes(32)), examples)
print(result.num_steps, sorted(m for m in sys.modules if m.split(".")[0] in {blocked!r} and sys.modules[m]))
"""


def test_the_device_trains_without_jax_onnx_or_any_server_package(tmp_path):
    from . import world

    plan, params = tmp_path / "plan", tmp_path / "params"
    plan.write_bytes(world.plan_bytes())
    params.write_bytes(world.checkpoint())
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(blocked=BLOCKED), str(plan), str(params)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 []\n"
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["covey.device.session", "covey.device.trainer", "covey.device.policy"])
def test_the_pure_modules_open_no_network(name):
    code = f"import {name}, sys; print([m for m in ('httpx', 'socket', 'sqlite3') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
