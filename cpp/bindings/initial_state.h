// The state that rows begin with where none is given: zeros, or learnt parameters, h_0 and, where the cell has c, c_0.
#pragma once

#include <algorithm>
#include <vector>

#include "call.h"
#include "named_parameters.h"

namespace gatedrnn::bindings {

template <class T>
class InitialState {
 public:
  // With copies of the parameters, or zeros.
  InitialState(const Spec& spec, bool learnt, const py::dict& parameters) : spec_(spec) {
    if (!learnt) return;
    visit_initial_state(spec, [&](const char* name, const Shape& shape) {
      const auto array = py::cast<Array<T>>(py::object(parameters[name]));
      if (!has_shape(array, shape)) refuse_value(name, text(shape), shape_text(array));
      (name[0] == 'h' ? h_ : c_).assign(array.data(), array.data() + array.size());
    });
  }

  bool learnt() const { return !h_.empty(); }
  // [track][width], or null for zeros.
  const T* h() const { return h_.empty() ? nullptr : h_.data(); }
  const T* c() const { return c_.empty() ? nullptr : c_.data(); }

  Index h_size() const { return static_cast<Index>(h_.size()); }
  Index c_size() const { return static_cast<Index>(c_.size()); }

  // Puts the learnt parts where a call has none.
  LearntParts complete(Call<T>& call) const {
    if (!learnt()) return {};
    const LearntParts used{!call.h_0, spec_.description().has_c && !call.c_0};
    if (used.h) call.sequence.h_0 = values<T>(call.h_0 = rows(call, spec_.state_size(), h_));
    if (used.c) call.sequence.c_0 = values<T>(call.c_0 = rows(call, spec_.hidden_size, c_));
    return used;
  }

  // One track's h, or c, of a row.
  void begin_h(Index track, T* to) const { begin(h_, track, spec_.state_size(), to); }
  void begin_c(Index track, T* to) const { begin(c_, track, spec_.hidden_size, to); }

 private:
  static void begin(const std::vector<T>& learnt, Index track, Index width, T* to) {
    if (learnt.empty())
      std::fill_n(to, width, T(0));
    else
      std::copy_n(learnt.data() + track * width, width, to);
  }

  // The same for all rows: [track][row][width].
  py::object rows(const Call<T>& call, Index width, const std::vector<T>& learnt) const {
    const Index batch = call.batch(), tracks = spec_.num_layers * spec_.directions;
    py::array array = new_array<T>(state_shape(spec_, batch, call.layout.unbatched, width));
    T* to = values<T>(array);
    for (Index track = 0; track < tracks; ++track)
      for (Index row = 0; row < batch; ++row, to += width) begin(learnt, track, width, to);
    return std::move(array);
  }

  Spec spec_;
  std::vector<T> h_, c_;  // [track][width]; empty: zeros
};

// What reached the learnt parts other than at the beginning of rows; empty where nothing is learnt.
template <class T>
struct InitialGradients {
  explicit InitialGradients(const InitialState<T>& initial) : h(initial.h_size()), c(initial.c_size()) {}

  std::vector<T> h, c;  // [track][width]
};

// The gradient of a learnt part: the sum over the rows, one after the other, of [track][row][width], where they did not begin with
// another state, and of `others`.
template <class T>
void add_up_rows(const T* of_rows, bool learnt, Index batch, const Shape& shape, const std::vector<T>& others,
                 bool accumulate, T* to) {
  const Index tracks = shape.begin()[0], width = shape.begin()[1];
  for (Index track = 0; track < tracks; ++track, to += width) {
    std::vector<T> sums(width);
    for (Index row = 0; learnt && row < batch; ++row, of_rows += width)
      for (Index k = 0; k < width; ++k) sums[k] += of_rows[k];
    for (Index k = 0; k < width; ++k) {
      sums[k] += others[track * width + k];
      to[k] = accumulate ? to[k] + sums[k] : sums[k];
    }
  }
}

}  // namespace gatedrnn::bindings
