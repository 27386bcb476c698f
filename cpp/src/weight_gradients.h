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
    packed_x_ = arena.take<T>(threads * packed_x_size());
    packed_d_ = arena.take<T>(threads * packed_d_size());
    column_sums_ = arena.take<T>(column_sum_count() * ring_.slot());
    block_sums_ = arena.take<T>(threads * ring_.slot());
    group_sums_ = arena.take<T>(has_group_sums() ? group_sums_size() : 0);
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
        std::fill_n(sum.gradient + offset_of(sum, slot) + begin, end - begin, T(0));
    }
    const auto [begin, end] = part.of(column_sum_count());
    for (Index c = begin; c < end; ++c)
      for_each_gradient_of(part.track, c, [&](T* gradient) { std::fill_n(gradient, call_.spec.hidden_size, T(0)); });
  }

 private:
  // The products of weights' gradients take a slice of the pairs at a time. Rows of the left side that are less than a page
  // apart are read where they are, in slices whose parts of the right side fit into the first-level cache. Rows further apart
  // are packed, a chunk of groups of columns at a time, in long slices: each is a pass over sums that are large there too.
  static constexpr Index kPage = 4096;
  static constexpr Index kNearSlice = 128, kSlice = 512;
  static constexpr Index kChunk = 8;

  // Some of a block's pairs, which are whole blocks of pairs of one group.
  struct Slice {
    Index first, count;      // pairs
    const Index* pair_ends;  // where its blocks of pairs end
    Index pair_blocks;
    bool begins_group, ends_group;
    bool of_first_group;
  };

  // One matrix of weights: its gradient is the sum over pairs of (a slot of the left side) x (a row of the right side).
  struct WeightSum {
    bool left_is_d_h;
    Index first_slot, slots, columns, depth;
    const T* const* right;
    T* gradient;  // [gate][column][depth]
    T* sums;      // of a group of blocks, in the same layout; or `gradient`, where they go there as they are
  };

  Index packed_x_size() const {
    return kSlice *
           round_up(std::max({call_.widest_input(), call_.spec.hidden_size, call_.spec.state_size()}), call_.lanes());
  }
  static constexpr Index packed_d_size() { return kSlice * kChunk * kGemmColumns; }
  Index input_products_stride() const { return odd_lines<T>(kInputRows * kBackVectors * call_.lanes()); }
  Index input_products_size() const {
    return ceil_div(call_.widest_input(), kBackVectors * call_.lanes()) * input_products_stride();
  }
  // Of every slot, and of the peepholes.
  Index column_sum_count() const { return call_.cell.slots + call_.cell.peephole_count; }

  // This track's matrices. The lists of rows of their right sides are this thread's.
  std::array<WeightSum, 4> weight_sums(const Part& part) const {
    const Spec& spec = call_.spec;
    const CellDescription& cell = call_.cell;
    const Index H = spec.hidden_size, P = spec.state_size(), I = spec.layer_input_size(part.track.layer);
    const LayerGradients<T>& to = places_.caller.gradients[call_.index_of(part.track)];
    const int thread = part.member.thread();
    const StageDescription& second = cell.stages[1];  // no slots where there is none
    T* const sums_ih = has_group_sums() ? group_sums_ : to.weight_ih;
    T* const sums_hh = has_group_sums() ? group_sums_ + weights_of(call_.widest_input()) : to.weight_hh;
    T* const sums_hr = has_group_sums() ? sums_hh + weights_of(P) : to.weight_hr;
    return {{
        {false, 0, cell.gates, H, I, lists_.list(thread, 0), to.weight_ih, sums_ih},
        {false, cell.first_recurrent_slot(), cell.recurrent_slots(), H, P, lists_.list(thread, 1), to.weight_hh,
         sums_hh},
        {false, second.first_slot, second.gates, H, P, lists_.list(thread, 2), to.weight_hh, sums_hh},
        {true, 0, spec.proj_size > 0 ? 1 : 0, P, H, lists_.list(thread, 2), to.weight_hr, sums_hr},
    }};
  }

  // The sums of a single group are the gradient.
  bool has_group_sums() const { return places_.caller.accumulate || places_.tape.groups() > 1; }
  Index weights_of(Index depth) const { return call_.cell.gates * call_.spec.hidden_size * depth; }
  Index group_sums_size() const {
    return weights_of(call_.widest_input() + call_.spec.state_size()) + call_.spec.proj_size * call_.spec.hidden_size;
  }

  // Where a slot stands in the matrix.
  Index offset_of(const WeightSum& sum, Index slot) const {
    return call_.cell.gate_of_slot[sum.first_slot + slot] * sum.columns * sum.depth;
  }

  // The biases or the peephole whose gradients are the c-th sums of columns.
  template <class Visit>
  void for_each_gradient_of(const Track& track, Index c, Visit&& visit) const {
    const LayerGradients<T>& to = places_.caller.gradients[call_.index_of(track)];
    if (c >= call_.cell.slots) return visit(to.peephole[c - call_.cell.slots]);
    const Index at = call_.cell.gate_of_slot[c] * call_.spec.hidden_size;
    if (to.bias_ih && c < call_.cell.gates) visit(to.bias_ih + at);
    if (to.bias_hh && c >= call_.cell.first_recurrent_slot()) visit(to.bias_hh + at);
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
      Slice slice{first, 0, block.pair_ends + b, 0, false, false, block.first + b < kGroupBlocks};
      slice.begins_group = (block.first + b) % kGroupBlocks == 0;
      do {
        slice.count = block.pair_ends[b++] - first;
        ++slice.pair_blocks;
        slice.ends_group = (block.first + b) % kGroupBlocks == 0;
      } while (!slice.ends_group && b < block.pair_blocks && block.pair_ends[b] - first <= most);
      if (last_block && b == block.pair_blocks) slice.ends_group = true;
      visit(slice);
      first += slice.count;
    }
  }

  // The rows of the right sides, for each pair of the block.
  void list_operands(const Part& part, const Block& block) const {
    const int thread = part.member.thread();
    const T **x = lists_.list(thread, 0), **h = lists_.list(thread, 1), **operand = lists_.list(thread, 2);
    const Rows<const T> in = places_.input_of(part.track.layer);
    ring_.for_each_pair(block, [&](Index pair, Index step, Index rank) {
      x[pair] = in.at(call_.time(part.track, step, rank), rank);
      h[pair] = places_.h_before(part.track, step, rank);
      operand[pair] = block.operand_of_weights + pair * ring_.slot();
    });
  }

  // The c-th sums of columns, of one block of pairs.
  void add_columns(const Part& part, const Block& block, Index c, const Slice& slice) const {
    T *sums = column_sums_ + c * ring_.slot(), *block_sums = block_sums_ + part.member.thread() * ring_.slot();
    const Index H = call_.spec.hidden_size, slots = call_.cell.slots;
    std::fill_n(block_sums, ring_.slot(), T(0));
    if (c < slots)
      call_.kernels().sum_columns({slice.count, H, block.d_a + slice.first * ring_.d_a_stride() + c * ring_.slot(),
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
    T* packed_x = packed_x_ + part.member.thread() * packed_x_size();
    for_each_slice(block, share_pages(stride) ? kNearSlice : kSlice, [&, begin = begin, end = end](const Slice& slice) {
      TransposedGemmArgs<T> args{};
      args.ends = slice.pair_ends;
      args.blocks = slice.pair_blocks;
      args.first = slice.first;
      args.sums_stride = sum.depth;
      args.from_zero = slice.begins_group;
      // A part of the next slice was written by other threads and is in their caches.
      if (share_pages(stride) && call_.plan.threads() > 1)
        args.d_ahead = std::min(slice.count, block.pairs - slice.first - slice.count) * stride;
      for_each_part(sum, [&](Index at, Index width, int vectors) {
        call_.kernels().pack_rows(
            {sum.right + slice.first, slice.count, at, width, vectors, packed_x + at * slice.count});
      });
      add_slice(part, sum, {data + slice.first * stride, stride}, packed_x, slice, args);
      call_.look_up(part.member,
                    static_cast<double>(slice.count) * static_cast<double>((end - begin) * kGemmColumns * sum.depth));
    });
  }

  static bool share_pages(Index stride) { return stride * static_cast<Index>(sizeof(T)) < kPage; }

  // A slot's columns are dealt out in groups.
  std::pair<Index, Index> groups_of(const Part& part, const WeightSum& sum) const {
    return part.of(sum.slots * ceil_div(sum.columns, kGemmColumns));
  }

  void add_slice(const Part& part, const WeightSum& sum, const Strided<T>& left, const T* packed_x, const Slice& slice,
                 TransposedGemmArgs<T> args) const {
    const Index groups = ceil_div(sum.columns, kGemmColumns), most = share_pages(left.stride) ? groups : kChunk;
    const Index ahead = args.d_ahead;
    const auto [begin, end] = groups_of(part, sum);
    for (Index group = begin; group < end;) {
      const Index s = group / groups, column = group % groups * kGemmColumns;
      const Index chunk = std::min({most, groups - group % groups, end - group});
      args.columns = std::min(chunk * kGemmColumns, sum.columns - column);
      set_left(part, {left.data + s * ring_.slot() + column, left.stride}, slice.count, chunk, args);
      const Index offset = offset_of(sum, s) + column * sum.depth;
      for_each_part(sum, [&](Index at, Index width, int vectors) {
        args.width = width;
        args.d_ahead = at == 0 ? ahead : 0;
        args.x = packed_x + at * slice.count;
        args.vectors = vectors;
        args.sums = sum.sums + offset + at;
        call_.kernels().transposed_gemm(args);
      });
      if (slice.ends_group && has_group_sums())
        deliver(slice, sum.sums + offset, args.columns * sum.depth, sum.gradient + offset);
      group += chunk;
    }
  }

  // So many groups of the left side, where they are or packed.
  void set_left(const Part& part, const Strided<T>& left, Index count, Index groups,
                TransposedGemmArgs<T>& args) const {
    const bool near = share_pages(left.stride);
    T* packed = packed_d_ + part.member.thread() * packed_d_size();
    if (!near) call_.kernels().pack_columns({left.data, left.stride, count, groups, packed});
    args.d = near ? left.data : packed;
    args.d_group_stride = near ? kGemmColumns : count * kGemmColumns;
    args.d_stride = near ? left.stride : kGemmColumns;
  }

  // The right side's values in parts that differ by at most a vector: `visit(first value, values, vectors)`.
  template <class Visit>
  void for_each_part(const WeightSum& sum, Visit&& visit) const {
    const Index vectors = ceil_div(sum.depth, call_.lanes()), parts = ceil_div(vectors, kGemmVectors);
    for (Index p = 0; p < parts; ++p) {
      const Index first = vectors * p / parts, last = vectors * (p + 1) / parts;
      visit(first * call_.lanes(), std::min(last * call_.lanes(), sum.depth) - first * call_.lanes(),
            static_cast<int>(last - first));
    }
  }

  void add_peephole(const Part& part, const Block& block, Index peephole, const Slice& slice, T* sums) const {
    const PeepholeDescription& from = call_.cell.peepholes[peephole];
    const Index *offsets = block.offsets, steps = block.end - block.begin, last = slice.first + slice.count;
    for (Index i = std::upper_bound(offsets, offsets + steps, slice.first) - offsets - 1;
         i < steps && offsets[i] < last; ++i) {
      const Index step = block.end - 1 - i, begin = std::max(offsets[i], slice.first);
      const auto c = from.sees_next ? places_.c_after(part.track, block.begin, step)
                                    : places_.c_before(part.track, block.begin, step);
      call_.kernels().sum_columns({std::min(offsets[i + 1], last) - begin, call_.spec.hidden_size,
                                   block.d_a + begin * ring_.d_a_stride() + from.slot * ring_.slot(),
                                   c.data + (begin - offsets[i]) * c.stride, ring_.d_a_stride(), c.stride, c.slots,
                                   sums});
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
  T* packed_x_ = nullptr;     // [thread][part][pair of a slice][vectors of the part][lanes]
  T* packed_d_ = nullptr;     // [thread][group of a chunk][pair of a slice][kGemmColumns]
  T* column_sums_ = nullptr;  // [slot or peephole][slot stride]: of a group of blocks
  T* block_sums_ = nullptr;   // [thread][slot stride]: of columns
  T* group_sums_ = nullptr;   // of the weights of one track
  T* input_products_ = nullptr;
};

}  // namespace gatedrnn
