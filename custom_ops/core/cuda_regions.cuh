/* RoIAlign and its gradient. Bilinear samples on a grid are separable: a pixel weighs in a bin what
 * it weighs along one axis times what it does along the other. A warp computes such weights for
 * several pixels, or bins, of both axes at once, a lane each, and then goes through the pairs,
 * reading and summing whole packs of channels.
 *
 * Forward a warp owns a bin; backward it owns a pixel of a map and goes through all regions of its
 * image in their order. So nobody else writes what a warp writes: there are no atomic additions, no
 * memory beside the results, and bits are the same in every run and for an image in any batch. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CUDA_REGIONS_CUH
#define KERAS_INTERNIMAGE_DCNV3_CUDA_REGIONS_CUH

#include "cuda_samples.cuh"
#include "detection.h"

namespace dcnv3 {

/* One call of RoIAlign as the kernels read it. */
struct Regions {
  int64_t batch, regions; /* of each image */
  int64_t channels;
  int bins, levels;
  unsigned slabs; /* of as many channels as a warp owns */
  unsigned items; /* warps of a region, or backward of an image */
  int heights[DCNV3_MAX_LEVELS], widths[DCNV3_MAX_LEVELS];
  float scales[DCNV3_MAX_LEVELS]; /* pixels of the map in one of the image */
};

/* The maps, or their gradients. */
template <class T>
struct Maps {
  T* of[DCNV3_MAX_LEVELS];
};

/* Lanes of an axis: the first sixteen of a warp are those of columns, the others those of rows. */
constexpr int kAxisLanes = 16;
constexpr unsigned kColumns = 0xffffu;

/* A region along one axis, in pixels of its map: where it begins, and the size of its bins. */
struct Side {
  float begin, extent, bin;
  bool valid; /* or the region is zero */
};

__device__ inline Side locate_side(const Regions& k, const float* box, int level, int axis) {
  const float scale = k.scales[level];
  const float begin = box[axis] * scale - 0.5f, extent = box[axis + 2] * scale - 0.5f - begin;
  const float bin = extent / k.bins;
  /* As NaN compares false, only what is in order passes. */
  return {begin, extent, bin, bin > 0 && begin > -kFar && begin + extent < kFar};
}

/* Samples of a bin along one axis: `base + offset + k * step` for k from 0 to `count`. The integer
 * is kept apart, so that precision does not fall with the distance from the map's corner. */
struct Samples {
  int base, count;
  float offset, step, share;
};

__device__ inline Samples locate_samples(const Side& side, int index) {
  Samples s;
  const float count = ceilf(side.bin), number = float(index);
  s.count = int(count), s.share = 1.0f / count, s.step = side.bin / count;
  /* Where the bin begins, as a sum and what rounding took from it. */
  const float product = __fmul_rn(side.bin, number);
  const float sum = __fadd_rn(side.begin, product), part = __fsub_rn(sum, side.begin);
  const float lost = __fadd_rn(__fsub_rn(side.begin, __fsub_rn(sum, part)),
                               __fsub_rn(product, part)) +
                     __fmaf_rn(side.bin, number, -product);
  const float whole = floorf(sum);
  s.base = int(whole), s.offset = (sum - whole) + (lost + 0.5f * s.step);
  if (s.count > 1 && s.base < -2) {
    /* Samples in front of the map have no bound: nearly all that are outside are passed over. */
    const double step = double(s.step) + double(__fmaf_rn(-s.step, count, side.bin) * s.share);
    const double first = double(side.begin) + double(side.bin) * number + 0.5 * step;
    const double before = floor((-1.0 - first) * double(1.0f / s.step) * (1.0 - 1e-6)) - 1.0;
    const double outside = fmin(before, double(count) - 1.0);
    if (outside > 0) {
      const double place = first + outside * step, lower = floor(place);
      s.base = int(lower), s.offset = float(place - lower), s.count -= int(outside);
    }
  }
  return s;
}

/* What a pixel weighs in a bin. Samples further than a pixel from it have no part in it, and at the
 * ends of the map those outside lie on the last pixel. Where there are more than two they are at
 * least 2/3 of a pixel apart: three are that near, and one more on each side in case of rounding. */
__device__ inline float weight_of(const Samples& s, int pixel, int size) {
  const float at = float(pixel - s.base);
  const float first = float(-s.base), last = float(size - 1 - s.base);
  const float before = s.count > 1 ? floorf(__fdividef(at - 1.0f - s.offset, s.step)) - 1.0f : 0.0f;
  const int begin = int(fminf(fmaxf(before, 0.0f), float(s.count)));
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 5; ++i) {
    const float place = fmaf(float(begin + i), s.step, s.offset);
    const bool counts = begin + i < s.count && place >= first - 1.0f && place <= last + 1.0f;
    const float distance = fabsf(fminf(fmaxf(place, first), last) - at);
    sum += counts ? fmaxf(1.0f - distance, 0.0f) : 0.0f;
  }
  return sum * s.share;
}

/* The pixels that a bin may have samples of. Where it has none there may be one, of no weight. */
__device__ inline int2 pixels_of(const Samples& s, int size) {
  const int end = s.base + int(fmaf(float(s.count - 1), s.step, s.offset)) + 1;
  return make_int2(min(max(s.base, 0), size - 1), min(max(end, 0), size - 1));
}

/* Weights other than zero follow one another: these are the first one's lane, and their number. */
__device__ inline int2 lanes_of(unsigned mask) { return make_int2(__ffs(mask) - 1, __popc(mask)); }

/* Calls `add(column, row, weight)` for all pairs of lanes of both axes whose weights are not zero;
 * columns and rows are counted from the axis' first lane. All threads of a warp must call. */
template <class Add>
__device__ void for_pairs(float weight, Add add) {
  const unsigned found = __ballot_sync(kWarp, weight != 0.0f);
  if (!(found & kColumns) || !(found & ~kColumns)) return;
  const int2 columns = lanes_of(found & kColumns), rows = lanes_of(found & ~kColumns);
  for (int i = 0; i < rows.y; ++i) {
    const float by_row = __shfl_sync(kWarp, weight, rows.x + i);
#pragma unroll 4
    for (int j = 0; j < columns.y; ++j)
      add(columns.x + j, rows.x + i - kAxisLanes,
          by_row * __shfl_sync(kWarp, weight, columns.x + j));
  }
}

template <int pack, class T>
__device__ void add_pack(const T* from, float weight, float (&sums)[pack]) {
  float values[pack];
  load<pack>(from).to_floats(values);
#pragma unroll
  for (int i = 0; i < pack; ++i) sums[i] = fmaf(weight, values[i], sums[i]);
}

/* Grid: bins and slabs of a region, and the regions of all images in two axes. */
template <class T, int pack>
__global__ void __launch_bounds__(kThreads, 4)
    roi_align_kernel(const __grid_constant__ Regions k, const __grid_constant__ Maps<const T> maps,
                     const float* __restrict__ boxes, const int32_t* __restrict__ levels,
                     T* __restrict__ output) {
  const int64_t region = image_of_block();
  const unsigned item = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  if (region >= k.batch * k.regions || item >= k.items) return; /* whole warps */
  const int lane = threadIdx.x % 32, axis = lane / kAxisLanes;
  const int64_t channel = int64_t(item % k.slabs) * (32 * pack) + lane * pack;
  const int cell = int(item / k.slabs), level = levels[region];
  const bool reads = channel < k.channels;
  float sums[pack] = {};
  if (level >= 0 && level < k.levels) {
    const int width = k.widths[level], height = k.heights[level];
    const int size = axis ? height : width;
    const Side side = locate_side(k, boxes + 4 * region, level, axis);
    if (__all_sync(kWarp, side.valid)) {
      const Samples samples = locate_samples(side, axis ? cell / k.bins : cell % k.bins);
      const int2 own = pixels_of(samples, size);
      const int left = __shfl_sync(kWarp, own.x, 0), right = __shfl_sync(kWarp, own.y, 0);
      const int top = __shfl_sync(kWarp, own.x, kAxisLanes);
      const int bottom = __shfl_sync(kWarp, own.y, kAxisLanes);
      const T* map = maps.of[level] + region / k.regions * height * width * k.channels + channel;
      for (int y = top; y <= bottom; y += kAxisLanes)
        for (int x = left; x <= right; x += kAxisLanes) {
          const int pixel = (axis ? y : x) + lane % kAxisLanes;
          const float weight = pixel <= own.y ? weight_of(samples, pixel, size) : 0.0f;
          for_pairs(weight, [&](int column, int row, float product) {
            if (reads)
              add_pack<pack>(map + (int64_t(y + row) * width + x + column) * k.channels, product,
                             sums);
          });
        }
    }
  }
  if (reads)
    store(output + (region * k.bins * k.bins + cell) * k.channels + channel, sums);
}

/* Whether a region may have samples within a pixel of one. */
__device__ inline bool comes_near(const Side& side, int pixel) {
  return side.valid && side.begin <= float(pixel) + 1.0f &&
         side.begin + side.extent >= float(pixel) - 1.0f;
}

/* Grid: pixels of all maps and slabs of an image, and images in two axes. */
template <class T, int pack>
__global__ void __launch_bounds__(kThreads, 4)
    roi_align_backward_kernel(const __grid_constant__ Regions k,
                              const __grid_constant__ Maps<T> grads,
                              const T* __restrict__ grad_output, const float* __restrict__ boxes,
                              const int32_t* __restrict__ levels) {
  const int64_t n = image_of_block();
  const unsigned item = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  if (n >= k.batch || item >= k.items) return; /* whole warps */
  const int lane = threadIdx.x % 32, axis = lane / kAxisLanes;
  const int64_t channel = int64_t(item % k.slabs) * (32 * pack) + lane * pack;
  const bool writes = channel < k.channels;
  unsigned pixel = item / k.slabs;
  int level = 0;
  for (unsigned pixels; pixel >= (pixels = unsigned(k.heights[level]) * k.widths[level]); ++level)
    pixel -= pixels;
  const int width = k.widths[level], height = k.heights[level];
  const int x = pixel % width, y = pixel / width;
  const int own = axis ? y : x, size = axis ? height : width;
  const int64_t cells = int64_t(k.bins) * k.bins, first_region = n * k.regions;
  float sums[pack] = {};
  for (int64_t first = 0; first < k.regions; first += 32) {
    bool near = false;
    if (first + lane < k.regions && levels[first_region + first + lane] == level) {
      const float* box = boxes + 4 * (first_region + first + lane);
      near = comes_near(locate_side(k, box, level, 0), x) &&
             comes_near(locate_side(k, box, level, 1), y);
    }
    for (unsigned found = __ballot_sync(kWarp, near); found; found &= found - 1) {
      const int64_t region = first_region + first + __ffs(found) - 1;
      const Side side = locate_side(k, boxes + 4 * region, level, axis);
      const T* upstream = grad_output + region * cells * k.channels + channel;
      for (int i = 0; i < k.bins; i += kAxisLanes)
        for (int j = 0; j < k.bins; j += kAxisLanes) {
          const int bin = (axis ? i : j) + lane % kAxisLanes;
          const float weight =
              bin < k.bins ? weight_of(locate_samples(side, bin), own, size) : 0.0f;
          for_pairs(weight, [&](int column, int row, float product) {
            if (writes)
              add_pack<pack>(upstream + (int64_t(i + row) * k.bins + j + column) * k.channels,
                             product, sums);
          });
        }
    }
  }
  if (writes)
    store(grads.of[level] + ((n * height + y) * width + x) * k.channels + channel, sums);
}

}  // namespace dcnv3
#endif
