"""The meaning of gatedrnn: a whole stack of layers and directions, as plainly as NumPy can say it.

No speed, no cleverness. Everything runs in `dtype`, by default float64. Shapes: x (T, B, I), or (B, T, I)
with batch_first, or (T, I); h (L * D, B, P or H); c (L * D, B, H). Parameters carry names, shapes and gate
orders of `torch.nn`.
"""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    e = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1, e) / (1 + e)


FUNCTIONS = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "leaky_relu": lambda x, alpha: np.where(x > 0, x, alpha * x),
    "elu": lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": lambda x: np.logaddexp(x, 0),
    "scaled_tanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "thresholded_relu": lambda x, alpha: np.where(x > alpha, x, 0),
}


class Options:
    """Functions of gates, by their letters, each on clipped values; `h` is not clipped where it is c's."""

    def __init__(
        self,
        activations=None,
        clip=None,
        cell_clip=None,
        nonlinearity="tanh",
        layer_norm=None,
        layer_norm_eps=1e-5,
    ):
        self.functions = {
            **dict.fromkeys("iforz", "sigmoid"),
            **dict.fromkeys("gn", "tanh"),
            "h": nonlinearity,
        }
        self.functions |= activations or {}
        self.clip, self.cell_clip = clip or np.inf, cell_clip or np.inf
        self.layer_norm, self.layer_norm_eps = layer_norm, layer_norm_eps

    def __call__(self, gate, x):
        return self.unclipped(gate, np.clip(x, -self.clip, self.clip))

    def unclipped(self, gate, x):
        function = self.functions[gate]
        name, *parameters = [function] if isinstance(function, str) else function
        return FUNCTIONS[name](x, *parameters)

    def normalized(self, x):
        variance = x.var(axis=1, keepdims=True)
        return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(variance + self.layer_norm_eps)


def lstm(p, x, state, f):
    """Gates i, f, g, o. Through peepholes, whose weight is else 0, i and f see the old c, o the new one."""
    h, c = state
    a_i, a_f, a_g, a_o = np.split(
        x @ p["weight_ih"].T + p["bias_ih"] + h @ p["weight_hh"].T + p["bias_hh"], 4, axis=1
    )
    i = f("i", a_i + p.get("weight_ci", 0) * c)
    return lstm_end(p, f("f", a_f + p.get("weight_cf", 0) * c) * c + i * f("g", a_g), a_o, f)


def coupled_lstm(p, x, state, f):
    """Gates i, g, o. The forget gate is 1 - i."""
    h, c = state
    a_i, a_g, a_o = np.split(
        x @ p["weight_ih"].T + p["bias_ih"] + h @ p["weight_hh"].T + p["bias_hh"], 3, axis=1
    )
    i = f("i", a_i + p.get("weight_ci", 0) * c)
    return lstm_end(p, (1 - i) * c + i * f("g", a_g), a_o, f)


def lstm_end(p, c_new, a_o, f):
    c_new = np.clip(c_new, -f.cell_clip, f.cell_clip)
    return projected(p, f("o", a_o + p.get("weight_co", 0) * c_new) * f.unclipped("h", c_new)), c_new


def projected(p, h):
    return h @ p["weight_hr"].T if "weight_hr" in p else h


def lstm_of_normalized_products(p, x, state, f):
    """Ba, Kiros and Hinton 2016: all gates of a product together, and c as h sees it."""
    h, c = state
    of_x = f.normalized(x @ p["weight_ih"].T) * p["weight_ln_ih"] + p["bias_ih"]
    of_h = f.normalized(h @ p["weight_hh"].T) * p["weight_ln_hh"] + p["bias_hh"]
    a_i, a_f, a_g, a_o = np.split(of_x + of_h, 4, axis=1)
    c_new = np.clip(f("f", a_f) * c + f("i", a_i) * f("g", a_g), -f.cell_clip, f.cell_clip)
    seen = f.normalized(c_new) * p["weight_ln_c"] + p.get("bias_ln_c", 0)
    return projected(p, f("o", a_o) * f.unclipped("h", seen)), c_new


def lstm_of_normalized_gates(p, x, state, f):
    """TFLite's: each gate's sum by itself, with what a peephole adds. Without an f the gates are coupled."""
    h, c = state
    gates = "ifgo" if len(p["weight_ih"]) == 4 * c.shape[1] else "igo"
    sums = dict(
        zip(gates, np.split(x @ p["weight_ih"].T + h @ p["weight_hh"].T, len(gates), axis=1), strict=True)
    )
    weights, biases = (
        dict(zip(gates, np.split(values, len(gates)), strict=True))
        for values in (p["weight_ln"], p["bias_ih"] + p["bias_hh"])
    )

    def gate(name, seen):
        a = sums[name] + p.get(f"weight_c{name}", 0) * seen
        return f(name, f.normalized(a) * weights[name] + biases[name])

    i = gate("i", c)
    c_new = (gate("f", c) if "f" in gates else 1 - i) * c + i * gate("g", c)
    c_new = np.clip(c_new, -f.cell_clip, f.cell_clip)
    return projected(p, gate("o", c_new) * f.unclipped("h", c_new)), c_new


def gru_of_normalized_products(p, x, state, f):
    """Ba, Kiros and Hinton 2016, as their code has it: r and z together, and n."""
    (h,) = state
    parts = []
    for value, end in ((x, "ih"), (h, "hh")):
        rz, n = np.split(value @ p[f"weight_{end}"].T, [2 * h.shape[1]], axis=1)
        normalized = np.concatenate([f.normalized(rz), f.normalized(n)], axis=1)
        parts.append(np.split(normalized * p[f"weight_ln_{end}"] + p[f"bias_{end}"], 3, axis=1))
    (x_r, x_z, x_n), (h_r, h_z, h_n) = parts
    r, z = f("r", x_r + h_r), f("z", x_z + h_z)
    return ((1 - z) * f("n", x_n + r * h_n) + z * h,)


def gru(p, x, state, f, reset_after=True):
    """Gates r, z, n. The reset gate acts on the candidate's hidden product, or on the h that goes into it."""
    (h,) = state
    x_r, x_z, x_n = np.split(x @ p["weight_ih"].T + p["bias_ih"], 3, axis=1)
    h_r, h_z, h_n = np.split(h @ p["weight_hh"].T + p["bias_hh"], 3, axis=1)
    r, z = f("r", x_r + h_r), f("z", x_z + h_z)
    if reset_after:
        n = f("n", x_n + r * h_n)
    else:
        u_n, b_n = (np.split(p[name], 3)[2] for name in ("weight_hh", "bias_hh"))
        n = f("n", x_n + (r * h) @ u_n.T + b_n)
    return ((1 - z) * n + z * h,)


def rnn(p, x, state, f):
    (h,) = state
    return (f("h", x @ p["weight_ih"].T + p["bias_ih"] + h @ p["weight_hh"].T + p["bias_hh"]),)


STEP = {
    "lstm": lstm,
    "lstm_peephole": lstm,
    "lstm_coupled": coupled_lstm,
    "lstm_coupled_peephole": coupled_lstm,
    "gru": gru,
    "gru_reset_before": lambda p, x, state, f: gru(p, x, state, f, reset_after=False),
    "rnn_tanh": rnn,
    "rnn_relu": rnn,
}


NORMALIZED_STEP = {
    ("lstm", "products"): lstm_of_normalized_products,
    ("lstm", "gates"): lstm_of_normalized_gates,
    ("gru", "products"): gru_of_normalized_products,
}


def step_of(cell, layer_norm):
    return NORMALIZED_STEP[cell.split("_")[0], layer_norm] if layer_norm else STEP[cell]


def direction(step, p, x, state, options, lengths, reverse):
    """One layer in one direction. A row outside its length keeps its state and puts out zeros.

    So the reverse direction, which comes from the end, starts to change it at the row's own last valid step.
    """
    output = np.zeros((*x.shape[:2], state[0].shape[1]), x.dtype)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        valid = (t < lengths)[:, None]
        state = tuple(
            np.where(valid, new, old) for new, old in zip(step(p, x[t], state, options), state, strict=True)
        )
        output[t] = np.where(valid, state[0], 0)
    return output, state


def forward(
    cell,
    parameters,
    x,
    state=None,
    lengths=None,
    *,
    layers=1,
    directions=1,
    batch_first=False,
    dtype=np.float64,
    **options,
):
    """`output, state_n` of the whole stack; `state` and `state_n` are h, and for LSTM the pair (h, c).

    `options` are those of `Options`.
    """
    if cell == "rnn_relu":
        options["nonlinearity"] = "relu"
    is_lstm = cell.startswith("lstm")
    x = np.asarray(x, dtype)
    unbatched = x.ndim == 2
    if unbatched:
        x = x[:, None]
    elif batch_first:
        x = x.swapaxes(0, 1)
    if state is not None:
        state = tuple(np.asarray(s, dtype) for s in (state if is_lstm else (state,)))
        state = tuple(s[:, None] for s in state) if unbatched else state
    lengths = np.full(x.shape[1], len(x)) if lengths is None else np.asarray(lengths)

    final = []
    for layer in range(layers):
        outputs = []
        for reverse in range(directions):
            suffix = f"_l{layer}" + "_reverse" * reverse
            p = {
                k.removesuffix(suffix): np.asarray(v, dtype)
                for k, v in parameters.items()
                if k.endswith(suffix)
            }
            p = {
                "bias_ih": np.zeros(len(p["weight_ih"]), dtype),
                "bias_hh": np.zeros(len(p["weight_ih"]), dtype),
            } | p
            if state is None:
                sizes = (p["weight_hh"].shape[1], p["weight_hh"].shape[0] // (3 if "coupled" in cell else 4))[
                    : 1 + is_lstm
                ]
                start = tuple(np.zeros((x.shape[1], size), dtype) for size in sizes)
            else:
                start = tuple(s[layer * directions + reverse] for s in state)
            output, end = direction(
                step_of(cell, options.get("layer_norm")), p, x, start, Options(**options), lengths, reverse
            )
            outputs.append(output)
            final.append(end)
        x = np.concatenate(outputs, axis=2)

    state_n = tuple(np.stack(parts) for parts in zip(*final, strict=True))
    if unbatched:
        x, state_n = x[:, 0], tuple(s[:, 0] for s in state_n)
    elif batch_first:
        x = x.swapaxes(0, 1)
    return x, (state_n if is_lstm else state_n[0])
