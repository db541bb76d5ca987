// Few rows of x on processors that multiply bytes (AVX-512 VNNI), included by nibble_words.cc.
//
// One instruction adds four products of nibbles and signed bytes to every lane. So x becomes fixed-point numbers of 31
// bits under a power of two for each group, written as four digits base 256: their sums with the codes are exact, and
// what a number loses, 2^-30 of the largest one in its group at most, is less than adding floats would lose. An infinity
// or NaN makes every sum of its row NaN.

namespace {
namespace vnni {

constexpr int DIGITS = 4;

template <class V>
inline __attribute__((always_inline)) V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// x [K] of one row: digits [K / 8, DIGITS, 2], each the digits of rows 0 2 4 6 or 1 3 5 7 of a word, and its groups.
void split(const float* x, int64_t K, int64_t group, int32_t center, uint32_t* digits, Group* groups) {
  const __m256i by_digit = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15));  // of four numbers, the even ones first
  const __m256i sign = _mm256_set1_epi32(0x7FFFFFFF), carry = _mm256_set1_epi32(0x808080), one = _mm256_set1_epi8(1);
  for (int64_t first = 0; first < K; first += group, ++groups) {
    __m256i largest = _mm256_setzero_si256(), sum = _mm256_setzero_si256();
    for (int64_t k = first; k < first + group; k += ROWS)
      largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_loadu_si256((const __m256i*)(x + k)), sign));
    uint32_t lanes[ROWS];
    std::memcpy(lanes, &largest, sizeof lanes);
    // Its exponent as floats store it: all are below 2^(exponent - 126). Groups of less than 2^-96 count as that.
    const uint32_t found = *std::max_element(lanes, lanes + ROWS) >> 23, exponent = std::max(found, 30u);
    const uint32_t up = (283 - exponent) << 23, down = found == 255 ? 0x7FC00000 : (exponent - 29) << 23;
    for (int64_t k = first; k < first + group; k += ROWS) {
      __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k), _mm256_set1_ps(load<float>(&up))));
      q = _mm256_xor_si256(_mm256_add_epi32(q, carry), carry);  // bytes of what was one number are signed digits now
      q = _mm256_shuffle_epi8(q, by_digit);
      const __m128i a = _mm256_castsi256_si128(q), b = _mm256_extracti128_si256(q, 1);
      q = _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
      sum = _mm256_dpbusd_epi32(sum, one, q);
      std::memcpy(digits + k, &q, sizeof q);
    }
    int32_t sums[2 * DIGITS];
    std::memcpy(sums, &sum, sizeof sums);
    groups->unit = load<float>(&down);
    double total = 0;
    for (int d = DIGITS - 1; d >= 0; --d) {
      const int32_t own = sums[2 * d] + sums[2 * d + 1];
      groups->start[d] = -center * own;
      total = total * 256 + own;
    }
    groups->x_sum = float(total * groups->unit);
  }
}

// One row of y, a tile of it.
template <int KIND>
void one_row(const Problem& p, int64_t tile) {
  constexpr int LANES = 16, VECTORS = TILE / LANES;
  const __m512i low = _mm512_set1_epi32(0x0F0F0F0F);
  const uint32_t* words = p.words + tile * (p.K / ROWS) * TILE;
  const uint32_t* x = p.digits;
  __m512 total[VECTORS] = {};
  for (int64_t g = 0; g < p.K / p.group; ++g) {
    const Group& own = p.groups[g];
    __m512i sum[DIGITS][VECTORS];
    for (int d = 0; d < DIGITS; ++d)
      for (int v = 0; v < VECTORS; ++v) sum[d][v] = _mm512_set1_epi32(own.start[d]);
    for (int64_t k = 0; k < p.group; k += ROWS, words += TILE, x += ROWS)
      for (int v = 0; v < VECTORS; ++v) {
        const __m512i word = load<__m512i>(words + v * LANES);
        const __m512i even = _mm512_and_si512(word, low), odd = _mm512_and_si512(_mm512_srli_epi32(word, 4), low);
        for (int d = 0; d < DIGITS; ++d) {
          sum[d][v] = _mm512_dpbusd_epi32(sum[d][v], even, _mm512_set1_epi32(x[2 * d]));
          sum[d][v] = _mm512_dpbusd_epi32(sum[d][v], odd, _mm512_set1_epi32(x[2 * d + 1]));
        }
      }
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t at = g * p.N + tile * TILE + v * LANES;
      __m512 f = _mm512_cvtepi32_ps(sum[DIGITS - 1][v]);
      for (int d = DIGITS - 2; d >= 0; --d) f = f * 256.f + _mm512_cvtepi32_ps(sum[d][v]);
      f *= own.unit;
      const __m512 scale = avx512::scales(p, at);
      if (KIND == NONE) total[v] += f * scale;
      if (KIND == ZERO) total[v] += (f - own.x_sum * load<__m512>(p.offset + at)) * scale;
      if (KIND == MINIMUM) total[v] += f * scale + own.x_sum * load<__m512>(p.offset + at);
    }
  }
  for (int v = 0; v < VECTORS; ++v) std::memcpy(p.y + tile * TILE + v * LANES, &total[v], sizeof total[v]);
}

void run(const Problem& p, int64_t tile) {
  static constexpr Kernel all[] = {one_row<NONE>, one_row<ZERO>, one_row<MINIMUM>};
  all[p.kind](p, tile);
}

}  // namespace vnni
}  // namespace
