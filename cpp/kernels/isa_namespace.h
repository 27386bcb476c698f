// Everything compiled for one instruction set lives in its own namespace, Eigen included: the static linker merges
// same-named inline functions of different translation units and would otherwise hand AVX-512 code to a machine without it.
// The build defines GATEDRNN_ISA as one of those in CMakeLists.txt, together with the matching compiler flags.
#pragma once

#ifndef GATEDRNN_ISA
#error "GATEDRNN_ISA must name the instruction set"
#endif

#define GATEDRNN_CONCAT_(a, b) a##b
#define GATEDRNN_CONCAT(a, b) GATEDRNN_CONCAT_(a, b)

#define Eigen GATEDRNN_CONCAT(gatedrnn_eigen_, GATEDRNN_ISA)
#define EIGEN_DONT_PARALLELIZE
#define EIGEN_MPL2_ONLY
#define EIGEN_NO_IO
#if defined(__clang__) && defined(__MINGW32__)
// Eigen 3.4 takes this Clang for a GCC of old, whose names did not tell vectors by their width, and wraps them.
#include <Eigen/src/Core/util/Macros.h>
#undef EIGEN_COMP_MINGW
#define EIGEN_COMP_MINGW 0
#endif
#include <Eigen/Core>

#define GATEDRNN_INLINE inline __attribute__((always_inline))
