// The products that merge the (step, row) pairs of a block: the gradients of the inputs, and those of the weights, whose sums go
// on from block to block. Threads share the sums out, each of which is one chain in the order of the block's pairs.
#pragma once

#include <array>

#include "backward_places.h"

namespace gatedrnn {

template <class T>
class BackwardMerge : protected BackwardPlaces<T> {
 protected:
  using Places = BackwardPlaces<T>;
  using Places::batch_, Places::call_, Places::cell_, Places::network_, Places::order_, Places::plan_, Places::spec_,
      Places::tape_;
  using Places::c_after, Places::c_before, Places::d_h_stride, Places::d_input_of, Places::d_a_stride,
      Places::for_each_pair, Places::h_before, Places::input_of, Places::lanes, Places::list, Places::list_of_places,
      Places::panel_count, Places::slot, Places::time_of;
  using Places::Places;
  using typename Places::Block;
  using typename Places::CellStates;
  using typename Places::Strided;
  using typename Places::Track;

  // One of `count` parts of the sums of a track.
  struct MergePart : Track {
    Member& member;
    int index, count;
  };

  void carve(Arena& arena) {
    Places::carve(arena);
    const Index threads = plan_.threads();
    packed_x_ = arena.take<T>(threads * packed_x_size());
    packed_d_ = arena.take<T>(threads * packed_d_size());
    column_sums_ = arena.take<T>(column_sum_count() * slot());
    input_products_ = arena.take<T>(threads * input_products_size());
  }

  void merge(const MergePart& part, const Block& block, const Index* offsets) const {
    list_operands(part, block);
    add_to_gradients(part, block, offsets);
    if (d_input_of(part.layer).data) input_gradients(part, block);
  }

  // The sums of columns to the biases and peepholes.
  void deliver_column_sums(const MergePart& part) const {
    const LayerGradients<T>& to = call_.gradients[this->track(part)];
    const Index H = spec_.hidden_size, slots = cell_.slots;
    const auto [begin, end] = part_of(part, column_sum_count());
    for (Index c = begin; c < end; ++c) {
      const auto deliver = [&](T* gradient) {
        if (!gradient) return;
        const T* sums = column_sums_ + c * slot();
        for (Index i = 0; i < H; ++i) gradient[i] = call_.accumulate ? gradient[i] + sums[i] : sums[i];
      };
      if (c >= slots) {
        deliver(to.peephole[c - slots]);
        continue;
      }
      const Index gate = cell_.gate_of_slot[c];
      if (to.bias_ih && c < cell_.gates) deliver(to.bias_ih + gate * H);
      if (to.bias_hh && c >= cell_.first_recurrent_slot()) deliver(to.bias_hh + gate * H);
    }
  }

  // Where no step ran there is nothing to add.
  void clear_gradients(const MergePart& part) const {
    if (!call_.accumulate)
      for (const WeightSum& sum : weight_sums(part)) {
        const auto [begin, end] = part_of(part, sum.columns * sum.depth);
        for (Index slot = 0; slot < sum.slots; ++slot)
          std::fill(gradient_of(sum, slot) + begin, gradient_of(sum, slot) + end, T(0));
      }
    const auto [begin, end] = part_of(part, column_sum_count());
    std::fill(column_sums_ + begin * slot(), column_sums_ + end * slot(), T(0));
  }

 private:
  // The products of weights' gradients take a slice of the pairs at a time. Rows of the left side that are less than a page
  // apart are read where they are, in slices whose parts of the right side fit into the first-level cache. Rows further apart
  // are packed, a chunk of groups of columns at a time, in long slices: each is a pass over sums that are large there too.
  static constexpr Index kPage = 4096;
  static constexpr Index kNearSlice = 128, kSlice = 512;
  static constexpr Index kChunk = 8;
  static constexpr Index kInputRows = 192;  // pairs whose inputs' gradients are computed together

  // One matrix of weights: its gradient is the sum over pairs of (a slot of the left side) x (a row of the right side).
  struct WeightSum {
    bool left_is_d_h;
    Index first_slot, slots, columns, depth;
    const T* const* right;
    T* gradient;  // [gate][column][depth]
  };

  Index widest_input() const { return std::max(spec_.input_size, spec_.output_size()); }
  Index packed_x_size() const {
    return kSlice * round_up(std::max({widest_input(), spec_.hidden_size, spec_.state_size()}), lanes());
  }
  static constexpr Index packed_d_size() { return kSlice * kChunk * kOuterColumns; }
  Index input_products_stride() const { return odd_lines<T>(kInputRows * kBackVectors * lanes()); }
  Index input_products_size() const { return panel_count(widest_input()) * input_products_stride(); }
  // Of every slot, and of the peepholes.
  Index column_sum_count() const { return cell_.slots + cell_.peephole_count; }

  // A part of `count` things.
  std::pair<Index, Index> part_of(const MergePart& part, Index count) const {
    return {count * part.index / part.count, count * (part.index + 1) / part.count};
  }

  // This track's matrices. The lists of rows of their right sides are this thread's.
  std::array<WeightSum, 4> weight_sums(const MergePart& part) const {
    const Index H = spec_.hidden_size, P = spec_.state_size(), I = spec_.layer_input_size(part.layer);
    const LayerGradients<T>& to = call_.gradients[this->track(part)];
    const int thread = part.member.thread();
    const T *const *x = list(thread, 0), *const *h = list(thread, 1), *const *operand = list(thread, 2);
    const StageDescription& second = cell_.stages[1];  // no slots where there is none
    return {{
        {false, 0, cell_.gates, H, I, x, to.weight_ih},
        {false, cell_.first_recurrent_slot(), cell_.recurrent_slots(), H, P, h, to.weight_hh},
        {false, second.first_slot, second.gates, H, P, operand, to.weight_hh},
        {true, 0, spec_.proj_size > 0 ? 1 : 0, P, H, operand, to.weight_hr},
    }};
  }

  // Where the sums of a slot go.
  T* gradient_of(const WeightSum& sum, Index slot) const {
    return sum.gradient + cell_.gate_of_slot[sum.first_slot + slot] * sum.columns * sum.depth;
  }

  // The rows of the right sides, for each pair of the block.
  void list_operands(const MergePart& part, const Block& block) const {
    const int thread = part.member.thread();
    const T **x = list(thread, 0), **h = list(thread, 1), **operand = list(thread, 2);
    const Rows<const T> in = input_of(part.layer);
    for_each_pair(block, [&](Index pair, Index step, Index rank) {
      x[pair] = in.at(time_of(part, step, rank), rank);
      h[pair] = h_before(part, step, rank);
      operand[pair] = block.operand_of_weights + pair * slot();
    });
  }

  void add_to_gradients(const MergePart& part, const Block& block, const Index* offsets) const {
    for (const WeightSum& sum : weight_sums(part)) add_products(part, block, sum);
    const auto [begin, end] = part_of(part, column_sum_count());
    for (Index c = begin; c < end; ++c) {
      T* sums = column_sums_ + c * slot();
      if (block.first) std::fill_n(sums, slot(), T(0));
      const Index slots = cell_.slots;
      if (c < slots)
        network_.kernels().sum_columns(
            {block.pairs, spec_.hidden_size, block.d_a + c * slot(), nullptr, d_a_stride(), 0, 0, sums});
      else
        add_peephole(part, block, offsets, c - slots, sums);
    }
  }

  // For one matrix the products of all pairs, a slice of them at a time, for this thread's columns of the left side.
  void add_products(const MergePart& part, const Block& block, const WeightSum& sum) const {
    const auto [begin, end] = groups_of(part, sum);
    if (begin == end) return;
    const T* data = sum.left_is_d_h ? block.d_h : block.d_a + sum.first_slot * slot();
    const Index stride = sum.left_is_d_h ? d_h_stride() : d_a_stride();
    const Index slice = share_pages(stride) ? kNearSlice : kSlice;
    T* packed_x = packed_x_ + part.member.thread() * packed_x_size();
    for (Index first = 0; first < block.pairs; first += slice) {
      OuterArgs<T> args{};
      args.count = std::min(slice, block.pairs - first);
      args.sums_stride = sum.depth;
      args.from_zero = block.first && first == 0 && !call_.accumulate;
      // A part of the next slice was written by other threads and is in their caches.
      if (share_pages(stride) && plan_.threads() > 1)
        args.d_ahead = std::min(args.count, block.pairs - first - args.count) * stride;
      for_each_part(sum, [&](Index at, Index width, int vectors) {
        network_.kernels().pack_rows({sum.right + first, args.count, at, width, vectors, packed_x + at * args.count});
      });
      add_slice(part, sum, {data + first * stride, stride}, packed_x, args);
      this->look_up(part.member,
                    static_cast<double>(args.count) * static_cast<double>((end - begin) * kOuterColumns * sum.depth));
    }
  }

  static bool share_pages(Index stride) { return stride * static_cast<Index>(sizeof(T)) < kPage; }

  // A slot's columns are dealt out in groups.
  std::pair<Index, Index> groups_of(const MergePart& part, const WeightSum& sum) const {
    return part_of(part, sum.slots * ceil_div(sum.columns, kOuterColumns));
  }

  void add_slice(const MergePart& part, const WeightSum& sum, const Strided& left, const T* packed_x,
                 OuterArgs<T> args) const {
    const Index groups = ceil_div(sum.columns, kOuterColumns), most = share_pages(left.stride) ? groups : kChunk;
    const Index ahead = args.d_ahead;
    const auto [begin, end] = groups_of(part, sum);
    for (Index group = begin; group < end;) {
      const Index s = group / groups, column = group % groups * kOuterColumns;
      const Index chunk = std::min({most, groups - group % groups, end - group});
      args.columns = std::min(chunk * kOuterColumns, sum.columns - column);
      set_left(part, {left.data + s * slot() + column, left.stride}, chunk, args);
      for_each_part(sum, [&](Index at, Index width, int vectors) {
        args.width = width;
        args.d_ahead = at == 0 ? ahead : 0;
        args.x = packed_x + at * args.count;
        args.vectors = vectors;
        args.sums = gradient_of(sum, s) + column * sum.depth + at;
        network_.kernels().outer(args);
      });
      group += chunk;
    }
  }

  // So many groups of the left side, where they are or packed.
  void set_left(const MergePart& part, const Strided& left, Index groups, OuterArgs<T>& args) const {
    if (share_pages(left.stride)) {
      args.d = left.data;
      args.d_group_stride = kOuterColumns;
      args.d_stride = left.stride;
      return;
    }
    T* packed = packed_d_ + part.member.thread() * packed_d_size();
    network_.kernels().pack_columns({left.data, left.stride, args.count, groups, packed});
    args.d = packed;
    args.d_group_stride = args.count * kOuterColumns;
    args.d_stride = kOuterColumns;
  }

  // The right side's values in parts that differ by at most a vector: `part(first value, values, vectors)`.
  template <class Part>
  void for_each_part(const WeightSum& sum, Part&& part) const {
    const Index vectors = ceil_div(sum.depth, lanes()), parts = ceil_div(vectors, kOuterVectors);
    for (Index p = 0; p < parts; ++p) {
      const Index first = vectors * p / parts, last = vectors * (p + 1) / parts;
      part(first * lanes(), std::min(last * lanes(), sum.depth) - first * lanes(), static_cast<int>(last - first));
    }
  }

  void add_peephole(const MergePart& part, const Block& block, const Index* offsets, Index peephole, T* sums) const {
    for (Index step = block.end - 1; step >= block.begin; --step) {
      const Index* offset = offsets + (block.end - 1 - step);
      const PeepholeDescription& from = cell_.peepholes[peephole];
      const CellStates c = from.sees_next ? c_after(part, block, step) : c_before(part, block, step);
      network_.kernels().sum_columns({offset[1] - offset[0], spec_.hidden_size,
                                      block.d_a + offset[0] * d_a_stride() + from.slot * slot(), c.data, d_a_stride(),
                                      c.stride, c.slots, sums});
    }
  }

  // A part of the block's pairs.
  void input_gradients(const MergePart& part, const Block& block) const {
    const PackedTransposed<T>& product = network_.back_layer(part.layer, part.direction).input;
    const Rows<T> to = d_input_of(part.layer);
    const auto [begin, end] = part_of(part, block.pairs);
    T** out = list_of_places(part.member.thread(), 2);
    for_each_pair(block, [&, begin = begin, end = end](Index pair, Index step, Index rank) {
      if (pair >= begin && pair < end) out[pair - begin] = to.at(time_of(part, step, rank), rank);
    });
    BackStepArgs<T> args{};
    args.core = &network_.core();
    args.depth = product.depth;
    args.units = product.units;
    args.last_panel = product.panels;
    args.weights = product.weights.data();
    args.operand_stride = d_a_stride();
    args.products = input_products_ + part.member.thread() * input_products_size();
    args.products_panel_stride = input_products_stride();
    args.add = part.direction > 0;
    for (Index first = begin; first < end; first += kInputRows, args.panels_reversed = !args.panels_reversed) {
      args.rows = std::min(kInputRows, end - first);
      args.operand = block.d_a + first * d_a_stride() + product.first_slot * slot();
      args.out = out + (first - begin);
      network_.kernels().back_step(spec_.cell, kLinear, args);
    }
  }

  T* packed_x_ = nullptr;     // [thread][part][pair of a slice][vectors of the part][lanes]
  T* packed_d_ = nullptr;     // [thread][group of a chunk][pair of a slice][kOuterColumns]
  T* column_sums_ = nullptr;  // [slot or peephole][slot stride]
  T* input_products_ = nullptr;
};

}  // namespace gatedrnn
