// The products over the (step, row) pairs of a block: the gradients of the inputs, and those of the weights, whose sums go
// on from block to block. Threads share the sums out, each of which takes up one block of pairs after the other.
#pragma once

#include <array>

#include "backward_places.h"
#include "block_ring.h"
#include "rounded_operands.h"
#include "rows.h"

namespace gatedrnn {

template <class T>
class WeightGradients {
 public:
  using Block = typename BlockRing<T>::Block;

  static constexpr Index kInputRows = 192;  // pairs whose inputs' gradients are computed together

  WeightGradients(const Call<T>& call, const BackwardPlaces<T>& places, const BlockRing<T>& ring,
                  const RowLists<T>& lists, const RoundedOperands<T>& rounded)
      : call_(call), places_(places), ring_(ring), lists_(lists), rounded_(rounded) {}

  // One of `count` parts of the sums of a track.
  struct Part {
    Track track;
    Member& member;
    int index, count;

    std::pair<Index, Index> of(Index things) const { return part_of(things, index, count); }
  };

  void carve(Arena& arena) {
    const Index threads = call_.plan.threads();
    packed_x_ = arena.take<unsigned char>(threads * packed_x_bytes());
    packed_d_ = arena.take<unsigned char>(threads * packed_d_bytes());
    column_sums_ = arena.take<T>(column_sum_count() * ring_.slot());
    block_sums_ = arena.take<T>(threads * ring_.slot());
    group_sums_ = arena.take<T>(group_sums_size());
    input_products_ = arena.take<T>(threads * input_products_size());
  }

  void add(const Part& part, const Block& block) const {
    list_operands(part, block);
    for (const WeightSum& sum : weight_sums(part)) add_products(part, block, sum);
    const auto [begin, end] = part.of(column_sum_count());
    for (Index c = begin; c < end; ++c)
      for_each_slice(block, 1, [&, c](const Slice& slice) { add_columns(part, block, c, slice); });
    if (places_.d_input_of(part.track.layer).data) input_gradients(part, block);
  }

  // Where no step ran.
  void clear(const Part& part) const {
    for (const WeightSum& sum : weight_sums(part)) {
      const auto [begin, end] = part.of(sum.columns * sum.depth);
      for (Index slot = 0; slot < sum.slots; ++slot)
        std::fill_n(sum.gradient + row_of(sum, slot) * sum.depth + begin, end - begin, T(0));
    }
    const auto [begin, end] = part.of(column_sum_count());
    for (Index c = begin; c < end; ++c)
      for_each_gradient_of(part.track, c, [&](T* gradient) { std::fill_n(gradient, call_.spec.hidden_size, T(0)); });
  }

 private:
  // The products of weights' gradients take a slice of the pairs at a time. Rows of the left side that are less than a page
  // apart are read where they are, in slices whose parts of the right side fit into the first-level cache. Rows further apart,
  // and those to be rounded, are packed, a chunk of columns at a time, in long slices: each is a pass over sums that are large
  // there too.
  static constexpr Index kPage = 4096;
  static constexpr Index kNearSlice = 128, kSlice = 512;
  static constexpr Index kChunk = 64;

  // Some of a block's pairs, which are whole blocks of pairs of one group.
  struct Slice {
    Pairs pairs;
    bool begins_group, ends_group;
    bool of_first_group;
  };

  // One matrix of weights: its gradient is the sum over pairs of (a slot of the left side) x (a row of the right side).
  struct WeightSum {
    bool left_is_d_h;
    Index first_slot, slots, columns, depth;
    const T* const* right;
    T* gradient;  // [gate][column][depth]
    T* sums;  // of a group of blocks, [gate][column][sums_width(depth)]; or `gradient`, where they go there as they are
  };

  const PanelLayout& layout() const { return call_.kernels().layout; }
  Index sums_width(Index depth) const { return layout().sums_width(depth, kBackVectors); }
  Index packed_x_bytes() const {
    const Index widest = std::max({call_.widest_input(), call_.spec.hidden_size, call_.spec.state_size()});
    return round_up(layout().right_bytes(kSlice, PairBlocks::most(kSlice), widest, kBackVectors), kAlignment);
  }
  Index packed_d_bytes() const {
    return round_up(layout().left_bytes(kSlice, PairBlocks::most(kSlice), kChunk), kAlignment);
  }
  Index input_products_stride() const { return odd_lines<T>(kInputRows * kBackVectors * call_.lanes()); }
  Index input_products_size() const {
    return ceil_div(call_.widest_input(), kBackVectors * call_.lanes()) * input_products_stride();
  }
  // Of slots of gradients, and of the peepholes.
  Index slot_sum_count() const { return call_.cell.gradient_slots() - call_.cell.first_summed_slot(); }
  Index column_sum_count() const { return slot_sum_count() + call_.cell.peephole_count; }

  // This track's matrices. The lists of rows of their right sides are this thread's.
  std::array<WeightSum, 4> weight_sums(const Part& part) const {
    const Spec& spec = call_.spec;
    const CellDescription& cell = call_.cell;
    const Index H = spec.hidden_size, P = spec.state_size(), I = spec.layer_input_size(part.track.layer);
    const LayerGradients<T>& to = places_.caller.gradients[call_.index_of(part.track)];
    const int thread = part.member.thread();
    const StageDescription& second = cell.stages[1];  // no slots where there is none
    T* const group_hh = group_sums_ + weights_of(call_.widest_input());
    T* const sums_ih = has_group_sums(I) ? group_sums_ : to.weight_ih;
    T* const sums_hh = has_group_sums(P) ? group_hh : to.weight_hh;
    T* const sums_hr = has_group_sums(H) ? group_hh + weights_of(P) : to.weight_hr;
    return {{
        {false, 0, cell.gates, H, I, lists_.list(thread, 0), to.weight_ih, sums_ih},
        {false, cell.first_recurrent_slot(), cell.recurrent_slots(), H, P, lists_.list(thread, 1), to.weight_hh,
         sums_hh},
        {false, second.first_slot, second.gates, H, P, lists_.list(thread, 2), to.weight_hh, sums_hh},
        {true, 0, spec.proj_size > 0 ? 1 : 0, P, H, lists_.list(thread, 2), to.weight_hr, sums_hr},
    }};
  }

  // The sums of a single group are the gradient, where its rows are as wide.
  bool has_group_sums(Index depth) const {
    return places_.caller.accumulate || places_.tape.groups() > 1 || sums_width(depth) != depth;
  }
  Index weights_of(Index depth) const { return call_.cell.gates * call_.spec.hidden_size * sums_width(depth); }
  Index group_sums_size() const {
    const Spec& spec = call_.spec;
    const bool of_inputs = has_group_sums(spec.input_size) || has_group_sums(spec.output_size());
    if (!of_inputs && !has_group_sums(spec.state_size()) && !has_group_sums(spec.hidden_size)) return 0;
    return weights_of(call_.widest_input()) + weights_of(spec.state_size()) +
           spec.proj_size * sums_width(spec.hidden_size);
  }

  // The row of the matrix in which a slot's columns begin.
  Index row_of(const WeightSum& sum, Index slot) const {
    return call_.cell.gate_of_slot[sum.first_slot + slot] * sum.columns;
  }

  // The parameters whose gradients are the c-th sums of columns.
  template <class Visit>
  void for_each_gradient_of(const Track& track, Index c, Visit&& visit) const {
    const LayerGradients<T>& to = places_.caller.gradients[call_.index_of(track)];
    const CellDescription& cell = call_.cell;
    const Index H = call_.spec.hidden_size;
    if (c >= slot_sum_count()) return visit(to.peephole[c - slot_sum_count()]);
    if (cell.is_normalized()) {
      const int i = static_cast<int>(c), slot = i - cell.pre_activations;
      return slot < 0 ? visit_biases(to, cell, i, H, visit) : visit(slot_weights(to, cell, slot, H));
    }
    const Index at = cell.gate_of_slot[c] * H;
    if (to.bias_ih && c < cell.gates) visit(to.bias_ih + at);
    if (to.bias_hh && c >= cell.first_recurrent_slot()) visit(to.bias_hh + at);
  }

  // The sums of a group that is complete.
  void deliver(const Slice& slice, const T* sums, Index count, T* gradient) const {
    if (slice.of_first_group && !places_.caller.accumulate)
      std::copy_n(sums, count, gradient);
    else
      for (Index i = 0; i < count; ++i) gradient[i] += sums[i];
  }

  // Visits the block in slices of at most so many pairs, as far as blocks of pairs are no larger.
  template <class Visit>
  void for_each_slice(const Block& block, Index most, Visit&& visit) const {
    const bool last_block = block.begin == 0;
    for (Index b = 0, first = 0; b < block.pair_blocks;) {
      Slice slice{{block.pair_ends + b, 0, first}, false, false, block.first + b < kGroupBlocks};
      slice.begins_group = (block.first + b) % kGroupBlocks == 0;
      do {
        ++b;
        ++slice.pairs.blocks;
        slice.ends_group = (block.first + b) % kGroupBlocks == 0;
      } while (!slice.ends_group && b < block.pair_blocks && block.pair_ends[b] - first <= most);
      if (last_block && b == block.pair_blocks) slice.ends_group = true;
      visit(slice);
      first += slice.pairs.count();
    }
  }

  // The rows of the right sides, for each pair of the block.
  void list_operands(const Part& part, const Block& block) const {
    const int thread = part.member.thread();
    const T **x = lists_.list(thread, 0), **h = lists_.list(thread, 1), **operand = lists_.list(thread, 2);
    const Rows<const T> in = places_.input_of(part.track.layer);
    const typename BackwardPlaces<T>::HiddenStates hidden(places_, part.track);
    ring_.for_each_pair(block, [&](Index pair, Index step, Index rank) {
      x[pair] = in.at(call_.time(part.track, step, rank), rank);
      h[pair] = hidden.before(step, rank);
      operand[pair] = block.operand_of_weights + pair * ring_.slot();
    });
  }

  // The c-th sums of columns, of one block of pairs.
  void add_columns(const Part& part, const Block& block, Index c, const Slice& slice) const {
    T *sums = column_sums_ + c * ring_.slot(), *block_sums = block_sums_ + part.member.thread() * ring_.slot();
    const Index H = call_.spec.hidden_size, slots = slot_sum_count();
    std::fill_n(block_sums, ring_.slot(), T(0));
    if (c < slots)
      call_.kernels().gradients.sum_columns(
          {slice.pairs.count(), H,
           block.d_a + slice.pairs.first * ring_.d_a_stride() + (call_.cell.first_summed_slot() + c) * ring_.slot(),
           nullptr, ring_.d_a_stride(), 0, 0, block_sums});
    else
      add_peephole(part, block, c - slots, slice, block_sums);
    if (slice.begins_group) std::fill_n(sums, H, T(0));
    for (Index i = 0; i < H; ++i) sums[i] += block_sums[i];
    if (slice.ends_group) for_each_gradient_of(part.track, c, [&](T* gradient) { deliver(slice, sums, H, gradient); });
  }

  // For one matrix the products of all pairs, a slice of them at a time, for this thread's columns of the left side.
  void add_products(const Part& part, const Block& block, const WeightSum& sum) const {
    const auto [begin, end] = groups_of(part, sum);
    if (begin == end) return;
    const T* data = sum.left_is_d_h ? block.d_h : block.d_a + sum.first_slot * ring_.slot();
    const Index stride = sum.left_is_d_h ? ring_.d_h_stride() : ring_.d_a_stride();
    for_each_slice(block, reads_rows(stride) ? kNearSlice : kSlice, [&, begin = begin, end = end](const Slice& slice) {
      const Index count = slice.pairs.count();
      TransposedGemmArgs<T> args{};
      args.core = &call_.network.core();
      args.pairs = slice.pairs;
      args.depth = sum.depth;
      args.sums_stride = has_group_sums(sum.depth) ? sums_width(sum.depth) : sum.depth;
      args.from_zero = slice.begins_group;
      // A part of the next slice was written by other threads and is in their caches.
      if (reads_rows(stride) && call_.plan.threads() > 1)
        args.d_ahead = std::min(count, block.pairs - slice.pairs.first - count) * stride;
      void* const packed_x = packed_x_ + part.member.thread() * packed_x_bytes();
      args.x = packed_x;
      call_.kernels().gradients.pack_rows({sum.right + slice.pairs.first, slice.pairs, sum.depth, packed_x});
      add_slice(part, sum, {data + slice.pairs.first * stride, stride}, slice, args);
      call_.look_up(part.member,
                    static_cast<double>(count) * static_cast<double>((end - begin) * group_columns() * sum.depth));
    });
  }

  // Whether the left side is read where it is.
  bool reads_rows(Index stride) const { return !layout().rounds && stride * static_cast<Index>(sizeof(T)) < kPage; }

  // A slot's columns are dealt out in groups.
  Index group_columns() const { return layout().rounds ? kRoundedGemmColumns : kGemmColumns; }
  std::pair<Index, Index> groups_of(const Part& part, const WeightSum& sum) const {
    return part.of(sum.slots * ceil_div(sum.columns, group_columns()));
  }

  void add_slice(const Part& part, const WeightSum& sum, const Strided<T>& left, const Slice& slice,
                 TransposedGemmArgs<T> args) const {
    const Index groups = ceil_div(sum.columns, group_columns());
    const Index most = reads_rows(left.stride) ? groups : kChunk / group_columns();
    const auto [begin, end] = groups_of(part, sum);
    for (Index group = begin; group < end;) {
      const Index slot = group / groups, column = group % groups * group_columns();
      const Index chunk = std::min({most, groups - group % groups, end - group});
      const Index row = row_of(sum, slot) + column;
      args.columns = std::min(chunk * group_columns(), sum.columns - column);
      set_left(part, {left.data + slot * ring_.slot() + column, left.stride}, args);
      args.sums = sum.sums + row * args.sums_stride;
      call_.kernels().gradients.transposed_gemm(args);
      if (slice.ends_group && has_group_sums(sum.depth))
        for (Index i = 0; i < args.columns; ++i)
          deliver(slice, args.sums + i * args.sums_stride, sum.depth, sum.gradient + (row + i) * sum.depth);
      group += chunk;
    }
  }

  // Some columns of the left side, where they are or packed.
  void set_left(const Part& part, const Strided<T>& left, TransposedGemmArgs<T>& args) const {
    if (reads_rows(left.stride)) {
      args.d = left.data;
      args.d_group_stride = kGemmColumns;
      args.d_stride = left.stride;
      return;
    }
    void* const packed = packed_d_ + part.member.thread() * packed_d_bytes();
    call_.kernels().gradients.pack_columns({left.data, left.stride, args.pairs, args.columns, packed});
    args.d = packed;
    args.d_group_stride = args.pairs.count() * kGemmColumns;
    args.d_stride = kGemmColumns;
  }

  void add_peephole(const Part& part, const Block& block, Index peephole, const Slice& slice, T* sums) const {
    const PeepholeDescription& from = call_.cell.peepholes[peephole];
    const Index *offsets = block.offsets, steps = block.end - block.begin;
    const Index first = slice.pairs.first, last = first + slice.pairs.count();
    for (Index i = std::upper_bound(offsets, offsets + steps, first) - offsets - 1; i < steps && offsets[i] < last;
         ++i) {
      const Index step = block.end - 1 - i, begin = std::max(offsets[i], first);
      const auto c = from.sees_next ? places_.c_after(part.track, block.begin, step)
                                    : places_.c_before(part.track, block.begin, step);
      call_.kernels().gradients.sum_columns({std::min(offsets[i + 1], last) - begin, call_.spec.hidden_size,
                                             block.d_a + begin * ring_.d_a_stride() + from.slot * ring_.slot(),
                                             c.data + (begin - offsets[i]) * c.stride, ring_.d_a_stride(), c.stride,
                                             c.slots, sums});
    }
  }

  // A part of the block's pairs.
  void input_gradients(const Part& part, const Block& block) const {
    const PackedTransposed& product = call_.back_layer(part.track).input;
    const Rows<T> to = places_.d_input_of(part.track.layer);
    const auto [begin, end] = part.of(block.pairs);
    T** out = lists_.list_of_places(part.member.thread(), 2);
    ring_.for_each_pair(block, [&, begin = begin, end = end](Index pair, Index step, Index rank) {
      if (pair >= begin && pair < end) out[pair - begin] = to.at(call_.time(part.track, step, rank), rank);
    });
    BackStepArgs<T> args{};
    args.core = &call_.network.core();
    args.depth = product.weights.depth;
    args.slot_units = product.slot_units;
    args.slot_stride = ring_.slot();
    args.units = product.units;
    args.last_panel = product.weights.panels;
    args.rounded = rounded_.of(part.member);
    args.weights = product.weights.data();
    args.operand_stride = ring_.d_a_stride();
    args.products = input_products_ + part.member.thread() * input_products_size();
    args.products_panel_stride = input_products_stride();
    args.add = part.track.direction > 0;
    for (Index first = begin; first < end; first += kInputRows, args.panels_reversed = !args.panels_reversed) {
      args.rows = std::min(kInputRows, end - first);
      args.operand = block.d_a + first * ring_.d_a_stride() + product.first_slot * ring_.slot();
      args.out = out + (first - begin);
      call_.kernels().back_step(call_.spec.cell, kLinear, args);
    }
  }

  const Call<T>& call_;
  const BackwardPlaces<T>& places_;
  const BlockRing<T>& ring_;
  const RowLists<T>& lists_;
  const RoundedOperands<T>& rounded_;
  unsigned char* packed_x_ = nullptr;  // [thread][packed_x_bytes]
  unsigned char* packed_d_ = nullptr;  // [thread][packed_d_bytes]
  T* column_sums_ = nullptr;           // [slot or peephole][slot stride]: of a group of blocks
  T* block_sums_ = nullptr;            // [thread][slot stride]: of columns
  T* group_sums_ = nullptr;            // of the weights of one track
  T* input_products_ = nullptr;
};

}  // namespace gatedrnn
