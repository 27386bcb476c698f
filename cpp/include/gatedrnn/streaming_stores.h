// Stores that go past the caches.
#pragma once

#include "gatedrnn/spec.h"

namespace gatedrnn {

// Zeros past the caches, as far as whole lines go: for what nobody reads soon.
void stream_zeros(void* to, Index bytes);

// Whoever sees what this thread writes from now on sees what it, or a kernel on it, has written past the caches.
void publish_streamed();

}  // namespace gatedrnn
