#include "gatedrnn/packed.h"

#include <algorithm>

#include "gatedrnn/threads.h"

namespace gatedrnn {
namespace {

using Gates = std::vector<Index>;  // positions in torch.nn's gate order

// Packs `count` units of one gate, from the first that the panel's vectors from `vector` on cover. `from` is the gate's first unit;
// strides go from unit to unit and from term to term.
template <class T>
void pack_gate(const Kernels<T>& kernels, const T* from, Index unit_stride, Index term_stride, Index units, Index depth,
               Index panel, Index vector, Index vectors, Index first_term, PackedMatrix& to) {
  const Index lanes = to.layout.lanes;
  for (Index v = 0; v < vectors; ++v) {
    const Index first = std::min((panel * vectors + v) * lanes, units);
    kernels.pack_weights({from + first * unit_stride, unit_stride, term_stride, std::min(lanes, units - first), depth,
                          to.at(panel, vector + v, first_term), to.vectors, to.scales(panel, vector + v)});
  }
}

// A (gates * units, depth) matrix, zero where there is no unit.
template <class T>
PackedMatrix pack_panels(const T* matrix, const PackedStage<T>& stage, const Kernels<T>& kernels, const Gates& gates,
                         Index depth) {
  const Index unit_vectors = stage.layout.unit_vectors();
  PackedMatrix to(kernels.layout, static_cast<Index>(gates.size()) * unit_vectors, stage.panels, depth);
  share_out(to.panels, to.bytes.size(), [&](Index panel) {
    for (std::size_t g = 0; g < gates.size(); ++g)
      pack_gate(kernels, matrix + gates[g] * stage.units * depth, depth, 1, stage.units, depth, panel,
                static_cast<Index>(g) * unit_vectors, unit_vectors, 0, to);
  });
  return to;
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
                const Kernels<T>& kernels, const Kernels<T>& input_kernels, PackedStage<T>& to) {
  const CellDescription& cell = spec.description();
  const StageDescription& layout = cell.stages[stage];
  set_up_stage(stage, layout, kernels.lanes(), spec.hidden_size, to);
  const auto gates = [&](int first) { return gates_of_slots(cell, layout.first_slot + first, layout.gates); };
  to.input = pack_panels(from.weight_ih, to, input_kernels, gates(0), input_size);
  to.recurrent = pack_panels(from.weight_hh, to, kernels, gates(layout.first_operand_slot()), spec.state_size());
  pack_vectors(to, layout.slots, to.bias, [&](Index slot, Index unit) {
    return slot_bias(from, cell, layout.first_slot + slot, spec.hidden_size, unit);
  });
  if (cell.peephole_count > 0)
    pack_vectors(to, cell.peephole_count, to.peephole, [&](Index i, Index unit) { return from.peephole[i][unit]; });
  if (cell.is_normalized())
    pack_vectors(to, norm_vectors(cell), to.norm,
                 [&](Index i, Index unit) { return norm_value(from, cell, i, spec.hidden_size, unit); });
}

template <class T>
void pack_projection(const Spec& spec, const LayerParameters<T>& from, const Kernels<T>& kernels, PackedStage<T>& to) {
  set_up_stage(kLinear, kLinearStage, kernels.lanes(), spec.proj_size, to);
  to.recurrent = pack_panels(from.weight_hr, to, kernels, {0}, spec.hidden_size);
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
                const Kernels<T>& input_kernels, PackedLayer<T>& to) {
  const int stages = spec.description().stage_count;
  to.stages.resize(stages + (spec.proj_size > 0 ? 1 : 0));
  for (int stage = 0; stage < stages; ++stage)
    pack_stage(stage, spec, spec.layer_input_size(layer), from, kernels, input_kernels, to.stages[stage]);
  if (spec.proj_size > 0) pack_projection(spec, from, kernels, to.stages.back());
  if (has_rows_in_lanes(spec, kernels.lanes())) pack_in_lanes(spec, spec.layer_input_size(layer), from, to.in_lanes);
}

namespace {

// The transposed weights of these gates of a (gates * H, units) matrix. A slot's rows past H are zero.
template <class T>
PackedTransposed pack_transposed(const T* matrix, Index units, Index H, const Gates& gates, Index first_slot,
                                 const Kernels<T>& kernels) {
  const Index slot = kernels.layout.slot_stride(H), slots = static_cast<Index>(gates.size());
  PackedTransposed to;
  to.units = units;
  to.slot_units = H;
  to.first_slot = first_slot;
  to.weights = PackedMatrix(kernels.layout, kBackVectors, ceil_div(units, kBackVectors * kernels.lanes()),
                            (slots - 1) * slot + H);
  share_out(to.weights.panels, to.weights.bytes.size(), [&](Index panel) {
    if (slot != H) std::fill_n(to.weights.at(panel, 0, 0), to.weights.panel_bytes(), static_cast<unsigned char>(0));
    for (Index g = 0; g < slots; ++g)
      pack_gate(kernels, matrix + gates[g] * H * units, 1, units, units, H, panel, 0, kBackVectors, g * slot,
                to.weights);
  });
  return to;
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
void pack_back_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, const Kernels<T>& kernels,
                     PackedBackLayer<T>& to) {
  const CellDescription& cell = spec.description();
  const Index H = spec.hidden_size, P = spec.state_size(), I = spec.layer_input_size(layer);
  const auto pack = [&](const T* matrix, Index units, Index first, Index count) {
    return pack_transposed(matrix, units, H, gates_of_slots(cell, first, count), first, kernels);
  };
  to.recurrent = pack(from.weight_hh, P, cell.first_recurrent_slot(), cell.recurrent_slots());
  to.input = pack(from.weight_ih, I, 0, cell.gates);
  if (cell.two_stages()) to.second = pack(from.weight_hh, P, cell.stages[1].first_slot, cell.stages[1].gates);
  if (spec.proj_size > 0) to.projection = pack_transposed(from.weight_hr, H, P, {0}, 0, kernels);
  const Index slot = slot_stride(H, kernels.lanes());
  const auto pack_rows = [&](Index count, Buffer<T>& packed, auto&& value) {
    packed = Buffer<T>(count * slot);
    for (Index i = 0; i < count * slot; ++i) packed.data()[i] = i % slot < H ? value(i / slot, i % slot) : T(0);
  };
  pack_rows(cell.peephole_count, to.peephole, [&](Index i, Index unit) { return from.peephole[i][unit]; });
  pack_rows(norm_vectors(cell), to.norm, [&](Index i, Index unit) { return norm_value(from, cell, i, H, unit); });
  if (has_rows_in_lanes(spec, kernels.lanes())) pack_back_in_lanes(spec, I, from, to);
}

template void pack_back_layer(const Spec&, Index, const LayerParameters<float>&, const Kernels<float>&,
                              PackedBackLayer<float>&);
template void pack_layer(const Spec&, Index, const LayerParameters<float>&, const Kernels<float>&,
                         const Kernels<float>&, PackedLayer<float>&);
template void pack_back_layer(const Spec&, Index, const LayerParameters<double>&, const Kernels<double>&,
                              PackedBackLayer<double>&);
template void pack_layer(const Spec&, Index, const LayerParameters<double>&, const Kernels<double>&,
                         const Kernels<double>&, PackedLayer<double>&);

}  // namespace gatedrnn
