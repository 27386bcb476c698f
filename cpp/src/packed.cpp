#include "gatedrnn/packed.h"

#include <algorithm>

#include "gatedrnn/threads.h"

namespace gatedrnn {
namespace {

using Gates = std::vector<Index>;  // positions in torch.nn's gate order

template <class T>
Index bytes_of(const Buffer<T>& buffer) {
  return buffer.size() * static_cast<Index>(sizeof(T));
}

// One panel of a (gates * units, depth) matrix: [k][gate][unit vector][lane], zero where there is no unit.
template <class T>
void pack_panel(const T* matrix, const PackedStage<T>& to, const Gates& gates, Index depth, Index panel, T* out) {
  constexpr Index few = 64;  // of k at a time, so that a vector that is being filled stays in the first-level cache
  const Index width = to.units_per_panel(), stride = static_cast<Index>(gates.size()) * width;
  const Index first = panel * width, count = std::min(width, to.units - first);
  if (count < width) std::fill_n(out, depth * stride, T(0));
  for (Index begin = 0; begin < depth; begin += few)
    for (std::size_t g = 0; g < gates.size(); ++g)
      for (Index i = 0; i < count; ++i) {
        const T* row = matrix + (gates[g] * to.units + first + i) * depth;
        T* vector = out + static_cast<Index>(g) * width + i;
        for (Index k = begin; k < std::min(begin + few, depth); ++k) vector[k * stride] = row[k];
      }
}

template <class T>
Buffer<T> pack_panels(const T* matrix, const PackedStage<T>& to, const Gates& gates, Index depth) {
  const Index size = depth * static_cast<Index>(gates.size()) * to.units_per_panel();
  Buffer<T> packed(to.panels * size);
  share_out(to.panels, bytes_of(packed),
            [&](Index panel) { pack_panel(matrix, to, gates, depth, panel, packed.data() + panel * size); });
  return packed;
}

// [panel][vector set][lane] of values that `value(set, unit)` gives.
template <class T, class Value>
Buffer<T> pack_vectors(const PackedStage<T>& to, Index sets, Value&& value) {
  const Index width = to.units_per_panel();
  Buffer<T> packed(to.panels * sets * width);
  T* out = packed.data();
  for (Index panel = 0; panel < to.panels; ++panel)
    for (Index set = 0; set < sets; ++set)
      for (Index i = 0; i < width; ++i) {
        const Index unit = panel * width + i;
        *out++ = unit < to.units ? value(set, unit) : T(0);
      }
  return packed;
}

Gates gates_of_slots(Cell cell, Index first, Index count) {
  Gates gates;
  for (Index slot = first; slot < first + count; ++slot) gates.push_back(gate_of_slot(cell, slot));
  return gates;
}

template <class T>
PackedStage<T> empty_stage(Stage stage, int lanes, Index units) {
  PackedStage<T> packed{};
  packed.stage = stage;
  packed.layout = stage_layout(stage);
  packed.lanes = lanes;
  packed.units = units;
  packed.panels = ceil_div(units, packed.units_per_panel());
  return packed;
}

// A stage that multiplies both the input and the recurrent operand. The two products may list the gates in different orders.
template <class T>
PackedStage<T> pack_stage(Stage stage, const Spec& spec, Index input_size, const LayerParameters<T>& from, int lanes,
                          const Gates& input_gates, const Gates& recurrent_gates) {
  PackedStage<T> packed = empty_stage<T>(stage, lanes, spec.hidden_size);
  packed.input_depth = input_size;
  packed.recurrent_depth = spec.state_size();
  packed.input = pack_panels(from.weight_ih, packed, input_gates, packed.input_depth);
  packed.recurrent = pack_panels(from.weight_hh, packed, recurrent_gates, packed.recurrent_depth);
  packed.bias = pack_vectors(packed, packed.layout.slots, [&](Index slot, Index unit) {
    const Index H = spec.hidden_size;
    if (stage == Stage::gru) {  // slots n_x, r, z, n_h
      if (slot == 0) return from.bias_ih ? from.bias_ih[2 * H + unit] : T(0);
      if (slot == 3) return from.bias_hh ? from.bias_hh[2 * H + unit] : T(0);
    }
    return bias_sum(from, input_gates[slot] * H + unit);
  });
  return packed;
}

template <class T>
PackedStage<T> pack_projection(const Spec& spec, const LayerParameters<T>& from, int lanes) {
  PackedStage<T> packed = empty_stage<T>(Stage::linear, lanes, spec.proj_size);
  packed.recurrent_depth = spec.hidden_size;
  packed.recurrent = pack_panels(from.weight_hr, packed, {0}, packed.recurrent_depth);
  return packed;
}

}  // namespace

template <class T>
PackedLayer<T> pack_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, int lanes) {
  PackedLayer<T> packed;
  const Index input_size = spec.layer_input_size(layer);
  const auto add = [&](Stage stage, const Gates& input_gates, const Gates& recurrent_gates) {
    packed.stages.push_back(pack_stage(stage, spec, input_size, from, lanes, input_gates, recurrent_gates));
  };
  switch (spec.cell) {
    case Cell::lstm: add(Stage::lstm, {0, 1, 2, 3}, {0, 1, 2, 3}); break;
    case Cell::lstm_peephole:
      add(Stage::lstm_peephole, {0, 1, 2, 3}, {0, 1, 2, 3});
      packed.stages[0].peephole =
          pack_vectors(packed.stages[0], 3, [&](Index gate, Index unit) { return from.peephole[gate][unit]; });
      break;
    case Cell::gru: add(Stage::gru, gates_of_slots(spec.cell, 0, 3), gates_of_slots(spec.cell, 1, 3)); break;
    case Cell::gru_reset_before:
      add(Stage::gru_before_gates, {0, 1}, {0, 1});
      add(Stage::gru_before_candidate, {2}, {2});
      break;
    case Cell::rnn_tanh: add(Stage::rnn_tanh, {0}, {0}); break;
    case Cell::rnn_relu: add(Stage::rnn_relu, {0}, {0}); break;
  }
  if (spec.proj_size > 0) packed.stages.push_back(pack_projection(spec, from, lanes));
  return packed;
}

namespace {

// The transposed weights of these gates of a (gates * H, units) matrix. A slot's rows past H are zero.
template <class T>
PackedTransposed<T> pack_transposed(const T* matrix, Index units, Index H, const Gates& gates, Index first_slot,
                                    int lanes) {
  const Index width = kBackVectors * lanes, slot = slot_stride(H, lanes);
  PackedTransposed<T> packed;
  packed.units = units;
  packed.panels = ceil_div(units, width);
  packed.depth = (static_cast<Index>(gates.size()) - 1) * slot + H;
  packed.first_slot = first_slot;
  packed.weights = Buffer<T>(packed.panels * packed.depth * width);
  share_out(packed.panels, bytes_of(packed.weights), [&](Index panel) {
    T* const out = packed.weights.data() + panel * packed.depth * width;
    const Index first = panel * width, count = std::min(width, units - first);
    if (count < width || slot != H) std::fill_n(out, packed.depth * width, T(0));
    for (std::size_t g = 0; g < gates.size(); ++g)
      for (Index row = 0; row < H; ++row)
        std::copy_n(matrix + (gates[g] * H + row) * units + first, count,
                    out + (static_cast<Index>(g) * slot + row) * width);
  });
  return packed;
}

}  // namespace

template <class T>
PackedBackLayer<T> pack_back_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, int lanes) {
  const Index H = spec.hidden_size, P = spec.state_size(), I = spec.layer_input_size(layer);
  const auto transposed_slots = [&](const T* matrix, Index units, Index first, Index count) {
    return pack_transposed(matrix, units, H, gates_of_slots(spec.cell, first, count), first, lanes);
  };
  PackedBackLayer<T> packed;
  packed.recurrent = transposed_slots(from.weight_hh, P, first_recurrent_slot(spec.cell), recurrent_slots(spec.cell));
  packed.input = transposed_slots(from.weight_ih, I, 0, gate_count(spec.cell));
  if (spec.cell == Cell::gru_reset_before) packed.candidate = transposed_slots(from.weight_hh, P, 2, 1);
  if (spec.proj_size > 0) packed.projection = pack_transposed(from.weight_hr, H, P, {0}, 0, lanes);
  if (spec.cell == Cell::lstm_peephole) {
    const Index slot = slot_stride(H, lanes);
    packed.peephole = Buffer<T>(kPeepholes * slot);
    std::fill_n(packed.peephole.data(), packed.peephole.size(), T(0));
    for (Index p = 0; p < kPeepholes; ++p) std::copy_n(from.peephole[p], H, packed.peephole.data() + p * slot);
  }
  return packed;
}

template PackedBackLayer<float> pack_back_layer(const Spec&, Index, const LayerParameters<float>&, int);
template PackedBackLayer<double> pack_back_layer(const Spec&, Index, const LayerParameters<double>&, int);
template PackedLayer<float> pack_layer(const Spec&, Index, const LayerParameters<float>&, int);
template PackedLayer<double> pack_layer(const Spec&, Index, const LayerParameters<double>&, int);

}  // namespace gatedrnn
