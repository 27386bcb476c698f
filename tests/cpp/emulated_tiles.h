// A matrix unit in plain loops, as Intel describes it, so that its kernels are tested on any machine. What a program must not do
// with tiles ends it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace gatedrnn::GATEDRNN_ISA {

struct Tiles {
  struct Shapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  };
  struct Tile {
    int rows, row_bytes;
    unsigned char data[16][64];

    template <class Value>
    Value at(int row, int i) const {
      Value value;
      std::memcpy(&value, data[row] + i * sizeof value, sizeof value);
      return value;
    }
    template <class Value>
    void set(int row, int i, Value value) {
      std::memcpy(data[row] + i * sizeof value, &value, sizeof value);
    }
  };
  struct Unit {
    bool configured = false;
    Tile tiles[8];
  };

  static Unit& unit() {
    static thread_local Unit unit;
    return unit;
  }
  static void demand(bool right, const char* what) {
    if (right) return;
    std::fprintf(stderr, "matrix unit: %s\n", what);
    std::abort();
  }
  template <int tile>
  static Tile& get() {
    static_assert(tile >= 0 && tile < 8);
    demand(unit().configured, "a tile is used that has no shape");
    return unit().tiles[tile];
  }

  static void configure(const Shapes& shapes) {
    demand(shapes.palette == 1 && shapes.start_row == 0, "no such palette");
    unit() = {};
    unit().configured = true;
    for (int t = 0; t < 8; ++t) {
      demand(shapes.rows[t] <= 16 && shapes.row_bytes[t] <= 64, "a tile is too large");
      unit().tiles[t].rows = shapes.rows[t];
      unit().tiles[t].row_bytes = shapes.row_bytes[t];
    }
  }
  static void release() { unit() = {}; }
  static void fence() {}

  template <int tile>
  static void zero() {
    std::memset(get<tile>().data, 0, sizeof Tile::data);
  }
  template <int tile>
  static void load(const void* from, Index stride) {
    zero<tile>();
    Tile& to = get<tile>();
    for (int row = 0; row < to.rows; ++row)
      std::memcpy(to.data[row], static_cast<const unsigned char*>(from) + row * stride, to.row_bytes);
  }
  template <int tile>
  static void store(void* to, Index stride) {
    const Tile& from = get<tile>();
    for (int row = 0; row < from.rows; ++row)
      std::memcpy(static_cast<unsigned char*>(to) + row * stride, from.data[row], from.row_bytes);
  }

  static float from_bfloat16(std::uint16_t value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
  template <int sums, int a, int b>
  static void add_bfloat16() {
    const Tile &x = get<a>(), &w = get<b>();
    Tile& to = get<sums>();
    check_shapes(to, x, w);
    for (int row = 0; row < to.rows; ++row)
      for (int column = 0; column < to.row_bytes / 4; ++column) {
        float chains[2] = {0, 0};
        for (int k = 0; k < x.row_bytes / 2; ++k)
          chains[k % 2] = std::fma(from_bfloat16(x.at<std::uint16_t>(row, k)),
                                   from_bfloat16(w.at<std::uint16_t>(k / 2, 2 * column + k % 2)), chains[k % 2]);
        to.set(row, column, to.at<float>(row, column) + (chains[0] + chains[1]));
      }
  }
  template <int sums, int a, int b>
  static void add_int8() {
    const Tile &x = get<a>(), &w = get<b>();
    Tile& to = get<sums>();
    check_shapes(to, x, w);
    for (int row = 0; row < to.rows; ++row)
      for (int column = 0; column < to.row_bytes / 4; ++column) {
        std::int32_t sum = to.at<std::int32_t>(row, column);
        for (int k = 0; k < x.row_bytes; ++k)
          sum += x.at<std::int8_t>(row, k) * w.at<std::int8_t>(k / 4, 4 * column + k % 4);
        to.set(row, column, sum);
      }
  }

 private:
  static void check_shapes(const Tile& to, const Tile& x, const Tile& w) {
    demand(to.rows > 0 && to.rows == x.rows && to.row_bytes == w.row_bytes && w.rows * 4 == x.row_bytes,
           "the shapes of tiles do not fit");
  }
};

}  // namespace gatedrnn::GATEDRNN_ISA
