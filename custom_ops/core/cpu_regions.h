/* RoIAlign on a processor. Bilinear samples on a grid are separable: with the weights of rows and
 * of columns in each bin, rows are summed first, then columns. That reads a pixel once for each row
 * of bins that it has a part in, in whole vectors of channels. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CPU_REGIONS_H
#define KERAS_INTERNIMAGE_DCNV3_CPU_REGIONS_H

#include <stdlib.h>

#include "cpu.h"
#include "cpu_vector.h"

namespace dcnv3 {
namespace DCNV3_ISA {
namespace {

/* The pixels along one axis that samples of each bin read, and their weights. */
template <class A>
struct Axis {
  int64_t bins;
  int64_t *start, *length, *offset; /* of a bin: its first pixel, their number, its first weight */
  A* weight;
  int64_t first, end; /* pixels of all bins */

  /* Takes memory for its integers, and returns what follows. */
  int64_t* use(int64_t number, int64_t* memory) {
    bins = number;
    start = memory, length = memory + bins, offset = memory + 2 * bins;
    return memory + 3 * bins;
  }

  /* False if no bin has a sample. `side` is where the box begins and how long it is, in pixels. */
  bool locate(A begin, A extent, int64_t size) {
    const A bin = extent / A(bins);
    /* As NaN compares false, only what is in order passes. */
    if (!(bin > 0 && begin > -A(kFar) && begin + extent < A(kFar))) return false;
    const double samples = double(__builtin_ceil(double(bin)));
    const double step = double(bin) / samples, last = double(size - 1);
    const A share = A(1) / A(samples);
    int64_t used = 0;
    first = size, end = 0;
    for (int64_t i = 0; i < bins; ++i) {
      const double origin = double(begin) + double(bin) * double(i);
      start[i] = 0, length[i] = 0, offset[i] = used;
      A* const w = weight + used;
      int64_t n = 0;
      /* Samples outside are not visited: their number has no bound. */
      const double low = __builtin_ceil((-1 - origin) / step - 0.5) - 1;
      const double high = __builtin_floor((double(size) - origin) / step - 0.5) + 1;
      const double from = low > 0 ? low : 0, to = high < samples - 1 ? high : samples - 1;
      for (double k = from; k <= to; k += 1) {
        double place = origin + (k + 0.5) * step;
        if (!(place >= -1 && place <= double(size))) continue;
        place = place > 0 ? place : 0;
        place = place < last ? place : last;
        const int64_t pixel = int64_t(place);
        const A upper = A(place - double(pixel));
        if (n == 0) start[i] = pixel;
        const int64_t at = pixel - start[i];
        while (n <= at + (pixel + 1 < size)) w[n++] = 0;
        w[at] += share - upper * share;
        if (pixel + 1 < size) w[at + 1] += upper * share;
      }
      while (n > 0 && w[n - 1] == 0) --n; /* no product of zero and an infinite pixel */
      length[i] = n, used += n;
      if (n == 0) continue;
      if (start[i] < first) first = start[i];
      if (start[i] + n > end) end = start[i] + n;
    }
    return end > first;
  }
};

/* Channels that are summed at once: vectors of them, or one. */
template <class S, int vectors>
struct Vectors {
  typedef typename Element<S>::Acc A;
  typedef typename Lanes<A>::V V;
  static constexpr int count = vectors;
  static constexpr int channels = vectors * Lanes<A>::count;
  static constexpr int lanes = Lanes<A>::count;
  static inline V read(const S* from) { return Element<S>::load_vector(from); }
  static inline void write(S* to, const V& v) { Element<S>::store_vector(to, v); }
  static inline V get(const A* from) { return load<V>(from); }
  static inline void put(A* to, const V& v) { store(to, v); }
};

template <class S>
struct Single {
  typedef typename Element<S>::Acc A;
  typedef A V;
  static constexpr int count = 1, channels = 1, lanes = 1;
  static inline V read(const S* from) { return Element<S>::widen(*from); }
  static inline void write(S* to, V v) { *to = Element<S>::narrow(v); }
  static inline V get(const A* from) { return *from; }
  static inline void put(A* to, V v) { *to = v; }
};

/* What a range of regions, or a task, needs beside its arguments. */
template <class S>
struct Pooling {
  typedef typename Element<S>::Acc A;
  static constexpr int block = 4 * Lanes<A>::count; /* channels in a row of `row` */
  static constexpr int64_t kAlign = 64;

  const dcnv3_regions& call;
  Axis<A> x, y;
  A* row;
  void* memory;

  explicit Pooling(const dcnv3_regions& call) : call(call) {
    int64_t width = 0, height = 0;
    for (int l = 0; l < call.levels; ++l) {
      if (call.widths[l] > width) width = call.widths[l];
      if (call.heights[l] > height) height = call.heights[l];
    }
    /* Neighbouring bins share two pixels at most. */
    const int64_t shared = 3 * call.bins + 4;
    const int64_t integers = 6 * call.bins * int64_t(sizeof(int64_t));
    const int64_t weights = (width + height + 2 * shared) * int64_t(sizeof(A));
    memory = malloc(size_t(integers + weights + width * block * int64_t(sizeof(A)) + 2 * kAlign));
    if (memory == nullptr) return;
    int64_t* next = static_cast<int64_t*>(memory);
    next = x.use(call.bins, next);
    next = y.use(call.bins, next);
    x.weight = reinterpret_cast<A*>(next);
    y.weight = x.weight + width + shared;
    const uintptr_t rest = reinterpret_cast<uintptr_t>(y.weight + height + shared);
    row = reinterpret_cast<A*>((rest + kAlign - 1) / kAlign * kAlign);
  }
  ~Pooling() { free(memory); }
  Pooling(const Pooling&) = delete;

  /* False if the region is zero. */
  bool locate(const A* box, int32_t level) {
    if (level < 0 || level >= call.levels) return false;
    const A scale = A(1 / call.strides[level]);
    const A left = box[0] * scale - A(0.5), top = box[1] * scale - A(0.5);
    const A right = box[2] * scale - A(0.5), bottom = box[3] * scale - A(0.5);
    return x.locate(left, right - left, call.widths[level]) &&
           y.locate(top, bottom - top, call.heights[level]);
  }

  /* `to[i, j] = sum of weights and pixels` for `P::channels` channels. */
  template <class P>
  void pool(const S* map, int64_t width, S* to) {
    typedef typename P::V V;
    const int64_t channels = call.channels, columns = x.end - x.first;
    for (int64_t i = 0; i < call.bins; ++i) {
      const A* const by_row = y.weight + y.offset[i];
      const int64_t rows = y.length[i];
      const S* const corner = map + (y.start[i] * width + x.first) * channels;
      for (int64_t c = 0; c < columns; ++c) {
        V sum[P::count] = {};
        const S* from = corner + c * channels;
        for (int64_t r = 0; r < rows; ++r, from += width * channels) {
#pragma GCC unroll 4
          for (int k = 0; k < P::count; ++k) sum[k] += by_row[r] * P::read(from + k * P::lanes);
        }
#pragma GCC unroll 4
        for (int k = 0; k < P::count; ++k) P::put(row + c * P::channels + k * P::lanes, sum[k]);
      }
      for (int64_t j = 0; j < call.bins; ++j, to += channels) {
        V sum[P::count] = {};
        const A* const by_column = x.weight + x.offset[j];
        const A* from = row + (x.start[j] - x.first) * P::channels;
        for (int64_t c = 0; c < x.length[j]; ++c, from += P::channels) {
#pragma GCC unroll 4
          for (int k = 0; k < P::count; ++k) sum[k] += by_column[c] * P::get(from + k * P::lanes);
        }
#pragma GCC unroll 4
        for (int k = 0; k < P::count; ++k) P::write(to + k * P::lanes, sum[k]);
      }
    }
  }

  /* The transposed: adds weights and gradients to the pixels, `stride` elements apart. */
  template <class P>
  void scatter(const S* grad, A* map, int64_t width, int64_t stride) {
    typedef typename P::V V;
    const int64_t columns = x.end - x.first;
    for (int64_t i = 0; i < call.bins; ++i) {
      for (int64_t c = 0; c < columns * P::channels; ++c) row[c] = 0;
      for (int64_t j = 0; j < call.bins; ++j, grad += call.channels) {
        V g[P::count];
#pragma GCC unroll 4
        for (int k = 0; k < P::count; ++k) g[k] = P::read(grad + k * P::lanes);
        const A* const by_column = x.weight + x.offset[j];
        A* into = row + (x.start[j] - x.first) * P::channels;
        for (int64_t c = 0; c < x.length[j]; ++c, into += P::channels) {
#pragma GCC unroll 4
          for (int k = 0; k < P::count; ++k)
            P::put(into + k * P::lanes, V(P::get(into + k * P::lanes) + by_column[c] * g[k]));
        }
      }
      for (int64_t r = 0; r < y.length[i]; ++r) {
        const A by_row = y.weight[y.offset[i] + r];
        A* into = map + ((y.start[i] + r) * width + x.first) * stride;
        const A* from = row;
        for (int64_t c = 0; c < columns; ++c, into += stride, from += P::channels) {
#pragma GCC unroll 4
          for (int k = 0; k < P::count; ++k)
            P::put(into + k * P::lanes,
                   V(P::get(into + k * P::lanes) + by_row * P::get(from + k * P::lanes)));
        }
      }
    }
  }
};

template <class S>
bool roi_align(const dcnv3_regions& call, const void* const* maps, const void* boxes,
               const int32_t* levels, void* output, int64_t begin, int64_t end) {
  typedef typename Element<S>::Acc A;
  constexpr int count = Lanes<A>::count;
  Pooling<S> pooling(call);
  if (pooling.memory == nullptr) return false;
  const int64_t channels = call.channels, size = call.bins * call.bins * channels;
  for (int64_t region = begin; region < end; ++region) {
    S* const to = static_cast<S*>(output) + region * size;
    const int32_t level = levels[region];
    if (!pooling.locate(static_cast<const A*>(boxes) + 4 * region, level)) {
      memset(to, 0, size_t(size) * sizeof(S));
      continue;
    }
    const int64_t width = call.widths[level];
    const S* const map = static_cast<const S*>(maps[level]) +
                         region / call.regions * call.heights[level] * width * channels;
    int64_t c = 0;
    for (; c + 4 * count <= channels; c += 4 * count)
      pooling.template pool<Vectors<S, 4>>(map + c, width, to + c);
    for (; c + count <= channels; c += count)
      pooling.template pool<Vectors<S, 1>>(map + c, width, to + c);
    for (; c < channels; ++c) pooling.template pool<Single<S>>(map + c, width, to + c);
  }
  return true;
}

/* The gradients of `own` channels of one image's maps. */
template <class S>
bool roi_align_backward_task(Pooling<S>& pooling, const S* grad_output,
                             const typename Element<S>::Acc* boxes, const int32_t* levels,
                             void* const* grad_maps, int64_t image, int64_t channel, int64_t own) {
  typedef typename Element<S>::Acc A;
  constexpr int count = Lanes<A>::count;
  constexpr bool direct = sizeof(S) == sizeof(A);
  const dcnv3_regions& call = pooling.call;
  const int64_t channels = call.channels, stride = direct ? channels : own;
  /* Sums need their full precision: narrow elements are summed aside and rounded in the end. */
  A* aside = nullptr;
  A* sums[DCNV3_MAX_LEVELS];
  S* grads[DCNV3_MAX_LEVELS];
  int64_t pixels[DCNV3_MAX_LEVELS], total = 0;
  for (int l = 0; l < call.levels; ++l) total += pixels[l] = call.heights[l] * call.widths[l];
  if (!direct) {
    aside = static_cast<A*>(calloc(size_t(total * own), sizeof(A)));
    if (aside == nullptr) return false;
  }
  total = 0;
  for (int l = 0; l < call.levels; total += pixels[l++]) {
    grads[l] = static_cast<S*>(grad_maps[l]) + image * pixels[l] * channels + channel;
    sums[l] = direct ? reinterpret_cast<A*>(grads[l]) : aside + total * own;
    if (!direct) continue;
    for (int64_t p = 0; p < pixels[l]; ++p) memset(sums[l] + p * channels, 0, own * sizeof(A));
  }
  for (int64_t region = image * call.regions; region < (image + 1) * call.regions; ++region) {
    const int32_t level = levels[region];
    if (!pooling.locate(boxes + 4 * region, level)) continue;
    const S* g = grad_output + region * call.bins * call.bins * channels + channel;
    A* const to = sums[level];
    const int64_t width = call.widths[level];
    int64_t c = 0;
    for (; c + 4 * count <= own; c += 4 * count)
      pooling.template scatter<Vectors<S, 4>>(g + c, to + c, width, stride);
    for (; c + 2 * count <= own; c += 2 * count)
      pooling.template scatter<Vectors<S, 2>>(g + c, to + c, width, stride);
    for (; c + count <= own; c += count)
      pooling.template scatter<Vectors<S, 1>>(g + c, to + c, width, stride);
    for (; c < own; ++c) pooling.template scatter<Single<S>>(g + c, to + c, width, stride);
  }
  for (int l = 0; !direct && l < call.levels; ++l)
    for (int64_t p = 0; p < pixels[l]; ++p)
      for (int64_t c = 0; c < own; ++c)
        grads[l][p * channels + c] = Element<S>::narrow(sums[l][p * own + c]);
  free(aside);
  return true;
}

template <class S>
bool roi_align_backward(const dcnv3_regions& call, const void* grad_output, const void* boxes,
                        const int32_t* levels, void* const* grad_maps, int64_t begin,
                        int64_t end) {
  typedef typename Element<S>::Acc A;
  Pooling<S> pooling(call);
  if (pooling.memory == nullptr) return false;
  const int64_t tasks = ceil_div(call.channels, kTaskChannels);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t channel = task % tasks * kTaskChannels, rest = call.channels - channel;
    if (!roi_align_backward_task<S>(pooling, static_cast<const S*>(grad_output),
                                    static_cast<const A*>(boxes), levels, grad_maps, task / tasks,
                                    channel, rest < kTaskChannels ? rest : kTaskChannels))
      return false;
  }
  return true;
}

}  // namespace
}  // namespace DCNV3_ISA
}  // namespace dcnv3
#endif
