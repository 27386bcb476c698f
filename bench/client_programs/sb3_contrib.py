"""sb3-contrib: RecurrentPPO learns to balance a pole, with the sizes that it has by default."""

from __future__ import annotations

from typing import Any

import numpy as np
from sb3_contrib import RecurrentPPO

from client_programs.side import Report

ROUNDS = 10  # of 128 steps in the environment and ten updates
# Actions are drawn, and where a rounding changes one, all that follow are others. In so few rounds there is
# about one chance in a thousand of that.
_TOLERANCE = 1e-4
_LOSSES = ("train/loss", "train/value_loss", "train/entropy_loss")
_STEPS = 500


def run(report: Report, rounds: int) -> None:
    """Step through observations one by one, then learn."""
    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", seed=0, device="cpu", verbose=0)
    report.check_classes(model.policy)
    observations = np.random.default_rng(0).normal(0, 0.1, (_STEPS, 1, 4)).astype(np.float32)
    with report.timed("prediction, a step", _STEPS):
        state = _predict(model, observations)
    with report.fixed(model.policy), report.timed("prediction, a step, fixed", _STEPS):
        _predict(model, observations)
    report.add(f"state after {_STEPS} steps", state[0].ravel(), _TOLERANCE)
    with report.timed("training"):
        model.learn(model.n_steps * rounds)
    for name in _LOSSES:
        report.add(name, [model.logger.name_to_value[name]], _TOLERANCE)


def _predict(model: RecurrentPPO, observations: np.ndarray[Any, Any]) -> Any:
    """Return the state after the observations, one call for each, as one environment gives them."""
    state, starts = None, np.ones(1, bool)
    for observation in observations:
        _, state = model.predict(observation, state=state, episode_start=starts, deterministic=True)
        starts = np.zeros(1, bool)
    return state
