// gatedrnn._core: the engine for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "arrays.h"
#include "bound_network.h"
#include "call.h"
#include "gatedrnn/dispatch.h"
#include "gatedrnn/threads.h"
#include "named_parameters.h"
#include "thread_limit.h"
#include "tools.h"

namespace gatedrnn::bindings {
namespace {

std::unique_ptr<BoundNetwork> make_network(const std::string& cell, const py::dict& parameters, Index input_size,
                                           Index hidden_size, Index num_layers, bool bidirectional, bool bias,
                                           Index proj_size, const py::object& dtype,
                                           const std::optional<std::string>& precision, bool reverse, bool learn_state,
                                           const Functions& activations, std::optional<double> clip,
                                           std::optional<double> cell_clip, double layer_norm_eps) {
  apply_thread_limit();
  Spec spec{cell_named(cell), input_size, hidden_size, num_layers, bidirectional ? 2 : 1, proj_size, reverse};
  spec.options = cell_options(spec.description(), activations, clip, cell_clip, layer_norm_eps);
  return bind_network(spec, bias, parameters, py::dtype::from_args(dtype), precision, learn_state);
}

void check_out(const py::object& out, const py::object& dtype, const std::vector<py::ssize_t>& shape,
               const std::vector<py::array>& inputs) {
  if (shape.size() == 2)
    out_argument(out, py::dtype::from_args(dtype), {shape[0], shape[1]}, inputs);
  else
    out_argument(out, py::dtype::from_args(dtype), {shape.at(0), shape.at(1), shape.at(2)}, inputs);
}

// The runtime's functions by their addresses.
void borrow_threads_at(std::uintptr_t parallel, std::uintptr_t thread_num, std::uintptr_t num_threads,
                       std::uintptr_t max_threads) {
  OpenMp from{};
  from.parallel = reinterpret_cast<decltype(from.parallel)>(parallel);
  from.thread_num = reinterpret_cast<decltype(from.thread_num)>(thread_num);
  from.num_threads = reinterpret_cast<decltype(from.num_threads)>(num_threads);
  from.max_threads = reinterpret_cast<decltype(from.max_threads)>(max_threads);
  borrow_threads(from);
}

py::dict plan_dict(const BoundNetwork& network, Index steps, Index batch, int threads, bool backward) {
  const Plan plan = network.plan(steps, batch, threads, backward);
  py::dict d;
  d["threads"] = plan.threads();
  d["layer_groups"] = plan.layer_groups;
  d["direction_groups"] = plan.direction_groups;
  d["row_groups"] = plan.row_groups;
  d["unit_groups"] = plan.unit_groups;
  d["gradient_threads"] = plan.gradient_threads;
  d["block_pairs"] = plan.block_pairs;
  d["cycles"] = plan.cycles;
  return d;
}

py::tuple infer(BoundNetwork& network, const py::object& x, const py::object& state, const py::object& lengths,
                const py::object& out, bool batch_first, const py::object& mask, const py::object& resets,
                bool repeats) {
  return network.infer(x, state, lengths, out, batch_first, {mask, resets, repeats});
}

py::tuple forward(BoundNetwork& network, const py::object& x, const py::object& state, const py::object& lengths,
                  bool batch_first, double dropout, std::uint64_t dropout_seed, bool recompute, const py::object& owner,
                  bool x_stays, const py::object& mask, const py::object& resets, bool repeats) {
  const py::tuple result = network.forward(x, state, lengths, batch_first, {{dropout, dropout_seed}, recompute},
                                           x_stays, {mask, resets, repeats});
  py::cast<BoundTape&>(result[2]).owner = owner;
  return result;
}

py::tuple backward(BoundNetwork& network, const BoundTape& tape, const py::object& d_output,
                   const py::object& d_state_n, const py::dict& gradients, bool accumulate, bool input_gradient,
                   const py::object& owner) {
  if (!tape.owner.is(owner)) refuse_value("tape", "one that this module's forward returned", "one of another module");
  return network.backward(tape, d_output, d_state_n, gradients, accumulate, input_gradient);
}

std::unique_ptr<BoundStream> make_stream(const py::object& network, Index batch_size) {
  std::unique_ptr<BoundStream> stream = py::cast<BoundNetwork&>(network).stream(batch_size);
  stream->network = network;
  return stream;
}

py::tuple reduced_network(const BoundNetwork& network) {
  if (network.recipe.is_none()) throw py::type_error("cannot pickle a network of which no stream was made");
  return py::make_tuple(py::module_::import("gatedrnn._streams").attr("make_network"), network.recipe);
}

py::tuple reduced_stream(const BoundStream& stream) {
  return py::make_tuple(py::module_::import("gatedrnn._streams").attr("make_stream"),
                        py::make_tuple(stream.network, stream.batch_size(), stream.state()));
}

Index tape_bytes(const BoundTape& tape) {
  return tape.bytes() + (tape.merged.is_none() ? 0 : py::cast<Index>(tape.merged.attr("nbytes")));
}

void set_threads(int count) {
  if (count < 1) refuse_value("n", "at least 1", std::to_string(count));
  set_num_threads(count);
}

// The two classes that a user gets to see; the other docstrings are in _core.pyi.
void add_stream(py::module_& m) {
  py::class_<BoundStream> stream(m, "Stream", R"(Sequences that go forward together, one time step at a time.

Made by ``stream(batch_size)`` of a module, whose parameters of that moment it keeps. With L layers, B sequences,
inputs of width I, H hidden units and S the width of h (`proj_size` where it is set, else H). One thread at a time: a
second one gets a RuntimeError. Copies and pickles go on by themselves from the state of that moment, with the same
bits; copies share the packed parameters.)");
  stream.def("step", &BoundStream::step, py::arg("x"), py::arg("out") = py::none(), py::kw_only(),
             py::arg("resets") = py::none(), py::arg("mask") = py::none(),
             R"(Go one time step forward, with the bits of the whole sequence.

Args:
    x: Input, (B, I), or (I,) where B is 1: whatever NumPy reads as floating-point numbers.
    out: Array to write the output into, of the output's shape and the module's dtype; a new one where None.
    resets: B booleans, true for rows that begin anew with the step, as after ``reset``; None for none of them.
    mask: B booleans, false for rows that skip the step: their state stays, after `resets`, and their output is 0,
        whatever x holds. None: all rows take the step.

Returns:
    The output, (B, S), or (S,) for an x of one axis.

Raises:
    TypeError: An argument has the wrong type or dtype.
    ValueError: An argument has the wrong shape or value. In both cases the state is as it was.
    RuntimeError: Another thread is using the stream.)");
  stream.def_property(
      "state", &BoundStream::state, &BoundStream::set_state,
      R"(The state as a read-only copy: h of shape (L, B, S), for LSTM the pair (h, c), c of shape (L, B, H).

Assigning sets it; None, and for LSTM None in a pair, stands for what `reset` sets. Where B is 1, arrays without B are taken
too, such as an unbatched call's. Errors are those of `step`.)");
  stream.def("reset", &BoundStream::reset, py::arg("rows") = py::none(),
             R"(Set the state of some rows to zeros, or with `learn_state` to the parameters h_0 and c_0.

Args:
    rows: Their numbers in 0..B-1, one or several, or B booleans, true for those; None: all rows.

Raises:
    TypeError: `rows` is neither an integer nor several, nor booleans.
    ValueError: A number is out of range, or there are not B booleans. In both cases the state is as it was.
    RuntimeError: Another thread is using the stream.)");
  stream.def("__copy__", &BoundStream::copy);
  stream.def("__deepcopy__", [](const BoundStream& self, const py::object&) { return self.copy(); }, py::arg("memo"));
  stream.def("__reduce__", &reduced_stream);
  stream.def_property_readonly("batch_size", &BoundStream::batch_size, "How many sequences go forward together, B.");
}

void add_tape(py::module_& m) {
  py::class_<BoundTape> tape(m, "Tape", R"(What ``forward`` of a module keeps for its ``backward``.

It may be used more than once, from any thread, and keeps the input and the parameters of that moment.)");
  tape.def_property_readonly("nbytes", &tape_bytes, "Its size in bytes, without the copy of the input.");
  tape.def_readwrite("_merged", &BoundTape::merged);
}

}  // namespace
}  // namespace gatedrnn::bindings

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  using namespace gatedrnn;
  using namespace gatedrnn::bindings;
  active_table();  // an unknown GATEDRNN_ISA fails here, as an ImportError
  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "not enough memory for the packed weights or the scratch of this call");
    }
  });
  m.attr("__version__") = GATEDRNN_VERSION;

  add_stream(m);
  add_tape(m);

  py::class_<BoundNetwork>(m, "Network")
      .def(py::init(&make_network), py::arg("cell"), py::arg("parameters"), py::kw_only(), py::arg("input_size"),
           py::arg("hidden_size"), py::arg("num_layers"), py::arg("bidirectional"), py::arg("bias"),
           py::arg("proj_size"), py::arg("dtype"), py::arg("precision") = py::none(), py::arg("reverse") = false,
           py::arg("learn_state") = false, py::arg("activations") = py::tuple(), py::arg("clip") = py::none(),
           py::arg("cell_clip") = py::none(), py::arg("layer_norm_eps") = 0)
      .def("renewed", &BoundNetwork::renewed, py::arg("parameters"))
      .def("infer", &infer, py::arg("x"), py::arg("state"), py::arg("lengths"), py::arg("out"), py::arg("batch_first"),
           py::arg("mask") = py::none(), py::arg("resets") = py::none(), py::arg("repeats") = false)
      .def("step", &BoundNetwork::step, py::arg("x"), py::arg("state"))
      .def("pack_for_backward", &BoundNetwork::pack_for_backward)
      .def_property_readonly("packed_for_backward", &BoundNetwork::packed_for_backward)
      .def_property_readonly("nbytes", &BoundNetwork::bytes)
      .def("forward", &forward, py::arg("x"), py::arg("state"), py::arg("lengths"), py::arg("batch_first"),
           py::arg("dropout"), py::arg("dropout_seed"), py::arg("recompute"), py::arg("owner") = py::none(),
           py::arg("x_stays") = false, py::arg("mask") = py::none(), py::arg("resets") = py::none(),
           py::arg("repeats") = false)
      .def("backward", &backward, py::arg("tape"), py::arg("d_output"), py::arg("d_state_n"), py::arg("gradients"),
           py::arg("accumulate"), py::arg("input_gradient"), py::arg("owner") = py::none())
      .def("plan", &plan_dict, py::arg("steps"), py::arg("batch"), py::arg("threads"), py::arg("backward") = false)
      .def("stream", &make_stream, py::arg("batch_size"))
      .def_readwrite("recipe", &BoundNetwork::recipe)
      .def("__reduce__", &reduced_network);

  m.def("cells", &described_cells);
  m.def("activations", &described_activations);
  m.def("set_num_threads", &set_threads, py::arg("n"));
  m.def("get_num_threads", [] {
    apply_thread_limit();
    return num_threads();
  });
  m.def("thread_limit", &thread_limit_variable);
  m.def("thread_source", &thread_source);
  m.def("borrow_threads", &borrow_threads_at, py::arg("parallel"), py::arg("thread_num"), py::arg("num_threads"),
        py::arg("max_threads"));
  m.def("machine", &machine);
  m.def("copy_all", &copy_all, py::arg("pairs"));
  m.def("float_array", &float_array, py::arg("name").none(false), py::arg("object"));
  m.def("check_out", &check_out, py::arg("out"), py::arg("dtype"), py::arg("shape"), py::arg("inputs"));
  m.def("aligned_array", &aligned_array, py::arg("count"), py::arg("dtype"));
  m.def("fingerprint", &fingerprint, py::arg("arrays"));
  m.def("sigmoid", &gatedrnn::bindings::sigmoid, py::arg("x"));
  m.def("tanh", &gatedrnn::bindings::tanh, py::arg("x"));
  m.def("measure_multiply", &measure_multiply, py::arg("format"), py::arg("milliseconds"));
  m.def("measure_bandwidth", &measure_bandwidth, py::arg("bytes"), py::arg("milliseconds"));
}
