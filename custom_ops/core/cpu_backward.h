/* The backward pass on a processor: gradients of images, offsets and masks. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CPU_BACKWARD_H
#define KERAS_INTERNIMAGE_DCNV3_CPU_BACKWARD_H

#include <stdlib.h>

#include "cpu.h"
#include "cpu_forward.h"
#include "cpu_samples.h"
#include "cpu_vector.h"

namespace dcnv3 {
namespace DCNV3_ISA {
namespace {

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

}  // namespace
}  // namespace DCNV3_ISA
}  // namespace dcnv3
#endif
