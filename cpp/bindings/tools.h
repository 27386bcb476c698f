// What the Python side needs beside networks: facts about the machine, probes, and the activations by themselves.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "gatedrnn/spec.h"

namespace gatedrnn::bindings {

namespace py = pybind11;

py::dict machine();

// Copies (to, from) of each pair. The interpreter is not let go in between, however many they are: no other Python thread, no signal
// handler and no fork sees a part of it.
void copy_all(const std::vector<std::pair<py::array, py::array>>& pairs);

py::array aligned_array(py::ssize_t count, const py::dtype& dtype);
// Of what the arrays hold; others who write meanwhile make it that of neither. Lets the interpreter go while it reads much.
std::uint64_t fingerprint(const std::vector<py::array>& arrays);
py::array sigmoid(const py::array& x);
py::array tanh(const py::array& x);
double measure_multiply(const std::string& format, double milliseconds);
double measure_bandwidth(Index bytes, double milliseconds);

}  // namespace gatedrnn::bindings
