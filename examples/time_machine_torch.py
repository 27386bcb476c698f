"""The program of time_machine.py in PyTorch, from the same initial parameters, to compare with."""

import torch
from torch.nn import functional


class ResetBeforeGRU(torch.nn.GRU):
    """The GRU that PyTorch does not have, in PyTorch's operations, one time step after the other."""

    def forward(self, x, state):
        hidden = self.hidden_size
        h = x.new_zeros(x.shape[1], hidden) if state is None else state[0]
        inputs = functional.linear(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0)
        gate_weight, candidate_weight = self.weight_hh_l0.split([2 * hidden, hidden])
        output = []
        for of_gates, of_candidate in zip(*inputs.split([2 * hidden, hidden], 2), strict=True):
            r, z = torch.sigmoid(of_gates + h @ gate_weight.T).chunk(2, 1)
            n = torch.tanh(of_candidate + (r * h) @ candidate_weight.T)
            h = (1 - z) * n + z * h
            output.append(h)
        return torch.stack(output), h[None]


CELLS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "gru-reset-before": ResetBeforeGRU}


class TorchModel:
    def __init__(self, cell, parameters, threads):
        torch.set_num_threads(threads)
        self.classes, hidden = parameters["head.weight"].shape
        rnn, head = CELLS[cell](self.classes, hidden), torch.nn.Linear(hidden, self.classes)
        self.net = torch.nn.ModuleDict({"rnn": rnn, "head": head})
        self.net.load_state_dict({name: torch.from_numpy(array) for name, array in parameters.items()})
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1.0)

    def update(self, inputs, targets, state):
        one_hot = functional.one_hot(torch.from_numpy(inputs), self.classes).float()
        hidden, state = self.net["rnn"](one_hot, state)
        logits = self.net["head"](hidden)
        loss = functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        return loss.item(), tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
