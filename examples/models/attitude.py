"""Attitude from an accelerometer and a gyroscope, with RIANN: a whole recording, and one step at a time.

pip install ".[models]" && python examples/models/attitude.py
"""

import importlib.resources
import sys

import numpy as np
import onnx
from beside import beside
from riann.riann import RIANN

import gatedrnn as gr
import gatedrnn.onnx


def recording(steps, rate=100.0):
    """Simulate a sensor that is turned to and fro: what it measures of gravity and of its own turning."""
    t = np.arange(steps) / rate
    roll, pitch = 0.8 * np.sin(2.1 * t), 0.5 * np.sin(1.3 * t + 1)
    up = np.stack([-np.sin(pitch), np.sin(roll) * np.cos(pitch), np.cos(roll) * np.cos(pitch)], axis=1)
    turning = np.stack([0.8 * 2.1 * np.cos(2.1 * t), 0.5 * 1.3 * np.cos(1.3 * t + 1), 0 * t], axis=1)
    noise = np.random.default_rng(0).standard_normal((2, steps, 3))
    return 9.81 * up + 0.05 * noise[0], turning + 0.01 * noise[1]


def inclination(quaternion):
    """Return the angle between the sensor's z axis and the vertical, in degrees."""
    _, x, y, _ = np.moveaxis(quaternion, -1, 0)
    return np.degrees(np.arccos(np.clip(1 - 2 * (x**2 + y**2), -1, 1)))


class Stepwise:
    """RIANN, one step at a time: its two GRUs as streams, and what stands before and after them in NumPy."""

    def __init__(self, model, rate=200.0):
        graph = onnx.load(model).graph
        made = [node.attribute[0].t for node in graph.node if node.op_type == "Constant"]
        constants = [onnx.numpy_helper.to_array(tensor) for tensor in made]
        self.mean, self.scale = (constant.ravel() for constant in constants[:2])
        by_name = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.weight, self.bias = by_name["final.lin.weight"][:, :, 0].T, by_name["final.lin.bias"]
        self.layers = [gru.stream() for gru in gr.from_onnx(model).values()]
        self.x = np.full(7, 1 / rate, np.float32)

    def reset_state(self):
        for layer in self.layers:
            layer.reset()

    def predict_step(self, acc, gyr):
        self.x[:3], self.x[3:6] = acc, gyr
        h = ((self.x - self.mean) / self.scale)[None]
        for layer in self.layers:
            h = layer.step(h)
        quaternion = (h @ self.weight + self.bias)[0]
        return quaternion / np.sqrt(quaternion @ quaternion)


def main(steps=1000):
    model = str(importlib.resources.files("riann") / "riann.onnx")
    acc, gyr = recording(steps)
    before = RIANN(model)

    now = RIANN(model)
    now.session = gatedrnn.onnx.InferenceSession(model)

    stepwise = Stepwise(model)

    def single_steps(riann):
        riann.reset_state()
        return np.array([riann.predict_step(a, g) for a, g in zip(acc[:100], gyr[:100], strict=True)])

    whole = beside("whole", lambda: before.predict(acc, gyr), lambda: now.predict(acc, gyr))
    steps = beside("100 single steps", lambda: single_steps(before), lambda: single_steps(stepwise))
    angles = [inclination(quaternion) for quaternion in whole]
    print(f"largest difference: {np.abs(angles[0] - angles[1]).max():.5f} degrees")
    for precision in ("bfloat16", "int8"):
        now.session = gatedrnn.onnx.InferenceSession(model, precision)
        difference = np.abs(inclination(now.predict(acc, gyr)) - angles[0])
        print(f"in {precision}: {difference.max():.3f} degrees at most, {difference.mean():.3f} in the mean")
    return whole, steps


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
