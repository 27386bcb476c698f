// The Python-visible network and its streams, one class for both value types.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>

#include "bound_tape.h"
#include "gatedrnn/network.h"

namespace gatedrnn::bindings {

namespace py = pybind11;

struct Marks;

class BoundStream {
 public:
  virtual ~BoundStream() = default;
  virtual py::object step(py::handle x, py::handle out, py::handle resets, py::handle mask) = 0;
  virtual py::object state() const = 0;
  virtual void set_state(py::handle state) = 0;
  virtual void reset(py::handle rows) = 0;
  virtual Index batch_size() const = 0;
  virtual std::unique_ptr<BoundStream> copy() const = 0;  // of the same network, its state its own
  py::object network;                                     // the Python object that made it
};

class BoundNetwork {
 public:
  virtual ~BoundNetwork() = default;
  // The same network with other parameters.
  virtual std::unique_ptr<BoundNetwork> renewed(const py::dict& parameters) const = 0;
  virtual py::tuple infer(py::handle x, py::handle state, py::handle lengths, py::handle out, bool batch_first,
                          const Marks& marks) = 0;
  // One step of a network of one layer, for cells: x (B, I) or (I,), and the state's parts likewise. Returns the state after it.
  virtual py::object step(py::handle x, py::handle state) = 0;
  // While the parameters are those that it was made of: makes ready for forward.
  virtual void pack_for_backward() = 0;
  virtual bool packed_for_backward() const = 0;
  virtual Index bytes() const = 0;  // of the packed weights
  // For training: (output, final state, tape).
  virtual py::tuple forward(py::handle x, py::handle state, py::handle lengths, bool batch_first,
                            const TapeOptions& options, bool x_stays, const Marks& marks) = 0;
  // (d_x or None, d_state); the gradients of the parameters go into the arrays of `gradients`.
  virtual py::tuple backward(const BoundTape& tape, py::handle d_output, py::handle d_state_n,
                             const py::dict& gradients, bool accumulate, bool input_gradient) = 0;
  virtual Plan plan(Index steps, Index batch, int threads, bool backward) const = 0;
  virtual std::unique_ptr<BoundStream> stream(Index batch_size) = 0;
  // What Python makes an equal network of, in another process too: for pickles of streams.
  py::object recipe = py::none();
};

// `parameters` maps torch.nn's names to contiguous arrays of the dtype. `precision`: a format's name, or none for the dtype's own. With
// `learn_state` rows begin with the parameters h_0 and c_0.
std::unique_ptr<BoundNetwork> bind_network(const Spec& spec, bool bias, const py::dict& parameters,
                                           const py::dtype& dtype, const std::optional<std::string>& precision,
                                           bool learn_state);

}  // namespace gatedrnn::bindings
