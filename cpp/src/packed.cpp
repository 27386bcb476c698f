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
    for (int v = 0; v < to.layout.unit_vectors(); ++v, out += to.lanes) {
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

Gates gates_of_slots(const CellDescription& cell, Index first, Index count) {
  return Gates(cell.gate_of_slot + first, cell.gate_of_slot + first + count);
}

template <class T>
void set_up_stage(int stage, const StageDescription& layout, int lanes, Index units, PackedStage<T>& to) {
  to.stage = stage;
  to.layout = layout;
  to.lanes = lanes;
  to.units = units;
  to.panels = ceil_div(units, to.units_per_panel());
}

template <class T>
void pack_stage(int stage, const Spec& spec, Index input_size, const LayerParameters<T>& from,
                const Kernels<T>& kernels, PackedStage<T>& to) {
  const CellDescription& cell = spec.description();
  const StageDescription& layout = cell.stages[stage];
  set_up_stage(stage, layout, kernels.lanes, spec.hidden_size, to);
  to.input_depth = input_size;
  to.recurrent_depth = spec.state_size();
  const auto gates = [&](int first) { return gates_of_slots(cell, layout.first_slot + first, layout.gates); };
  pack_panels(from.weight_ih, to, kernels, gates(0), to.input_depth, to.input);
  pack_panels(from.weight_hh, to, kernels, gates(layout.first_operand_slot()), to.recurrent_depth, to.recurrent);
  pack_vectors(to, layout.slots, to.bias, [&](Index slot, Index unit) {
    return slot_bias(from, cell, layout.first_slot + slot, spec.hidden_size, unit);
  });
  if (cell.peephole_count > 0)
    pack_vectors(to, cell.peephole_count, to.peephole, [&](Index i, Index unit) { return from.peephole[i][unit]; });
}

template <class T>
void pack_projection(const Spec& spec, const LayerParameters<T>& from, const Kernels<T>& kernels, PackedStage<T>& to) {
  set_up_stage(kLinear, kLinearStage, kernels.lanes, spec.proj_size, to);
  to.recurrent_depth = spec.hidden_size;
  pack_panels(from.weight_hr, to, kernels, {0}, to.recurrent_depth, to.recurrent);
}

// In the order in which a step with rows in lanes reads them.
template <class T>
void pack_in_lanes(const Spec& spec, Index I, const LayerParameters<T>& from, Buffer<T>& packed) {
  const CellDescription& cell = spec.description();
  const Index H = spec.hidden_size;
  packed = Buffer<T>(H * (cell.slots + cell.gates * (I + H) + cell.stage_count * cell.peephole_count));
  T* to = packed.data();
  for (int s = 0; s < cell.stage_count; ++s) {
    const StageDescription& stage = cell.stages[s];
    for (Index unit = 0, count; unit < H; unit += count) {
      count = lane_tile(H - unit, stage.gates);
      const auto product = [&](const T* matrix, Index depth, int first) {
        for (Index k = 0; k < depth; ++k)
          for (Index u = unit; u < unit + count; ++u)
            for (const Index gate : gates_of_slots(cell, stage.first_slot + first, stage.gates))
              *to++ = matrix[(gate * H + u) * depth + k];
      };
      for (Index u = unit; u < unit + count; ++u)
        for (Index slot = 0; slot < stage.slots; ++slot) *to++ = slot_bias(from, cell, stage.first_slot + slot, H, u);
      product(from.weight_ih, I, 0);
      product(from.weight_hh, H, stage.first_operand_slot());
      for (Index u = unit; u < unit + count; ++u)
        for (int i = 0; i < cell.peephole_count; ++i) *to++ = from.peephole[i][u];
    }
  }
}

}  // namespace

template <class T>
void pack_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, const Kernels<T>& kernels,
                PackedLayer<T>& to) {
  const int stages = spec.description().stage_count;
  to.stages.resize(stages + (spec.proj_size > 0 ? 1 : 0));
  for (int stage = 0; stage < stages; ++stage)
    pack_stage(stage, spec, spec.layer_input_size(layer), from, kernels, to.stages[stage]);
  if (spec.proj_size > 0) pack_projection(spec, from, kernels, to.stages.back());
  if (has_rows_in_lanes(spec, kernels.lanes)) pack_in_lanes(spec, spec.layer_input_size(layer), from, to.in_lanes);
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

// The transposed weights in the order in which a step backward with rows in lanes reads them.
template <class T>
void pack_back_in_lanes(const Spec& spec, Index I, const LayerParameters<T>& from, PackedBackLayer<T>& to) {
  const CellDescription& cell = spec.description();
  const Index H = spec.hidden_size;
  to.in_lanes = Buffer<T>(cell.gates * H * (H + I));
  T* out = to.in_lanes.data();
  const auto product = [&](const T* matrix, Index outputs, Index first_slot, Index slots) {
    for (Index output = 0, count; output < outputs; output += count) {
      count = lane_tile(outputs - output, 1);
      for (const Index gate : gates_of_slots(cell, first_slot, slots))
        for (Index row = gate * H; row < (gate + 1) * H; ++row, out += count)
          std::copy_n(matrix + row * outputs + output, count, out);
    }
  };
  product(from.weight_hh, H, cell.first_recurrent_slot(), cell.recurrent_slots());
  if (cell.two_stages()) product(from.weight_hh, H, cell.stages[1].first_slot, cell.stages[1].gates);
  product(from.weight_ih, I, 0, cell.gates);
  to.peepholes_in_lanes = Buffer<T>(cell.peephole_count * H);
  for (int i = 0; i < cell.peephole_count; ++i) std::copy_n(from.peephole[i], H, to.peepholes_in_lanes.data() + i * H);
}

}  // namespace

template <class T>
void pack_back_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, int lanes, PackedBackLayer<T>& to) {
  const CellDescription& cell = spec.description();
  const Index H = spec.hidden_size, P = spec.state_size(), I = spec.layer_input_size(layer);
  const auto pack = [&](const T* matrix, Index units, Index first, Index count, PackedTransposed<T>& packed) {
    pack_transposed(matrix, units, H, gates_of_slots(cell, first, count), first, lanes, packed);
  };
  pack(from.weight_hh, P, cell.first_recurrent_slot(), cell.recurrent_slots(), to.recurrent);
  pack(from.weight_ih, I, 0, cell.gates, to.input);
  if (cell.two_stages()) pack(from.weight_hh, P, cell.stages[1].first_slot, cell.stages[1].gates, to.second);
  if (spec.proj_size > 0) pack_transposed(from.weight_hr, H, P, {0}, 0, lanes, to.projection);
  const Index slot = slot_stride(H, lanes);
  to.peephole = Buffer<T>(cell.peephole_count * slot);
  std::fill_n(to.peephole.data(), to.peephole.size(), T(0));
  for (Index p = 0; p < cell.peephole_count; ++p) std::copy_n(from.peephole[p], H, to.peephole.data() + p * slot);
  if (has_rows_in_lanes(spec, lanes)) pack_back_in_lanes(spec, I, from, to);
}

template void pack_back_layer(const Spec&, Index, const LayerParameters<float>&, int, PackedBackLayer<float>&);
template void pack_layer(const Spec&, Index, const LayerParameters<float>&, const Kernels<float>&, PackedLayer<float>&);
template void pack_back_layer(const Spec&, Index, const LayerParameters<double>&, int, PackedBackLayer<double>&);
template void pack_layer(const Spec&, Index, const LayerParameters<double>&, const Kernels<double>&,
                         PackedLayer<double>&);

}  // namespace gatedrnn
