// Places (see cells.h) that are one unit of one row with all of its values in variables: for the reference, and for devices.
#pragma once

#include "gatedrnn/cell.h"
#include "gatedrnn/cells/activations.h"

namespace gatedrnn::cells {

// The functions of a general cell.
template <class S>
struct UnitFunctions {
  using V = typename S::V;

  const CellOptions<typename S::T>* cell_options;

  constexpr const CellOptions<typename S::T>& options() const { return *cell_options; }
  constexpr V apply(int i, V x) const { return Activations<S>::apply(options().activations[i], x); }
  constexpr V slope(int i, V x, V y) const { return Activations<S>::slope(options().activations[i], x, y); }
};

template <class Arithmetic>
struct Unit : UnitFunctions<Arithmetic> {
  using S = Arithmetic;
  using V = typename S::V;

  V gates[kMostSlots], peepholes[kMostPeepholes];
  V h_before, c_now;
  V h_next, operand, carried;
  V kept[kMostKept];

  constexpr V gate(int slot) const { return gates[slot]; }
  constexpr void leave(int slot, V value) { gates[slot] = value; }
  constexpr V h() const { return h_before; }
  constexpr V c() const { return c_now; }
  constexpr void set_c(V value) { c_now = value; }
  constexpr V peephole(int i) const { return peepholes[i]; }
  constexpr void deliver(V h) { h_next = h; }
  constexpr void keep(int i, V value) { kept[i] = value; }
  constexpr void set_operand(V value) { operand = value; }
  constexpr void carry_over(V value) { carried = value; }
  constexpr V carried_over() const { return carried; }
};

template <class Arithmetic>
struct BackUnit : UnitFunctions<Arithmetic> {
  using S = Arithmetic;
  using V = typename S::V;

  V kept_values[kMostKept], peepholes[kMostPeepholes];
  V c_read, h_read;  // h[t-1] or h[t], as the description says
  V d_h_now, d_c_now, products;
  V d_a[kMostSlots];
  V carried;  // of h[t-1]
  V operand;

  constexpr V kept(int i) const { return kept_values[i]; }
  constexpr V peephole(int i) const { return peepholes[i]; }
  constexpr V c_before() const { return c_read; }
  constexpr V h_before() const { return h_read; }
  constexpr V h_after() const { return h_read; }
  constexpr V d_h() const { return d_h_now; }
  constexpr V d_c() const { return d_c_now; }
  constexpr V product() const { return products; }
  constexpr void set_d_a(int slot, V value) { d_a[slot] = value; }
  constexpr void set_d_c(V value) { d_c_now = value; }
  constexpr V carry() const { return carried; }
  constexpr void set_carry(V value) { carried = value; }
  constexpr void set_operand_of_weights(V value) { operand = value; }
};

}  // namespace gatedrnn::cells
