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
void pack_panel(const T* matrix, const PackedStage<T>& to, const Kernels<T>& kernels, const Gates& gates, Index depth,
                Index panel, T* out) {
  const Index stride = static_cast<Index>(gates.size()) * to.units_per_panel();
  for (const Index gate : gates)
    for (int v = 0; v < to.layout.unit_vectors; ++v, out += to.lanes) {
      const Index first = std::min(panel * to.units_per_panel() + v * to.lanes, to.units);
      kernels.pack_units({matrix + (gate * to.units + first) * depth, to.units - first, depth, out, stride});
    }
}

template <class T>
void pack_panels(const T* matrix, const PackedStage<T>& to, const Kernels<T>& kernels, const Gates& gates, Index depth,
                 Buffer<T>& packed) {
  const Index size = depth * static_cast<Index>(gates.size()) * to.units_per_panel();
  packed = Buffer<T>(to.panels * size);
  share_out(to.panels, bytes_of(packed),
            [&](Index panel) { pack_panel(matrix, to, kernels, gates, depth, panel, packed.data() + panel * size); });
}

// [panel][vector set][lane] of values that `value(set, unit)` gives.
template <class T, class Value>
void pack_vectors(const PackedStage<T>& to, Index sets, Buffer<T>& packed, Value&& value) {
  const Index width = to.units_per_panel();
  packed = Buffer<T>(to.panels * sets * width);
  T* out = packed.data();
  for (Index panel = 0; panel < to.panels; ++panel)
    for (Index set = 0; set < sets; ++set)
      for (Index i = 0; i < width; ++i) {
        const Index unit = panel * width + i;
        *out++ = unit < to.units ? value(set, unit) : T(0);
      }
}

Gates gates_of_slots(Cell cell, Index first, Index count) {
  Gates gates;
  for (Index slot = first; slot < first + count; ++slot) gates.push_back(gate_of_slot(cell, slot));
  return gates;
}

template <class T>
void set_up_stage(Stage stage, int lanes, Index units, PackedStage<T>& to) {
  to.stage = stage;
  to.layout = stage_layout(stage);
  to.lanes = lanes;
  to.units = units;
  to.panels = ceil_div(units, to.units_per_panel());
}

// A stage that multiplies both the input and the recurrent operand. The two products may list the gates in different orders.
template <class T>
void pack_stage(Stage stage, const Spec& spec, Index input_size, const LayerParameters<T>& from,
                const Kernels<T>& kernels, const Gates& input_gates, const Gates& recurrent_gates, PackedStage<T>& to) {
  set_up_stage(stage, kernels.lanes, spec.hidden_size, to);
  to.input_depth = input_size;
  to.recurrent_depth = spec.state_size();
  pack_panels(from.weight_ih, to, kernels, input_gates, to.input_depth, to.input);
  pack_panels(from.weight_hh, to, kernels, recurrent_gates, to.recurrent_depth, to.recurrent);
  pack_vectors(to, to.layout.slots, to.bias, [&](Index slot, Index unit) {
    const Index H = spec.hidden_size;
    if (stage == Stage::gru) {  // slots n_x, r, z, n_h
      if (slot == 0) return from.bias_ih ? from.bias_ih[2 * H + unit] : T(0);
      if (slot == 3) return from.bias_hh ? from.bias_hh[2 * H + unit] : T(0);
    }
    return bias_sum(from, input_gates[slot] * H + unit);
  });
}

template <class T>
void pack_projection(const Spec& spec, const LayerParameters<T>& from, const Kernels<T>& kernels, PackedStage<T>& to) {
  set_up_stage(Stage::linear, kernels.lanes, spec.proj_size, to);
  to.recurrent_depth = spec.hidden_size;
  pack_panels(from.weight_hr, to, kernels, {0}, to.recurrent_depth, to.recurrent);
}

}  // namespace

template <class T>
void pack_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, const Kernels<T>& kernels,
                PackedLayer<T>& to) {
  const Index input_size = spec.layer_input_size(layer);
  to.stages.resize((spec.cell == Cell::gru_reset_before ? 2 : 1) + (spec.proj_size > 0 ? 1 : 0));
  const auto pack = [&](PackedStage<T>& packed, Stage stage, const Gates& input_gates, const Gates& recurrent_gates) {
    pack_stage(stage, spec, input_size, from, kernels, input_gates, recurrent_gates, packed);
  };
  PackedStage<T>& first = to.stages.front();
  switch (spec.cell) {
    case Cell::lstm: pack(first, Stage::lstm, {0, 1, 2, 3}, {0, 1, 2, 3}); break;
    case Cell::lstm_peephole:
      pack(first, Stage::lstm_peephole, {0, 1, 2, 3}, {0, 1, 2, 3});
      pack_vectors(first, 3, first.peephole, [&](Index gate, Index unit) { return from.peephole[gate][unit]; });
      break;
    case Cell::gru: pack(first, Stage::gru, gates_of_slots(spec.cell, 0, 3), gates_of_slots(spec.cell, 1, 3)); break;
    case Cell::gru_reset_before:
      pack(first, Stage::gru_before_gates, {0, 1}, {0, 1});
      pack(to.stages[1], Stage::gru_before_candidate, {2}, {2});
      break;
    case Cell::rnn_tanh: pack(first, Stage::rnn_tanh, {0}, {0}); break;
    case Cell::rnn_relu: pack(first, Stage::rnn_relu, {0}, {0}); break;
  }
  if (spec.proj_size > 0) pack_projection(spec, from, kernels, to.stages.back());
}

namespace {

// The transposed weights of these gates of a (gates * H, units) matrix. A slot's rows past H are zero.
template <class T>
void pack_transposed(const T* matrix, Index units, Index H, const Gates& gates, Index first_slot, int lanes,
                     PackedTransposed<T>& to) {
  const Index width = kBackVectors * lanes, slot = slot_stride(H, lanes);
  to.units = units;
  to.panels = ceil_div(units, width);
  to.depth = (static_cast<Index>(gates.size()) - 1) * slot + H;
  to.slot_units = H;
  to.first_slot = first_slot;
  to.weights = Buffer<T>(to.panels * to.depth * width);
  share_out(to.panels, bytes_of(to.weights), [&](Index panel) {
    T* const out = to.weights.data() + panel * to.depth * width;
    const Index first = panel * width, count = std::min(width, units - first);
    if (count < width || slot != H) std::fill_n(out, to.depth * width, T(0));
    for (std::size_t g = 0; g < gates.size(); ++g)
      for (Index row = 0; row < H; ++row)
        std::copy_n(matrix + (gates[g] * H + row) * units + first, count,
                    out + (static_cast<Index>(g) * slot + row) * width);
  });
}

}  // namespace

template <class T>
void pack_back_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, int lanes, PackedBackLayer<T>& to) {
  const Index H = spec.hidden_size, P = spec.state_size(), I = spec.layer_input_size(layer);
  const auto pack = [&](const T* matrix, Index units, Index first, Index count, PackedTransposed<T>& packed) {
    pack_transposed(matrix, units, H, gates_of_slots(spec.cell, first, count), first, lanes, packed);
  };
  pack(from.weight_hh, P, first_recurrent_slot(spec.cell), recurrent_slots(spec.cell), to.recurrent);
  pack(from.weight_ih, I, 0, gate_count(spec.cell), to.input);
  if (spec.cell == Cell::gru_reset_before) pack(from.weight_hh, P, 2, 1, to.candidate);
  if (spec.proj_size > 0) pack_transposed(from.weight_hr, H, P, {0}, 0, lanes, to.projection);
  if (spec.cell == Cell::lstm_peephole) {
    const Index slot = slot_stride(H, lanes);
    to.peephole = Buffer<T>(kPeepholes * slot);
    std::fill_n(to.peephole.data(), to.peephole.size(), T(0));
    for (Index p = 0; p < kPeepholes; ++p) std::copy_n(from.peephole[p], H, to.peephole.data() + p * slot);
  }
}

template void pack_back_layer(const Spec&, Index, const LayerParameters<float>&, int, PackedBackLayer<float>&);
template void pack_layer(const Spec&, Index, const LayerParameters<float>&, const Kernels<float>&, PackedLayer<float>&);
template void pack_back_layer(const Spec&, Index, const LayerParameters<double>&, int, PackedBackLayer<double>&);
template void pack_layer(const Spec&, Index, const LayerParameters<double>&, const Kernels<double>&,
                         PackedLayer<double>&);

}  // namespace gatedrnn
