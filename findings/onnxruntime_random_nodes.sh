#!/usr/bin/env bash
# Several RandomUniform nodes without a seed in one ONNX graph, run by onnxruntime on a CPU.
# Expected: each node draws numbers of its own, independent of the others'.
# Seen: on the first run five nodes give the same number to four digits, whatever the global seed;
# and ever after, node B's i-th draw is node A's plus a constant that depends on i alone (modulo 1).
# The nodes' streams start from neighbouring seeds of a linear congruential generator.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
env/bin/python - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)


def session(nodes, size):
    names = [f"y{i}" for i in range(nodes)]
    made = [helper.make_node("RandomUniform", [], [n], shape=[size]) for n in names]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [size]) for n in names]
    graph = helper.make_graph(made, "noise", [], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


offsets = []
for seed in (None, 1, 20, 12345):
    if seed is not None:
        onnxruntime.set_seed(seed)
    first = np.array(session(5, 1).run(None, {})).ravel()
    a, b = session(2, 1000).run(None, {})
    offsets.append(np.exp(2j * np.pi * (b.astype(float) - a)))  # on a circle: modulo 1
    print("seed", seed, "first draws of five nodes:", first)
    gap = np.abs(first - first[0])
    assert np.minimum(gap, 1 - gap).max() < 1e-4, "the nodes' first draws differ now"
apart = np.abs(np.array(offsets) - offsets[0]).max()
print("largest change of B - A over four seeds, as part of a circle:", apart)
assert apart < 1e-4, "the nodes are independent now"
PY
