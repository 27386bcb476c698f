// How many processors this process may use.
#pragma once

namespace gatedrnn {

// Its affinity mask and its control group's quota, at least one.
int usable_processors();

}  // namespace gatedrnn
