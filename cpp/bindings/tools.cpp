#include "tools.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <string>
#include <vector>

#include "gatedrnn/buffer.h"
#include "gatedrnn/cpu_features.h"
#include "gatedrnn/dispatch.h"
#include "gatedrnn/flush_denormals.h"
#include "gatedrnn/threads.h"
#include "gil_release.h"
#include "new_arrays.h"
#include "thread_limit.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gatedrnn::bindings {
namespace {

std::string processor_name() {
#if defined(__x86_64__)
  unsigned words[12] = {}, highest = __get_cpuid_max(0x80000000u, nullptr);
  if (highest < 0x80000004u) return "x86-64";
  for (unsigned i = 0; i < 3; ++i) {
    unsigned* at = words + 4 * i;
    __get_cpuid(0x80000002u + i, at, at + 1, at + 2, at + 3);
  }
  std::string name(reinterpret_cast<const char*>(words), sizeof words);
  name = name.substr(0, name.find('\0'));
  name.erase(name.find_last_not_of(' ') + 1);
  return name;
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "unknown";
#endif
}

std::vector<std::string> names(const std::vector<const KernelTable*>& tables) {
  std::vector<std::string> result;
  for (const KernelTable* table : tables) result.emplace_back(table->name);
  return result;
}

template <class T>
using Map = void (*)(const T*, T*, Index) noexcept;

template <class T>
py::array map(Map<T> function, const py::array& x) {
  if (x.ndim() != 1) refuse_value("x", "one dimension", shape_text(x));
  const auto in = contiguous<T>("x", x);
  py::array_t<T, py::array::c_style> out(in.size());
  const FlushDenormals flush;
  function(in.data(), out.mutable_data(), in.size());
  return out;
}

// Calls `round` for about this long, in three windows, and returns the best rate of amount per second.
template <class Round>
double best_rate(double milliseconds, Round&& round) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int window = 0; window < 3; ++window) {
    double amount = 0, seconds = 0;
    const auto start = Clock::now();
    do {
      amount += round();
      seconds = std::chrono::duration<double>(Clock::now() - start).count();
    } while (seconds < milliseconds / 3000);
    best = std::max(best, amount / seconds);
  }
  return best;
}

struct Bytes {
  const unsigned char* data;
  Index size;
};

// A bijection of either when the other is given.
std::uint64_t mixed(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15ull;
  return hash ^ hash >> 29;
}

std::uint64_t hash_of(const Bytes& bytes) {
  Hash hash;
  active_table().whole().hash_blocks(bytes.data, bytes.size / kHashBlock, hash);
  unsigned char rest[kHashBlock] = {};
  std::copy_n(bytes.data + bytes.size / kHashBlock * kHashBlock, bytes.size % kHashBlock, rest);
  active_table().whole().hash_blocks(rest, 1, hash);
  // Side by side, since each step of a chain waits for the one before.
  std::uint64_t chains[4] = {static_cast<std::uint64_t>(bytes.size), hash.all};
  for (std::size_t i = 0; i < std::size(hash.sums); ++i) chains[i % 4] = mixed(chains[i % 4], hash.sums[i]);
  std::uint64_t result = 0;
  for (const std::uint64_t chain : chains) result = mixed(result, chain);
  return result;
}

template <class T>
double multiply_rate(Format format, double milliseconds) {
  const Kernels<T>& kernels = *active_table().find<T>(format);
  Buffer<T> sink(kProbeBytes / static_cast<Index>(sizeof(T)));
  std::fill_n(sink.data(), sink.size(), T(0));
  return best_rate(milliseconds, [&] { return kernels.multiply_rate_probe(20000, sink.data()); });
}

}  // namespace

py::dict machine() {
  py::list available, compiled;
  for (const auto& name : names(available_tables())) available.append(name);
  for (const auto& name : names(compiled_tables())) compiled.append(name);
  py::dict d;
  d["isa"] = active_table().name;
  d["available"] = available;
  d["compiled"] = compiled;
  const CpuRegisters registers = read_cpu_registers();
  d["features"] = features_of(registers);
  py::dict missing;
  for (const auto& name : names(compiled_tables())) missing[name.c_str()] = missing_features(name, registers);
  d["missing"] = missing;
  py::dict formats;
  for (int f = 0; f < kFormatCount; ++f) {
    const auto format = static_cast<Format>(f);
    const KernelTable* const table =
        format == Format::float64 ? active_table().with<double>(format) : active_table().with<float>(format);
    formats[kFormatNames[f]] = table->name;
  }
  d["formats"] = formats;
  d["l1"] = core().l1;
  d["l2"] = core().l2;
  d["l3"] = core().l3;
  d["cpu"] = processor_name();
  d["compiler"] = GATEDRNN_COMPILER;
  d["threads"] = num_threads();
  return d;
}

py::array aligned_array(py::ssize_t count, const py::dtype& dtype) { return new_aligned_array(dtype, {count}); }

std::uint64_t fingerprint(const std::vector<py::array>& arrays) {
  constexpr Index most = 256 << 10;  // of a piece; each costs as much beside as a few KB do
  std::vector<Bytes> pieces;
  Index total = 0;
  for (const py::array& array : arrays) {
    if (!(array.flags() & py::array::c_style)) refuse_value("arrays", "contiguous arrays", "strides");
    const auto* data = static_cast<const unsigned char*>(array.data());
    const auto size = static_cast<Index>(array.nbytes());
    for (Index at = 0; at < size; at += most) pieces.push_back({data + at, std::min(most, size - at)});
    total += size;
  }
  apply_thread_limit();
  std::vector<std::uint64_t> hashes(pieces.size());
  {
    const GilReleaseForBytes release(total);
    share_out(static_cast<Index>(pieces.size()), total, [&](Index i) { hashes[i] = hash_of(pieces[i]); });
  }
  std::uint64_t hash = 0;
  for (const std::uint64_t one : hashes) hash = mixed(hash, one);
  return hash;
}

void copy_all(const std::vector<std::pair<py::array, py::array>>& pairs) {
  for (const auto& [to, from] : pairs) {
    const bool plain = (to.flags() & py::array::c_style) && (from.flags() & py::array::c_style) && to.writeable();
    if (!plain || !to.dtype().equal(from.dtype()) || to.nbytes() != from.nbytes())
      refuse_value("pairs", "contiguous arrays of the same dtype and size, the first writable", "others");
  }
  for (const auto& [to, from] : pairs)
    std::memmove(const_cast<void*>(to.data()), from.data(), static_cast<std::size_t>(to.nbytes()));
}

py::array sigmoid(const py::array& x) {
  if (x.dtype().num() == py::dtype::num_of<double>())
    return map<double>(active_table().of<double>().elementwise.sigmoid, x);
  return map<float>(active_table().of<float>().elementwise.sigmoid, float_array("x", x));
}

py::array tanh(const py::array& x) {
  if (x.dtype().num() == py::dtype::num_of<double>())
    return map<double>(active_table().of<double>().elementwise.tanh, x);
  return map<float>(active_table().of<float>().elementwise.tanh, float_array("x", x));
}

double measure_multiply(const std::string& format, double milliseconds) {
  for (int f = 0; f < kFormatCount; ++f)
    if (format == kFormatNames[f])
      return f == static_cast<int>(Format::float64) ? multiply_rate<double>(Format::float64, milliseconds)
                                                    : multiply_rate<float>(static_cast<Format>(f), milliseconds);
  refuse_value("format", "float32, float64, bfloat16, bfloat16x3 or int8", "'" + format + "'");
}

double measure_bandwidth(Index bytes, double milliseconds) {
  const Probes<float>& probes = active_table().of<float>().probes;
  const Index round = kReadVectors * probes.lanes;
  const Index count = std::max<Index>(round, bytes / static_cast<Index>(sizeof(float)) / round * round);
  Buffer<float> data(count), sink(round);
  std::fill_n(data.data(), count, 1.0f);
  // Many short reads between two looks at the clock.
  const Index repeats = std::max<Index>(1, (1 << 20) / (count * static_cast<Index>(sizeof(float))));
  return best_rate(milliseconds, [&] {
    for (Index i = 0; i < repeats; ++i) probes.read(data.data(), count, sink.data());
    return static_cast<double>(repeats * count) * sizeof(float);
  });
}

}  // namespace gatedrnn::bindings
