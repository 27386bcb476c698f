#include "pieces.h"
#include "rows.cuh"

namespace gatedrnn::cuda {
namespace {

// The features of so many (time, row) by their numbers, of which `rows` are of one time.
template <class T>
struct Numbered {
  Features<T> features;
  int rows;

  __device__ T* at(int number) const { return features.at(number / rows, number % rows); }
};

// To each number the features of that in the table, or zeros.
template <class T>
__global__ void pick(const int* table, Index count, Numbered<const T> from, int width, Numbered<T> to) {
  for_own(count, width, [&](Index number, int column) {
    const int source = table[number];
    to.at(static_cast<int>(number))[column] = source < 0 ? converted<T>(0.0f) : from.at(source)[column];
  });
}

// To each pair the features of its (time, row) of the caller's, or zeros; and added to them, in the order of steps, those of the
// steps that repeat its output: after it, or in reverse before it.
template <class T>
__global__ void pick_pairs(const int* places, const int* repetitions, bool reverse, Index pairs, Numbered<const T> from,
                           int width, T* to, Index stride) {
  for_own(pairs, width, [&](Index pair, int column) {
    const int number = places[pair], count = repetitions ? repetitions[pair] : 0;
    T& place = to[pair * stride + column];
    place = number < 0 ? converted<T>(0.0f) : from.at(number)[column];
    if (count == 0) return;
    const int time = number / from.rows, row = number % from.rows;
    const int first = reverse ? time - count : time + 1;
    Sum<T> sum = converted<Sum<T>>(place);
    for (int step = first; step < first + count; ++step) sum += converted<Sum<T>>(from.features.at(step, row)[column]);
    place = converted<T>(sum);
  });
}

template <class T>
Numbered<T> numbered(const AnyFeatures& any, Index column, Index rows) {
  return {{static_cast<T*>(any.data) + column, any.time_stride, any.row_stride}, static_cast<int>(rows)};
}

// The states of one track.
template <class T>
Numbered<T> track_of(const AnyState& states, Index track, Index count, Index width) {
  return {{static_cast<T*>(states.data) + track * count * width, 0, width}, static_cast<int>(count)};
}

}  // namespace

CallInPieces::CallInPieces(const Spec& spec, PieceList list, bool repeats, cudaStream_t stream)
    : spec_(spec), list_(std::move(list)), repeats_(repeats), stream_(stream) {
  list_places();
  beginnings_ = state_tables([&](Index row, bool reverse) { return list_.beginning(row, reverse); });
  endings_ = state_tables([&](Index row, bool reverse) { return list_.ending(row, reverse); });
}

DeviceArray<int> CallInPieces::upload(const std::vector<int>& table) const {
  DeviceArray<int> array(static_cast<Index>(table.size()), stream_);
  copy(array.data(), table.data(), array.bytes(), cudaMemcpyHostToDevice, stream_);
  return array;
}

template <class PieceOf>
CallInPieces::StateTables CallInPieces::state_tables(PieceOf&& piece_of) const {
  const Index batch = list_.pieces().batch, count = list_.count();
  std::vector<int> rows(2 * count, -1), pieces(2 * batch, -1);
  for (const bool reverse : {false, true})
    for (Index row = 0; row < batch; ++row) {
      const Index piece = piece_of(row, reverse);
      pieces[reverse * batch + row] = static_cast<int>(piece);
      if (piece != PieceList::kNone) rows[reverse * count + piece] = static_cast<int>(row);
    }
  return {upload(rows), upload(pieces)};
}

void CallInPieces::list_places() {
  const Pieces& pieces = list_.pieces();
  std::vector<int> places(pairs(), -1), own(this->places(), -1);
  for (Index piece = 0; piece < list_.count(); ++piece)
    for (Index step = 0; step < list_.lengths()[piece]; ++step) {
      const Index pair = step * list_.count() + piece;
      const Index place = pieces.time(piece, step) * pieces.batch + pieces.row(piece);
      places[pair] = static_cast<int>(place);
      own[place] = static_cast<int>(pair);
    }
  places_ = upload(places);
  pairs_ = upload(own);
  if (!repeats_) return;
  std::vector<int> repetitions(2 * pairs(), 0), sources;
  for (const bool reverse : {false, true}) {
    std::vector<int> of_direction = own;
    for (Index row = 0; row < pieces.batch; ++row)
      list_.for_each_gap(row, [&](const PieceList::Gap& gap) {
        const Index source = reverse ? gap.after : gap.before;
        if (source == PieceList::kNone) return;
        const int pair = own[source * pieces.batch + row];
        repetitions[reverse * pairs() + pair] = static_cast<int>(gap.end - gap.begin);
        for (Index step = gap.begin; step < gap.end; ++step) of_direction[step * pieces.batch + row] = pair;
      });
    sources.insert(sources.end(), of_direction.begin(), of_direction.end());
  }
  repetitions_ = upload(repetitions);
  sources_ = upload(sources);
}

AnyFeatures CallInPieces::dense(Storage storage, Index width, const DeviceMemory& memory) const {
  return {memory.data(), storage, list_.count() * width, width};
}

AnyFeatures CallInPieces::room(Storage storage, Index width, DeviceMemory& memory, cudaStream_t stream) const {
  memory = DeviceMemory(pairs() * width * bytes_of(storage), stream);
  return dense(storage, width, memory);
}

AnyState CallInPieces::room_for_states(const AnyState& like, Index width, DeviceMemory& memory,
                                       cudaStream_t stream) const {
  if (!like.data) return {};
  memory = DeviceMemory(tracks() * list_.count() * width * bytes_of(like.storage), stream);
  return {memory.data(), like.storage};
}

AnyFeatures CallInPieces::picked(const AnyFeatures& from, Index width, DeviceMemory& memory,
                                 cudaStream_t stream) const {
  const AnyFeatures to = room(from.storage, width, memory, stream);
  with_type(from.storage, [&](auto value) {
    using T = decltype(value);
    launch(pick_pairs<T>, pairs(), width, stream, places_.data(), nullptr, false, pairs(),
           numbered<const T>(from, 0, list_.pieces().batch), static_cast<int>(width), static_cast<T*>(to.data), width);
  });
  return to;
}

AnyFeatures CallInPieces::output_gradients(const AnyFeatures& from, DeviceMemory& memory, cudaStream_t stream) const {
  if (!repeats_) return picked(from, spec_.output_size(), memory, stream);
  const AnyFeatures to = room(from.storage, spec_.output_size(), memory, stream);
  const Index width = spec_.state_size();
  for (Index d = 0; d < spec_.directions; ++d)
    with_type(from.storage, [&](auto value) {
      using T = decltype(value);
      launch(pick_pairs<T>, pairs(), width, stream, places_.data(), repetitions_.data() + spec_.backwards(d) * pairs(),
             spec_.backwards(d), pairs(), numbered<const T>(from, d * width, list_.pieces().batch),
             static_cast<int>(width), static_cast<T*>(to.data) + d * width, spec_.output_size());
    });
  return to;
}

AnyState CallInPieces::states_of(const AnyState& rows, Index width, const StateTables& tables, DeviceMemory& memory,
                                 cudaStream_t stream) const {
  if (rows.of_all_rows) return rows;  // then they are those of all pieces
  const AnyState to = room_for_states(rows, width, memory, stream);
  const Index count = list_.count(), batch = list_.pieces().batch;
  for (Index track = 0; track < tracks() && rows.data; ++track)
    with_type(rows.storage, [&](auto value) {
      using T = decltype(value);
      launch(pick<T>, count, width, stream, tables.rows.data() + table_of(track) * count, count,
             track_of<const T>(rows, track, batch, width), static_cast<int>(width),
             track_of<T>(to, track, count, width));
    });
  return to;
}

void CallInPieces::give_states(const AnyState& pieces, Index width, const StateTables& tables, const AnyState& rows,
                               cudaStream_t stream) const {
  const Index count = list_.count(), batch = list_.pieces().batch;
  for (Index track = 0; track < tracks() && rows.data; ++track)
    with_type(rows.storage, [&](auto value) {
      using T = decltype(value);
      launch(pick<T>, batch, width, stream, tables.pieces.data() + table_of(track) * batch, batch,
             track_of<const T>(pieces, track, count, width), static_cast<int>(width),
             track_of<T>(rows, track, batch, width));
    });
}

void CallInPieces::give_output(const AnyFeatures& from, const AnyFeatures& to, cudaStream_t stream) const {
  const Index width = spec_.state_size();
  for (Index d = 0; d < spec_.directions; ++d)
    with_type(to.storage, [&](auto value) {
      using T = decltype(value);
      launch(pick<T>, places(), width, stream,
             repeats_ ? sources_.data() + spec_.backwards(d) * places() : pairs_.data(), places(),
             numbered<const T>(from, d * width, list_.count()), static_cast<int>(width),
             numbered<T>(to, d * width, list_.pieces().batch));
    });
}

void CallInPieces::give_inputs(const AnyFeatures& from, const AnyFeatures& to, cudaStream_t stream) const {
  with_type(to.storage, [&](auto value) {
    using T = decltype(value);
    launch(pick<T>, places(), spec_.input_size, stream, pairs_.data(), places(),
           numbered<const T>(from, 0, list_.count()), static_cast<int>(spec_.input_size),
           numbered<T>(to, 0, list_.pieces().batch));
  });
}

}  // namespace gatedrnn::cuda
