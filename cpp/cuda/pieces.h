// Calls whose rows are run in pieces (gatedrnn/pieces.h): on the device these become the rows of a ragged batch, next to each other,
// and results are put where they belong. So the network knows nothing of them.
#pragma once

#include "gatedrnn/pieces.h"
#include "network.h"
#include "runtime.h"

namespace gatedrnn::cuda {

class CallInPieces {
 public:
  // `repeats`: skipped steps have the output of the step before. Memory is taken and given back in the order of the stream.
  CallInPieces(const Spec& spec, PieceList list, bool repeats, cudaStream_t stream);

  // Calls run(call) with the batch of pieces; for `backward` its x stays here.
  template <class Run>
  void forward(const ForwardCall& given, Run&& run) {
    const cudaStream_t stream = stream_;
    DeviceMemory y, h_0, c_0, h_n, c_n;
    ForwardCall call = given;
    call.steps = list_.longest();
    call.batch = list_.count();
    call.lengths = list_.lengths();
    call.x = picked(given.x, spec_.input_size, x_, stream);
    call.y = room(given.y.storage, spec_.output_size(), y, stream);
    call.y_may_overlap = false;
    call.places = {places_.data(), places()};
    call.h_0 = states_of(given.h_0, spec_.state_size(), beginnings_, h_0, stream);
    call.c_0 = states_of(given.c_0, spec_.hidden_size, beginnings_, c_0, stream);
    call.h_n = room_for_states(given.h_n, spec_.state_size(), h_n, stream);
    call.c_n = room_for_states(given.c_n, spec_.hidden_size, c_n, stream);
    run(call);
    give_output(call.y, given.y, stream);
    give_states(call.h_n, spec_.state_size(), endings_, given.h_n, stream);
    give_states(call.c_n, spec_.hidden_size, endings_, given.c_n, stream);
  }

  template <class Run>
  void backward(const BackwardCall& given, cudaStream_t stream, Run&& run) const {
    const Following order(stream_, stream);
    DeviceMemory d_output, d_x, d_h_n, d_c_n, d_h_0, d_c_0;
    BackwardCall call = given;
    call.x = dense(given.x.storage, spec_.input_size, x_);
    if (given.d_output.data) call.d_output = output_gradients(given.d_output, d_output, stream);
    if (given.d_x.data) call.d_x = room(given.d_x.storage, spec_.input_size, d_x, stream);
    call.d_h_n = states_of(given.d_h_n, spec_.state_size(), endings_, d_h_n, stream);
    call.d_c_n = states_of(given.d_c_n, spec_.hidden_size, endings_, d_c_n, stream);
    call.d_h_0 = room_for_states(given.d_h_0, spec_.state_size(), d_h_0, stream);
    call.d_c_0 = room_for_states(given.d_c_0, spec_.hidden_size, d_c_0, stream);
    run(call);
    if (given.d_x.data) give_inputs(call.d_x, given.d_x, stream);
    give_states(call.d_h_0, spec_.state_size(), beginnings_, given.d_h_0, stream);
    give_states(call.d_c_0, spec_.hidden_size, beginnings_, given.d_c_0, stream);
  }

 private:
  // By direction: the row of each piece that has its state, and the piece of each row, or -1.
  struct StateTables {
    DeviceArray<int> rows, pieces;
  };

  DeviceArray<int> upload(const std::vector<int>& table) const;
  template <class PieceOf>
  StateTables state_tables(PieceOf&& piece_of) const;
  void list_places();

  Index pairs() const { return list_.longest() * list_.count(); }
  Index places() const { return list_.pieces().steps * list_.pieces().batch; }
  Index tracks() const { return spec_.num_layers * spec_.directions; }
  // Of those by direction: the second one is for all that run from the end.
  int table_of(Index track) const { return spec_.backwards(track % spec_.directions); }

  // An array [step][piece][width] in memory, and one that is taken for it.
  AnyFeatures dense(Storage storage, Index width, const DeviceMemory& memory) const;
  AnyFeatures room(Storage storage, Index width, DeviceMemory& memory, cudaStream_t stream) const;
  AnyState room_for_states(const AnyState& like, Index width, DeviceMemory& memory, cudaStream_t stream) const;

  AnyFeatures picked(const AnyFeatures& from, Index width, DeviceMemory& memory, cudaStream_t stream) const;
  AnyFeatures output_gradients(const AnyFeatures& from, DeviceMemory& memory, cudaStream_t stream) const;
  AnyState states_of(const AnyState& rows, Index width, const StateTables& tables, DeviceMemory& memory,
                     cudaStream_t stream) const;
  void give_states(const AnyState& pieces, Index width, const StateTables& tables, const AnyState& rows,
                   cudaStream_t stream) const;
  void give_output(const AnyFeatures& from, const AnyFeatures& to, cudaStream_t stream) const;
  void give_inputs(const AnyFeatures& from, const AnyFeatures& to, cudaStream_t stream) const;

  const Spec spec_;
  const PieceList list_;
  const bool repeats_;
  const cudaStream_t stream_;
  DeviceArray<int> places_;       // of each pair its number among the caller's (step, row), or -1
  DeviceArray<int> repetitions_;  // with `repeats`, by direction: of each pair, how many steps repeat its output
  DeviceArray<int> pairs_;        // of each of the caller's (step, row) the pair, or -1
  DeviceArray<int> sources_;      // with `repeats`, by direction: that whose output stands there
  StateTables beginnings_, endings_;
  DeviceMemory x_;
};

}  // namespace gatedrnn::cuda
