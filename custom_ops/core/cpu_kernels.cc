/* Forward and backward pass on a processor. Compiled once for each instruction set, into a
 * namespace of its own: no inline function from elsewhere may be used here, for the linker keeps
 * one copy of those, perhaps one that the processor at hand cannot run. */
#include <stdlib.h>

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

/* ---- forward ---------------------------------------------------------------------------------- */

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

/* ---- backward --------------------------------------------------------------------------------- */

/* Adds `weight * g` to the cell's pixels and stores the products of pixels and g as dots. */
template <class S, int P, int vectors>
static inline void scatter(const Samples<S, P>& samples, int64_t first, const S* image,
                           typename Samples<S, P>::A* grad_image, int64_t channels,
                           int64_t grad_channels, const Cell& cell, const Cell& grad_cell,
                           const typename Samples<S, P>::V* g) {
  typedef typename Samples<S, P>::V V;
  typedef typename Samples<S, P>::A A;
  typedef Element<S> E;
  constexpr int count = Samples<S, P>::L::count;
  const int64_t points = samples.points();
  for (int64_t i = first; i < first + points; ++i) {
    const S* x = image + int64_t(samples.index[i]) * channels;
    A* to = grad_image + int64_t(samples.index[i]) * grad_channels;
    V dot[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const S* from = x + (c & 1 ? cell.right : 0) + (c & 2 ? cell.below : 0);
      A* into = to + (c & 1 ? grad_cell.right : 0) + (c & 2 ? grad_cell.below : 0);
      const A w = samples.weight[c][i];
      dot[c] = E::load_vector(from) * g[0];
      store(into, V(load<V>(into) + w * g[0]));
#pragma GCC unroll 8
      for (int k = 1; k < vectors; ++k) {
        dot[c] += E::load_vector(from + k * count) * g[k];
        store(into + k * count, V(load<V>(into + k * count) + w * g[k]));
      }
    }
    store_sums(samples.dots + 4 * i, dot[0], dot[1], dot[2], dot[3]);
  }
}

/* The same for any group width. */
template <class S, int P>
static inline void scatter_any(const Samples<S, P>& samples, int64_t first, const S* image,
                               typename Samples<S, P>::A* grad_image, int64_t channels,
                               int64_t grad_channels, const Cell& cell, const Cell& grad_cell,
                               const S* g, int64_t depth) {
  typedef typename Samples<S, P>::V V;
  typedef typename Samples<S, P>::A A;
  typedef Element<S> E;
  constexpr int count = Samples<S, P>::L::count;
  const int64_t points = samples.points();
  for (int64_t i = first; i < first + points; ++i) {
    const S* x = image + int64_t(samples.index[i]) * channels;
    A* to = grad_image + int64_t(samples.index[i]) * grad_channels;
    V dot[4];
    A rest[4];
    for (int c = 0; c < 4; ++c) {
      const S* from = x + (c & 1 ? cell.right : 0) + (c & 2 ? cell.below : 0);
      A* into = to + (c & 1 ? grad_cell.right : 0) + (c & 2 ? grad_cell.below : 0);
      const A w = samples.weight[c][i];
      V vector_sum = {};
      A sum_of_rest = 0;
      int64_t d = 0;
      for (; d + count <= depth; d += count) {
        const V upstream = E::load_vector(g + d);
        vector_sum += E::load_vector(from + d) * upstream;
        store(into + d, V(load<V>(into + d) + w * upstream));
      }
      for (; d < depth; ++d) {
        const A upstream = E::widen(g[d]);
        sum_of_rest += E::widen(from[d]) * upstream;
        into[d] += w * upstream;
      }
      dot[c] = vector_sum;
      rest[c] = sum_of_rest;
    }
    store_sums(samples.dots + 4 * i, dot[0], dot[1], dot[2], dot[3]);
    for (int c = 0; c < 4; ++c) samples.dots[4 * i + c] += rest[c];
  }
}

/* The same channel by channel; pixels that a sample has not are left out. */
template <class S, int P>
void exact_scatter(const Samples<S, P>& samples, int64_t first, const S* image,
                   typename Element<S>::Acc* grad_image, int64_t channels, int64_t grad_channels,
                   const Cell& cell, const Cell& grad_cell, const S* g, int64_t depth) {
  typedef typename Element<S>::Acc A;
  for (int64_t i = first; i < first + samples.points(); ++i) {
    const S* x = image + int64_t(samples.index[i]) * channels;
    A* to = grad_image + int64_t(samples.index[i]) * grad_channels;
    for (int c = 0; c < 4; ++c) {
      A dot = 0;
      if (samples.has_pixel(i, c)) {
        const S* from = x + (c & 1 ? cell.right : 0) + (c & 2 ? cell.below : 0);
        A* into = to + (c & 1 ? grad_cell.right : 0) + (c & 2 ? grad_cell.below : 0);
        const A w = samples.weight[c][i];
        for (int64_t d = 0; d < depth; ++d) {
          const A upstream = Element<S>::widen(g[d]);
          dot += Element<S>::widen(from[d]) * upstream;
          into[d] += w * upstream;
        }
      }
      samples.dots[4 * i + c] = dot;
    }
  }
}

template <class S, int D, int P>
bool backward_task(const dcnv3_call& call, const S* grad_output, const S* inputs,
                   const S* offset_mask, S* grad_inputs, S* grad_offset_mask, int64_t image,
                   int64_t first_group, int64_t groups) {
  typedef Samples<S, P> Block;
  typedef typename Block::V V;
  typedef typename Block::A A;
  constexpr int count = Block::L::count;
  constexpr int vectors = D ? D / count : 1;
  constexpr bool direct = sizeof(S) == sizeof(A);
  const int64_t depth = D ? D : call.channels / call.groups;
  const int64_t pixels = call.height * call.width, own = groups * depth;
  const int64_t out_pixels = call.out_height * call.out_width;
  const int64_t first_channel = first_group * depth;
  const S* x = inputs + image * pixels * call.channels + first_channel;
  S* grad_x = grad_inputs + image * pixels * call.channels + first_channel;

  /* Sums need their full precision: narrow elements are summed aside and rounded in the end. */
  dcnv3_call aside = call;
  A* sums;
  if (direct) {
    sums = reinterpret_cast<A*>(grad_x);
    for (int64_t p = 0; p < pixels; ++p) memset(sums + p * call.channels, 0, own * sizeof(A));
  } else {
    aside.channels = own;
    sums = static_cast<A*>(calloc(size_t(pixels * own), sizeof(A)));
    if (sums == nullptr) return false;
  }
  const Cell cell(call), grad_cell(aside);
  Block samples(call, offset_mask, first_group, groups);
  if (!samples.allocated()) {
    if (!direct) free(sums);
    return false;
  }
  const int64_t last = (image + 1) * out_pixels * groups;
  for (int64_t block = image * out_pixels * groups; block < last; block += samples.block()) {
    const int64_t stop = block + samples.block() < last ? block + samples.block() : last;
    samples.locate(block, stop, true);
    int64_t pixel = block / groups, group = block % groups, below = ahead(call, pixel);
    for (int64_t q = block; q < stop; ++q) {
      const int64_t first = (q - block) * samples.points();
      const S* upstream = grad_output + pixel * call.channels + first_channel + group * depth;
      const S* from = x + group * depth;
      A* to = sums + group * depth;
      samples.prefetch(pixel, group);
      __builtin_prefetch(upstream + 8 * call.channels);
      __builtin_prefetch(from + below);
      if (direct) __builtin_prefetch(to + below, 1);
      V g[vectors];
      A check = 0; /* NaN if the upstream gradient is not finite */
      if (D) {
        V doubt = {};
#pragma GCC unroll 8
        for (int k = 0; k < vectors; ++k) {
          g[k] = Element<S>::load_vector(upstream + k * count);
          doubt += g[k] * A(0);
        }
        check = sum(doubt);
      } else {
        for (int64_t d = 0; d < depth; ++d) check += Element<S>::widen(upstream[d]) * A(0);
      }
      if (check == 0 && D)
        scatter<S, P, vectors>(samples, first, from, to, call.channels, aside.channels, cell,
                               grad_cell, g);
      else if (check == 0)
        scatter_any(samples, first, from, to, call.channels, aside.channels, cell, grad_cell,
                    upstream, depth);
      else
        exact_scatter(samples, first, from, to, call.channels, aside.channels, cell, grad_cell,
                      upstream, depth);
      if (++group == groups) group = 0, below = ahead(call, ++pixel);
    }
    samples.gradients(block, stop, grad_offset_mask);
  }
  if (!direct) {
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < own; ++c)
        grad_x[p * call.channels + c] = Element<S>::narrow(sums[p * own + c]);
    free(sums);
  }
  return true;
}

template <class S, int D, int P>
bool backward(const dcnv3_call& call, const void* grad_output, const void* inputs,
              const void* offset_mask, void* grad_inputs, void* grad_offset_mask, int64_t begin,
              int64_t end) {
  const int64_t tasks = ceil_div(call.groups, kTaskGroups);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % tasks * kTaskGroups, rest = call.groups - first;
    if (!backward_task<S, D, P>(
            call, static_cast<const S*>(grad_output), static_cast<const S*>(inputs),
            static_cast<const S*>(offset_mask), static_cast<S*>(grad_inputs),
            static_cast<S*>(grad_offset_mask), task / tasks, first,
            rest < kTaskGroups ? rest : kTaskGroups))
      return false;
  }
  return true;
}

/* ---- the choice among them -------------------------------------------------------------------- */

#define DCNV3_CHOOSE(pass, S, ...)                                                  \
  (call.points == 9 && depth == 16   ? pass<S, 16, 9>(__VA_ARGS__)                  \
   : call.points == 9 && depth == 32 ? pass<S, 32, 9>(__VA_ARGS__)                  \
   : depth == 16                     ? pass<S, 16, 0>(__VA_ARGS__)                  \
   : depth == 32                     ? pass<S, 32, 0>(__VA_ARGS__)                  \
                                     : pass<S, 0, 0>(__VA_ARGS__))

#define DCNV3_DISPATCH(pass, ...)                                          \
  const int64_t depth = call.channels / call.groups;                       \
  switch (call.dtype) {                                                    \
    case DCNV3_FLOAT32: return DCNV3_CHOOSE(pass, float, __VA_ARGS__);     \
    case DCNV3_BFLOAT16: return DCNV3_CHOOSE(pass, BFloat16, __VA_ARGS__); \
    case DCNV3_FLOAT16: return DCNV3_CHOOSE(pass, Float16, __VA_ARGS__);   \
    default: return pass<double, 0, 0>(__VA_ARGS__);                       \
  }

bool run_forward(const dcnv3_call& call, const void* inputs, const void* offset_mask, void* output,
                 int64_t begin, int64_t end) {
  DCNV3_DISPATCH(forward, call, inputs, offset_mask, output, begin, end)
}

bool run_backward(const dcnv3_call& call, const void* grad_output, const void* inputs,
                  const void* offset_mask, void* grad_inputs, void* grad_offset_mask, int64_t begin,
                  int64_t end) {
  DCNV3_DISPATCH(backward, call, grad_output, inputs, offset_mask, grad_inputs, grad_offset_mask,
                 begin, end)
}

#define DCNV3_NAME(isa) DCNV3_STRING(isa)
#define DCNV3_STRING(isa) #isa

}  // namespace

extern const Kernels kernels = {DCNV3_NAME(DCNV3_ISA), run_forward, run_backward};

}  // namespace DCNV3_ISA
}  // namespace dcnv3
