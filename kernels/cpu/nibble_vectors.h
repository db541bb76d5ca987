// Rows of y on vectors of LANES floats, in the namespace ISA. Included by nibble_words.cc for each instruction set.

namespace {
namespace ISA {

constexpr int VECTORS = TILE / LANES;
constexpr int CHAINS = LANES == 16 ? 2 : 1;  // of additions in the sums of one row: each waits for its last
constexpr int TALL = LANES == 16 ? 16 : 6;   // rows of x whose sums are in registers, a block

// Vectors of columns in a block: two where rows are few, so that there are enough sums to add to in turn.
constexpr int wide(int rows) { return LANES == 16 && rows > 5 ? 1 : 2; }

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

template <class V>
inline __attribute__((always_inline)) V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline __attribute__((always_inline)) void store(float* p, floats v) { std::memcpy(p, &v, sizeof v); }

inline __attribute__((always_inline)) floats scales(const Problem& p, int64_t at) {
  if (!p.half_scale) return load<floats>(static_cast<const float*>(p.scale) + at);
  return (floats)(__builtin_convertvector(load<halves>(static_cast<const uint16_t*>(p.scale) + at), bits) << 16);
}

#if LANES == 16
// The sixteen values of a nibble, which one instruction looks up by the lowest four bits of every lane.
struct Codes {
  floats values;
  explicit Codes(float center) {
    for (int i = 0; i < LANES; ++i) values[i] = i - center;
  }
};

template <int ROW>
inline __attribute__((always_inline)) floats code(bits word, const Codes& codes) {
  return (floats)_mm512_permutexvar_ps((__m512i)(word >> 4 * ROW), (__m512)codes.values);
}
#else
// The powers of two under nibbles at bit 8, 12 and 16, and the center.
struct Codes {
  floats at_8, at_12, at_16;
  explicit Codes(float center)
      : at_8(floats{} + (32768 + center)), at_12(floats{} + (2048 + center)), at_16(floats{} + (128 + center)) {}
};

// The code of one row in every lane. Its nibble, at bit 8, 12 or 16, becomes the last digits of 2^15, 2^11 or 2^7 by an
// exponent put in front; subtracting that power and the center is exact. Cheaper than shifting and converting each.
template <int ROW>
inline __attribute__((always_inline)) floats code(bits word, const Codes& powers) {
  constexpr int bit[ROWS] = {8, 12, 8, 12, 16, 8, 12, 16};
  if (ROW < 2) word <<= 8;
  if (ROW > 4) word >>= 12;
  if (bit[ROW] == 8) return (floats)((word & 0xF00) | 0x47000000) - powers.at_8;
  if (bit[ROW] == 12) return (floats)((word & 0xF000) | 0x45000000) - powers.at_12;
  return (floats)((word & 0xF0000) | 0x43000000) - powers.at_16;
}
#endif

template <class Do, int... ROW>
inline __attribute__((always_inline)) void each(Do&& apply, std::integer_sequence<int, ROW...>) {
  (apply(std::integral_constant<int, ROW>()), ...);
}

// One row of x: codes go from the word to the sum without touching memory; scale and offset come once a group.
template <int KIND>
void one_row(const Problem& p, int64_t tile) {
  constexpr int SOME = VECTORS < 4 ? VECTORS : 4;
  const float* x = p.x;
  const Codes codes(p.center);
  for (int v0 = 0; v0 < VECTORS; v0 += SOME) {
    const int64_t column = tile * TILE + v0 * LANES;
    const uint32_t* words = p.words + tile * (p.K / ROWS) * TILE + v0 * LANES;
    floats total[SOME] = {};
    for (int64_t g = 0; g < p.K / p.group; ++g) {
      floats sums[CHAINS][SOME] = {};
      float x_sum = 0;
      for (int64_t k = g * p.group; k < (g + 1) * p.group; k += ROWS) {
        bits word[SOME];
        for (int v = 0; v < SOME; ++v) word[v] = load<bits>(words + k / ROWS * TILE + v * LANES);
        each([&](auto j) __attribute__((always_inline)) {
          for (int v = 0; v < SOME; ++v) sums[j % CHAINS][v] += x[k + j] * code<j>(word[v], codes);
          if (KIND != NONE) x_sum += x[k + j];
        }, std::make_integer_sequence<int, ROWS>());
      }
      for (int v = 0; v < SOME; ++v) {
        const int64_t at = g * p.N + column + v * LANES;
        floats sum = sums[0][v];
        for (int c = 1; c < CHAINS; ++c) sum += sums[c][v];
        if (KIND == NONE) total[v] += sum * scales(p, at);
        if (KIND == ZERO) total[v] += (sum - x_sum * load<floats>(p.offset + at)) * scales(p, at);
        if (KIND == MINIMUM) total[v] += sum * scales(p, at) + x_sum * load<floats>(p.offset + at);
      }
    }
    for (int v = 0; v < SOME; ++v) store(p.y + column + v * LANES, total[v]);
  }
}

#if LANES == 16
// COUNT rows of y from row m of the problem on, the sums of WIDE vectors of columns in registers. Each block decodes for
// itself, a word at a time: that hides behind the additions, which a whole tile decoded in front does not. The loop over
// rows of a word stays a loop: unrolled, the compiler moves sums from register to register.
template <int KIND, int COUNT>
void block(const Problem& p, int64_t tile, int64_t m) {
  constexpr int WIDE = wide(COUNT);
  const Codes codes(p.center);
  for (int v0 = 0; v0 < VECTORS; v0 += WIDE) {
    const float* x = p.x + m;
    const int64_t column = tile * TILE + v0 * LANES;
    const uint32_t* words = p.words + tile * (p.K / ROWS) * TILE + v0 * LANES;
    for (int64_t g = 0; g < p.K / p.group; ++g) {
      floats scale[WIDE], offset[WIDE] = {}, sum[COUNT][WIDE] = {};
      for (int v = 0; v < WIDE; ++v) {
        const int64_t at = g * p.N + column + v * LANES;
        scale[v] = scales(p, at);
        if (KIND != NONE) offset[v] = load<floats>(p.offset + at);
      }
      for (int64_t k = g * p.group; k < (g + 1) * p.group; k += ROWS) {
        floats w[ROWS][WIDE];
        for (int v = 0; v < WIDE; ++v) {
          const bits word = load<bits>(words + k / ROWS * TILE + v * LANES);
          each([&](auto j) __attribute__((always_inline)) {
            w[j][v] = code<j>(word, codes);
            if (KIND == ZERO) w[j][v] -= offset[v];
            if (KIND == MINIMUM) w[j][v] = w[j][v] * scale[v] + offset[v];
          }, std::make_integer_sequence<int, ROWS>());
        }
#pragma GCC unroll 1
        for (int j = 0; j < ROWS; ++j, x += p.M)
#pragma GCC unroll 16
          for (int i = 0; i < COUNT; ++i)
            for (int v = 0; v < WIDE; ++v) sum[i][v] += x[i] * w[j][v];
      }
#pragma GCC unroll 16
      for (int i = 0; i < COUNT; ++i)
        for (int v = 0; v < WIDE; ++v) {
          float* at = p.y + (m + i) * p.N + column + v * LANES;
          const floats own = KIND == MINIMUM ? sum[i][v] : sum[i][v] * scale[v];
          store(at, g == 0 ? own : load<floats>(at) + own);
        }
    }
  }
}
#else
// Rows k .. k + depth of the tile as floats [depth, TILE], the very numbers that dequantizing gives.
template <int KIND>
void decode(const Problem& p, int64_t tile, int64_t k, int64_t depth, float* out) {
  const Codes codes(p.center);
  const uint32_t* words = p.words + (tile * (p.K / ROWS) + k / ROWS) * TILE;
  for (int v = 0; v < VECTORS; ++v) {
    floats scale = {}, offset = {};
    int64_t next = 0;  // the row where the next group begins
    for (int64_t i = 0; i < depth; i += ROWS) {
      if (k + i >= next) {
        const int64_t g = (k + i) / p.group, at = g * p.N + tile * TILE + v * LANES;
        scale = scales(p, at);
        if (KIND != NONE) offset = load<floats>(p.offset + at);
        next = (g + 1) * p.group;
      }
      const bits word = load<bits>(words + i / ROWS * TILE + v * LANES);
      each([&](auto j) __attribute__((always_inline)) {
        floats w = code<j>(word, codes);
        if (KIND == ZERO) w -= offset;
        w *= scale;
        if (KIND == MINIMUM) w += offset;
        store(out + (i + j) * TILE + v * LANES, w);
      }, std::make_integer_sequence<int, ROWS>());
    }
  }
}

// y [COUNT, TILE] += x [depth, COUNT] @ w [depth, TILE], the sums of WIDE vectors of columns in registers.
template <int COUNT>
void block(const float* x, int64_t x_stride, const float* w, int64_t depth, float* y, int64_t y_stride) {
  constexpr int WIDE = wide(COUNT);
  for (int v0 = 0; v0 < VECTORS; v0 += WIDE) {
    floats sum[COUNT][WIDE] = {};
    for (int64_t k = 0; k < depth; ++k) {
      floats row[WIDE];
#pragma GCC unroll 2
      for (int v = 0; v < WIDE; ++v) row[v] = load<floats>(w + k * TILE + (v0 + v) * LANES);
#pragma GCC unroll 6
      for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < WIDE; ++v) sum[i][v] += x[k * x_stride + i] * row[v];
    }
#pragma GCC unroll 6
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < WIDE; ++v) {
        float* at = y + i * y_stride + (v0 + v) * LANES;
        store(at, load<floats>(at) + sum[i][v]);
      }
  }
}
#endif

template <int COUNT, class Do>
void with_count(int64_t count, Do&& apply) {
  if (count == COUNT) return apply(std::integral_constant<int, COUNT>());
  if constexpr (COUNT > 1) with_count<COUNT - 1>(count, apply);
}

// Calls apply(first row, std::integral_constant of rows) for blocks of at most TALL rows, as even as they can be.
template <class Do>
void in_blocks(int64_t M, Do&& apply) {
  int64_t parts = (M + TALL - 1) / TALL;
  for (int64_t m = 0; m < M; --parts) {
    const int64_t count = (M - m + parts - 1) / parts;
    with_count<TALL>(count, [&](auto rows) { apply(m, rows); });
    m += count;
  }
}

template <int KIND>
void rows(const Problem& p, int64_t tile) {
  if (p.M == 1) return one_row<KIND>(p, tile);
#if LANES == 16
  in_blocks(p.M, [&](int64_t m, auto count) { block<KIND, count>(p, tile, m); });
#else
  alignas(64) float w[DEPTH * TILE];
  float* y = p.y + tile * TILE;
  for (int64_t m = 0; m < p.M; ++m) std::memset(y + m * p.N, 0, TILE * sizeof(float));
  for (int64_t k = 0; k < p.K; k += DEPTH) {
    const int64_t depth = std::min(DEPTH, p.K - k);
    decode<KIND>(p, tile, k, depth, w);
    in_blocks(p.M, [&](int64_t m, auto count) { block<count>(p.x + k * p.M + m, p.M, w, depth, y + m * p.N, p.N); });
  }
#endif
}

void run(const Problem& p, int64_t tile) {
  static constexpr Kernel all[] = {rows<NONE>, rows<ZERO>, rows<MINIMUM>};
  all[p.kind](p, tile);
}

}  // namespace ISA
}  // namespace
