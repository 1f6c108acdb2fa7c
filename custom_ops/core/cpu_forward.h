/* The forward pass on a processor, and how both passes walk over an image. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CPU_FORWARD_H
#define KERAS_INTERNIMAGE_DCNV3_CPU_FORWARD_H

#include "cpu.h"
#include "cpu_samples.h"
#include "cpu_vector.h"

namespace dcnv3 {
namespace DCNV3_ISA {
namespace {

/* The four pixels of a sample's cell, relative to its first; no step where there is none. */
struct Cell {
  explicit Cell(const dcnv3_call& call)
      : right(call.width > 1 ? call.channels : 0),
        below(call.height > 1 ? call.width * call.channels : 0) {}
  int64_t right, below;
};

/* An element of the input that pixels soon to come will read for the first time: rows below this
 * one. Reading ahead is a wish, so that it may well point past the end. */
static inline int64_t ahead(const dcnv3_call& call, int64_t pixel) {
  const int64_t w = pixel % call.out_width, h = pixel / call.out_width % call.out_height;
  return ((h * call.stride_h + 4) * call.width + w * call.stride_w) * call.channels;
}

/* Sums the samples of one site for `vectors` vectors of channels. The sums of a cell's pixels are
 * kept apart as far as there are registers: one after the other, they would wait. */
template <class S, int P, int vectors>
static inline void sum_samples(const Samples<S, P>& samples, int64_t first, const S* image,
                               int64_t channels, const Cell& cell,
                               typename Samples<S, P>::V* total) {
  typedef typename Samples<S, P>::V V;
  typedef Element<S> E;
  constexpr int count = Samples<S, P>::L::count;
  constexpr int sums = vectors == 1 ? 4 : vectors == 2 ? 2 : 1;
  V acc[sums][vectors] = {};
  const auto *index = samples.index + first;
  const auto *w0 = samples.weight[0] + first, *w1 = samples.weight[1] + first;
  const auto *w2 = samples.weight[2] + first, *w3 = samples.weight[3] + first;
  const int64_t points = samples.points();
  for (int64_t p = 0; p < points; ++p) {
    const S* x = image + int64_t(index[p]) * channels;
#pragma GCC unroll 8
    for (int k = 0; k < vectors; ++k) {
      const S* from = x + k * count;
      acc[0][k] += w0[p] * E::load_vector(from);
      acc[1 % sums][k] += w1[p] * E::load_vector(from + cell.right);
      acc[2 % sums][k] += w2[p] * E::load_vector(from + cell.below);
      acc[3 % sums][k] += w3[p] * E::load_vector(from + cell.below + cell.right);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < vectors; ++k) {
    total[k] = acc[0][k];
    for (int n = 1; n < sums; ++n) total[k] += acc[n][k];
  }
}

/* The same for fewer channels than a vector has. */
template <class S, int P>
static inline void sum_rest(const Samples<S, P>& samples, int64_t first, const S* image,
                            int64_t channels, const Cell& cell, int64_t rest,
                            typename Element<S>::Acc* total) {
  typedef Element<S> E;
  for (int64_t d = 0; d < rest; ++d) total[d] = 0;
  for (int64_t i = first; i < first + samples.points(); ++i) {
    const S* x = image + int64_t(samples.index[i]) * channels;
    const auto w0 = samples.weight[0][i], w1 = samples.weight[1][i];
    const auto w2 = samples.weight[2][i], w3 = samples.weight[3][i];
    for (int64_t d = 0; d < rest; ++d) {
      total[d] += w0 * E::widen(x[d]) + w1 * E::widen(x[d + cell.right]) +
                  w2 * E::widen(x[d + cell.below]) +
                  w3 * E::widen(x[d + cell.below + cell.right]);
    }
  }
}

/* The same for one channel, leaving out what is not part of the image: the product of a zero
 * weight and an infinite pixel would not be zero. */
template <class S, int P>
typename Element<S>::Acc exact_sum(const Samples<S, P>& samples, const dcnv3_call& call,
                                   int64_t first, const S* image, const Cell& cell) {
  typename Element<S>::Acc total = 0;
  for (int64_t i = first; i < first + samples.points(); ++i) {
    const S* x = image + int64_t(samples.index[i]) * call.channels;
    for (int k = 0; k < 4; ++k) {
      if (!samples.has_pixel(i, k)) continue;
      total += samples.weight[k][i] *
               Element<S>::widen(x[(k & 1 ? cell.right : 0) + (k & 2 ? cell.below : 0)]);
    }
  }
  return total;
}

template <class S, int D, int P>
bool forward(const dcnv3_call& call, const void* inputs, const void* offset_mask, void* output,
             int64_t begin, int64_t end) {
  typedef Samples<S, P> Block;
  typedef typename Block::V V;
  typedef typename Block::A A;
  constexpr int count = Block::L::count;
  constexpr int vectors = D ? D / count : 1;
  const int64_t groups = call.groups, depth = D ? D : call.channels / groups;
  const int64_t out_pixels = call.out_height * call.out_width;
  const int64_t image_size = call.height * call.width * call.channels;
  const Cell cell(call);
  Block samples(call, static_cast<const S*>(offset_mask), 0, groups);
  if (!samples.allocated()) return false;
  S* const out = static_cast<S*>(output);
  const int64_t last = end * groups;
  for (int64_t block = begin * groups; block < last; block += samples.block()) {
    const int64_t stop = block + samples.block() < last ? block + samples.block() : last;
    samples.locate(block, stop, false);
    V doubt = {}; /* becomes NaN with any sum that is not finite */
    A rest_doubt = 0;
    int64_t pixel = block / groups, group = block % groups, below = ahead(call, pixel);
    for (int64_t q = block; q < stop; ++q) {
      const int64_t first = (q - block) * samples.points();
      const S* image = static_cast<const S*>(inputs) + pixel / out_pixels * image_size;
      const A scale = call.softmax ? samples.scale[q - block] : A(1);
      samples.prefetch(pixel, group);
      __builtin_prefetch(image + group * depth + below);
      int64_t d = 0;
      for (; d + vectors * count <= depth; d += vectors * count) {
        V total[vectors];
        sum_samples<S, P, vectors>(samples, first, image + group * depth + d, call.channels, cell,
                                   total);
#pragma GCC unroll 8
        for (int k = 0; k < vectors; ++k) {
          total[k] *= scale;
          doubt += total[k] * A(0);
          Element<S>::store_vector(out + q * depth + d + k * count, total[k]);
        }
      }
      if (D == 0 && d < depth) {
        A total[count];
        const int64_t rest = depth - d;
        sum_rest(samples, first, image + group * depth + d, call.channels, cell, rest, total);
        for (int64_t k = 0; k < rest; ++k) {
          total[k] *= scale;
          rest_doubt += total[k] * A(0);
          out[q * depth + d + k] = Element<S>::narrow(total[k]);
        }
      }
      if (++group == groups) group = 0, below = ahead(call, ++pixel);
    }
    rest_doubt += sum(doubt);
    if (rest_doubt == 0) continue;
    for (int64_t q = block; q < stop; ++q) {
      const int64_t n = q / groups / out_pixels;
      const S* image = static_cast<const S*>(inputs) + n * image_size + q % groups * depth;
      for (int64_t d = 0; d < depth; ++d) {
        S* to = out + q * depth + d;
        const A value = Element<S>::widen(*to);
        if (value - value == 0) continue;
        const A scale = call.softmax ? samples.scale[q - block] : A(1);
        *to = Element<S>::narrow(
            scale * exact_sum(samples, call, (q - block) * samples.points(), image + d, cell));
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace DCNV3_ISA
}  // namespace dcnv3
#endif
