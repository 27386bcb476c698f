// cpp/cuda/launch/spoil.h for the emulation: memory that is taken again is full of what is not a number.
#pragma once

#include <cstddef>
#include <cstring>

namespace gatedrnn::cuda {

inline void spoil(void* data, std::ptrdiff_t bytes) { std::memset(data, 0xff, static_cast<std::size_t>(bytes)); }

}  // namespace gatedrnn::cuda
