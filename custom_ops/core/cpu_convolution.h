/* Convolutions with kernels of 3 x 3, stride 1 and zeros around, by minimal filtering.
 *
 * A tile of 4 x 4 pixels of the output depends on 6 x 6 of the input. With the polynomials through
 * the points 0, a, -a, b, -b and infinity,
 *
 *   y = A' [ (G w G') * (B' x B) ] A        * element by element, summed over the channels of x
 *
 * takes 36 products for each pair of a channel and a filter instead of 144. They are 36 matrix
 * products of (tiles, channels) and (channels, filters). With a = 1 / sqrt(2) and b = sqrt(2),
 * whose product is 1, all numbers are of one size: rounding errors are one to four times those of
 * the plain sum, and the usual points 1 and 2 give several times as much.
 *
 * Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CPU_CONVOLUTION_H
#define KERAS_INTERNIMAGE_DCNV3_CPU_CONVOLUTION_H

#include <stdlib.h>

#include "cpu.h"
#include "cpu_vector.h"

namespace dcnv3 {
namespace DCNV3_ISA {
namespace filtering {

typedef Lanes<float>::V V;
constexpr int64_t kLanes = Lanes<float>::count;

/* A block of a matrix product is held in registers: rows of two vectors. */
constexpr int64_t kColumns = 2, kFilters = kColumns * kLanes;
#if defined(__AVX512F__)
constexpr int64_t kRows = 12;
#elif defined(__AVX2__)
constexpr int64_t kRows = 6;
#else
constexpr int64_t kRows = 4;
#endif

constexpr float kA = 0.70710678f, kA3 = 0.35355339f; /* a and a^3 */
constexpr float kB = 1.41421356f, kB3 = 2.82842712f;

/* B' x of six elements that lie `step` apart, in place. */
static inline void transform_inputs(V* x, int step) {
  const V x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step];
  const V even_a = x4 - 2.0f * x2, odd_a = kA * x3 - kB * x1;
  const V even_b = x4 - 0.5f * x2, odd_b = kB * x3 - kA * x1;
  x[0] = x0 - 2.5f * x2 + x4;
  x[step] = even_a + odd_a, x[2 * step] = even_a - odd_a;
  x[3 * step] = even_b + odd_b, x[4 * step] = even_b - odd_b;
  x[5 * step] = x1 - 2.5f * x3 + x[5 * step];
}

/* A' m of six elements that lie `step` apart, in place of the first four. */
static inline void transform_outputs(V* m, int step) {
  const V sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
  const V sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
  m[0] = m[0] + sum_a + sum_b;
  m[step] = kA * difference_a + kB * difference_b;
  m[2 * step] = 0.5f * sum_a + 2.0f * sum_b;
  m[3 * step] = kA3 * difference_a + kB3 * difference_b + m[5 * step];
}

/* G w of three elements. */
static inline void transform_kernel(V w0, V w1, V w2, V* u, int step) {
  const V even_a = (w0 + 0.5f * w2) * (-2.0f / 3), odd_a = w1 * (-2.0f / 3 * kA);
  const V even_b = (w0 + 2.0f * w2) * (1.0f / 6), odd_b = w1 * (1.0f / 6 * kB);
  u[0] = w0, u[5 * step] = w2;
  u[step] = even_a + odd_a, u[2 * step] = even_a - odd_a;
  u[3 * step] = even_b + odd_b, u[4 * step] = even_b - odd_b;
}

/* The first `count` elements of a vector, zeros behind them. */
static inline V load_part(const float* from, int64_t count) {
  if (count >= kLanes) return load<V>(from);
  V v = {};
  if (count > 0) memcpy(&v, from, size_t(count) * sizeof(float));
  return v;
}

static inline void store_part(float* to, const V& v, int64_t count) {
  if (count >= kLanes) store(to, v);
  else memcpy(to, &v, size_t(count) * sizeof(float));
}

/* Products that are summed before they are added to the others: rounding errors of a sum grow with
 * its length. */
constexpr int64_t kSummed = 64;

/* kRows rows of the product of (rows, depth) and (depth, kFilters). */
static inline void multiply(const float* x, int64_t step, const float* u, int64_t depth, float* y) {
  for (int64_t start = 0; start < depth; start += kSummed) {
    const int64_t end = depth - start < kSummed ? depth : start + kSummed;
    V sums[kRows][kColumns] = {};
    for (int64_t k = start; k < end; ++k) {
      V columns[kColumns];
      for (int j = 0; j < kColumns; ++j) columns[j] = load<V>(u + k * kFilters + j * kLanes);
      for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kColumns; ++j) sums[i][j] += columns[j] * x[i * step + k];
    }
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kColumns; ++j) {
        float* const to = y + i * kFilters + j * kLanes;
        store(to, start == 0 ? sums[i][j] : sums[i][j] + load<V>(to));
      }
  }
}

/* Where a tile lies. */
struct Place {
  int64_t image, top, left;
  Place(const dcnv3_convolution& call, int64_t tile) {
    const int64_t wide = ceil_div(call.width, kTileSize);
    const int64_t each = wide * ceil_div(call.height, kTileSize);
    image = tile / each;
    top = tile % each / wide * kTileSize, left = tile % wide * kTileSize;
  }
};

/* B' x B of one tile; its 36 rows of channels lie `step` apart. `zeros` is what is outside. */
static inline void read_tile(const dcnv3_convolution& call, const float* inputs, int64_t tile,
                             const float* zeros, float* to, int64_t step) {
  const Place at(call, tile);
  const float* pixels[36];
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < 6; ++j) {
      const int64_t h = at.top + i - 1, w = at.left + j - 1;
      const bool inside = h >= 0 && h < call.height && w >= 0 && w < call.width;
      const int64_t pixel = (at.image * call.height + h) * call.width + w;
      pixels[6 * i + j] = inside ? inputs + pixel * call.channels : zeros;
    }
  for (int64_t c = 0; c < call.channels; c += kLanes) {
    V x[36];
    for (int p = 0; p < 36; ++p) x[p] = load_part(pixels[p] + c, call.channels - c);
    for (int j = 0; j < 6; ++j) transform_inputs(x + j, 6);
    for (int i = 0; i < 6; ++i) transform_inputs(x + 6 * i, 1);
    for (int p = 0; p < 36; ++p) store(to + p * step + c, x[p]);
  }
}

/* A' m A of one tile for a block of filters from `first` on; its 36 rows lie `step` apart. */
static inline void write_tile(const dcnv3_convolution& call, const float* m, int64_t step,
                              const float* bias, int64_t tile, int64_t first, float* output) {
  const Place at(call, tile);
  for (int64_t f = first; f < call.filters && f < first + kFilters; f += kLanes) {
    V y[36];
    for (int p = 0; p < 36; ++p) y[p] = load<V>(m + p * step + f - first);
    for (int j = 0; j < 6; ++j) transform_outputs(y + j, 6);
    for (int i = 0; i < 4; ++i) transform_outputs(y + 6 * i, 1);
    const V offset = load_part(bias + f, call.filters - f);
    for (int64_t i = 0; i < 4 && at.top + i < call.height; ++i)
      for (int64_t j = 0; j < 4 && at.left + j < call.width; ++j) {
        V v = y[6 * i + j] + offset;
        if (call.relu) v = v < 0.0f ? V{} : v; /* NaN stays */
        const int64_t pixel =
            (at.image * call.height + at.top + i) * call.width + at.left + j;
        store_part(output + pixel * call.filters + f, v, call.filters - f);
      }
  }
}

}  // namespace filtering

/* G w G' as (blocks of kFilters filters, 36, channels, kFilters), zeros behind the last filter. */
static inline void convolution_kernel(const dcnv3_convolution& call, const float* kernel,
                                      float* to, int64_t begin, int64_t end) {
  using namespace filtering;
  for (int64_t block = begin; block < end; ++block)
    for (int64_t c = 0; c < call.channels; ++c)
      for (int64_t j = 0; j < kColumns; ++j) {
        const int64_t f = block * kFilters + j * kLanes;
        V w[9], rows[18], u[36];
        for (int tap = 0; tap < 9; ++tap)
          w[tap] = load_part(kernel + (tap * call.channels + c) * call.filters + f,
                             call.filters - f);
        for (int k = 0; k < 3; ++k) transform_kernel(w[k], w[3 + k], w[6 + k], rows + k, 3);
        for (int i = 0; i < 6; ++i)
          transform_kernel(rows[3 * i], rows[3 * i + 1], rows[3 * i + 2], u + 6 * i, 1);
        for (int p = 0; p < 36; ++p)
          store(to + ((block * 36 + p) * call.channels + c) * kFilters + j * kLanes, u[p]);
      }
}

/* The tiles [begin, end). */
static inline bool convolution(const dcnv3_convolution& call, const float* inputs,
                               const float* transformed, const float* bias, float* output,
                               int64_t begin, int64_t end) {
  using namespace filtering;
  const int64_t depth = ceil_div(call.channels, kLanes) * kLanes;
  const int64_t step = depth + kLanes; /* rows must not all meet in one set of the cache */
  const int64_t most = ceil_div(kMostTiles, kRows) * kRows;
  const int64_t size = 36 * most * (step + kFilters) + depth;
  constexpr uintptr_t line = 64; /* of the cache: vectors shall not lie across two */
  void* const scratch = malloc(size_t(size) * sizeof(float) + line);
  if (scratch == nullptr) return false;
  float* const x = reinterpret_cast<float*>((uintptr_t(scratch) + line - 1) & ~(line - 1));
  float* const m = x + 36 * most * step;
  float* const zeros = m + 36 * most * kFilters;
  memset(zeros, 0, size_t(depth) * sizeof(float));
  for (int64_t start = begin; start < end; start += kMostTiles) {
    const int64_t tiles = end - start < kMostTiles ? end - start : kMostTiles;
    const int64_t rows = ceil_div(tiles, kRows) * kRows;
    for (int64_t t = 0; t < tiles; ++t)
      read_tile(call, inputs, start + t, zeros, x + t * step, most * step);
    for (int64_t t = tiles; t < rows; ++t) /* of rows that nobody reads, but that are multiplied */
      for (int64_t p = 0; p < 36; ++p)
        memset(x + (p * most + t) * step, 0, size_t(depth) * sizeof(float));
    for (int64_t first = 0; first < call.filters; first += kFilters) {
      for (int64_t p = 0; p < 36; ++p) {
        const float* const u = transformed + (first * 36 + p * kFilters) * call.channels;
        for (int64_t t = 0; t < rows; t += kRows)
          multiply(x + (p * most + t) * step, step, u, call.channels,
                   m + (p * most + t) * kFilters);
      }
      for (int64_t t = 0; t < tiles; ++t)
        write_tile(call, m + t * kFilters, most * kFilters, bias, start + t, first, output);
    }
  }
  free(scratch);
  return true;
}

}  // namespace DCNV3_ISA
}  // namespace dcnv3
#endif
