// y [B, M, N] = x [B, M, K] @ W [B, K, N], four-bit W under scales of groups along K, all in float32.
//
// words  uint32 [B, N / 32, K / 8, 32]: word (t, r, c) holds the nibbles of rows 8 r .. 8 r + 7 of column 32 t + c, the
//        first in its lowest four bits. One vector load brings eight rows of as many columns as there are lanes.
// scale  float32 or bfloat16 [B, G, N]; offset float32 [B, G, N], or empty where `kind` is NONE.
//        With code = nibble - center a weight is scale * code, scale * (code - offset) or scale * code + offset.
//
// The arithmetic is written once, on vectors of floats (nibble_vectors.h), for each instruction set: vectors of four
// everywhere, AVX2, AVX-512. The handler picks by what the processor has. Few rows of x go through nibble_digits.h where
// bytes can be multiplied.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace {

constexpr int64_t TILE = 32;     // columns of a tile
constexpr int64_t ROWS = 8;      // rows of K in a word
constexpr int64_t DEPTH = 128;   // rows of K whose floats are in the first cache at a time, where they are
constexpr int64_t FEW = 4;       // rows of x that go one by one where that is faster
constexpr int64_t TOKENS = 48;   // rows of x that share them, and are one piece of work with a tile

enum Offset { NONE = 0, ZERO = 1, MINIMUM = 2 };

struct Group {  // what nibble_digits.h knows of one group of a row of x
  float unit, x_sum;
  int32_t start[4];
};

struct Problem {  // up to TOKENS rows of one entry of the batch
  const float* x;  // [K, M]: rows that lie a power of two apart would push each other out of the first cache
  const uint32_t* words;
  const void* scale;
  const float* offset;
  float* y;
  int64_t M, K, N, group;
  float center;
  bool half_scale;  // bfloat16
  Offset kind;
  const uint32_t* digits;  // in place of x: one row
  const Group* groups;
};

using Kernel = void (*)(const Problem&, int64_t tile);

}  // namespace

#define LANES 4
#define ISA portable
#include "nibble_vectors.h"
#undef LANES
#undef ISA

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define LANES 8
#define ISA avx2
#include "nibble_vectors.h"
#undef LANES
#undef ISA
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif
#define LANES 16
#define ISA avx512
#include "nibble_vectors.h"
#undef LANES
#undef ISA
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")
#endif
#include "nibble_digits.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__

namespace {

namespace ffi = xla::ffi;

struct Isa {
  Kernel run;  // nullptr: not on this processor
  Kernel few;  // for up to FEW rows by their digits, or nullptr
};

Isa find(std::string_view isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx512 && __builtin_cpu_supports("avx512vnni") && (isa == "best" || isa == "vnni"))
    return {avx512::run, vnni::run};
  if (has_avx512 && (isa == "best" || isa == "avx512")) return {avx512::run, nullptr};
  if (has_avx2 && (isa == "best" || isa == "avx2")) return {avx2::run, nullptr};
#endif
  return {isa == "best" || isa == "portable" ? portable::run : nullptr, nullptr};
}

// x [M, K] as [K, M], a few columns at a time.
void transpose(const float* x, int64_t M, int64_t K, float* out) {
  for (int64_t k = 0; k < K; k += ROWS)
    for (int64_t m = 0; m < M; ++m)
      for (int64_t j = 0; j < ROWS; ++j) out[(k + j) * M + m] = x[m * K + k + j];
}

// Calls piece(0 .. pieces - 1) on the pool and here. Whoever comes takes the next piece; the caller waits only for
// pieces that somebody has begun, so tasks that never get a thread cannot hold it up.
template <class Piece>
void spread(ffi::ThreadPool& pool, int64_t helpers, int64_t pieces, Piece piece) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto state = std::make_shared<State>();
  auto work = [state, pieces, piece] {
    for (int64_t i; (i = state->next.fetch_add(1)) < pieces;) {
      piece(i);
      state->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 0; i < std::min(helpers, pieces - 1); ++i) pool.Schedule([work] { work(); });
  work();
  while (state->done.load(std::memory_order_acquire) < pieces) std::this_thread::yield();
}

ffi::Error Matmul(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U32> words, ffi::AnyBuffer scale,
                  ffi::Buffer<ffi::F32> offset, ffi::ResultBuffer<ffi::F32> y, float center, int64_t kind,
                  std::string_view isa) {
  auto xs = x.dimensions(), ws = words.dimensions(), ss = scale.dimensions(), os = offset.dimensions();
  if (xs.size() != 3 || ws.size() != 4 || ss.size() != 3) return ffi::Error::InvalidArgument("ranks must be 3, 4, 3");
  const int64_t B = xs[0], M = xs[1], K = xs[2], N = ws[1] * TILE, G = ss[1];
  if (ws[0] != B || ws[2] * ROWS != K || ws[3] != TILE || ss[0] != B || ss[2] != N || G < 1 || K % (G * ROWS) ||
      kind < NONE || kind > MINIMUM || (kind != NONE && (os.size() != 3 || os[0] != B || os[1] != G || os[2] != N)))
    return ffi::Error::InvalidArgument("shapes of x, words, scale and offset do not fit each other");
  const bool half_scale = scale.element_type() == ffi::BF16;
  if (!half_scale && scale.element_type() != ffi::F32)
    return ffi::Error::InvalidArgument("scales are float32 or bfloat16");
  const Isa with = find(isa);
  if (with.run == nullptr) return ffi::Error::InvalidArgument("this processor lacks " + std::string(isa));

  const int64_t tiles = N / TILE;
  const bool few = with.few != nullptr && M <= FEW;
  const bool small = double(B) * M * K * N < (few ? 1 << 20 : 1 << 19);  // 20 us; waking a thread may cost more
  const int64_t helpers = small ? 0 : pool.num_threads() - 1;
  const Problem all{x.typed_data(), words.typed_data(), scale.untyped_data(), offset.typed_data(), y->typed_data(),
                    M, K, N, K / G, center, half_scale, Offset(kind), nullptr, nullptr};
  auto entry = [=](int64_t b) {
    Problem one = all;
    one.words += b * tiles * (K / ROWS) * TILE;
    one.scale = static_cast<const char*>(all.scale) + b * G * N * (half_scale ? 2 : 4);
    if (kind != NONE) one.offset += b * G * N;
    return one;
  };
#if defined(__x86_64__)
  if (few) {
    std::unique_ptr<uint32_t[]> digits(new uint32_t[B * M * K]);
    std::unique_ptr<Group[]> groups(new Group[B * M * G]);
    for (int64_t m = 0; m < B * M; ++m)
      vnni::split(all.x + m * K, K, K / G, int32_t(center), digits.get() + m * K, groups.get() + m * G);
    spread(pool, helpers, B * tiles, [=, digits = digits.get(), groups = groups.get()](int64_t i) {
      Problem one = entry(i / tiles);
      for (int64_t m = i / tiles * M; m < (i / tiles + 1) * M; ++m) {
        one.digits = digits + m * K;
        one.groups = groups + m * G;
        one.y = all.y + m * N;
        with.few(one, i % tiles);
      }
    });
    return ffi::Error::Success();
  }
#endif
  const int64_t cuts = (M + TOKENS - 1) / TOKENS;
  std::unique_ptr<float[]> turned(M > 1 ? new float[B * M * K] : nullptr);
  auto rows = [=](int64_t cut) { return std::min(TOKENS, M - cut * TOKENS); };
  if (turned)
    spread(pool, helpers, B * cuts, [=, to = turned.get()](int64_t i) {
      const int64_t at = (i / cuts * M + i % cuts * TOKENS) * K;
      transpose(all.x + at, rows(i % cuts), K, to + at);
    });
  spread(pool, helpers, B * cuts * tiles, [=, x = turned ? turned.get() : all.x](int64_t i) {
    const int64_t b = i / (cuts * tiles), cut = i / tiles % cuts, first = b * M + cut * TOKENS;
    Problem one = entry(b);
    one.M = rows(cut);
    one.x = x + first * K;
    one.y += first * N;
    with.run(one, i % tiles);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(QjaxNibbleWords, Matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("center")
                                  .Attr<int64_t>("kind")
                                  .Attr<std::string_view>("isa"));
