/* Where the samples of a site lie and what they weigh.
 *
 * A site is an (output pixel, group) pair. `lanes` neighbouring threads of a warp serve it: each
 * locates every lanes-th of its samples and leaves them in shared memory for the others, and each
 * owns every lanes-th pack of its channels. No site crosses a warp, so no block ever waits. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CUDA_SAMPLES_CUH
#define KERAS_INTERNIMAGE_DCNV3_CUDA_SAMPLES_CUH

#include "cuda_types.cuh"

namespace dcnv3 {

constexpr float kFar = 16777216.0f; /* 2^24 pixels: outside every image */

struct Position {
  Cell cell;
  float u, v; /* in the cell: to the right, and down */
};

/* The integer part of a position is kept apart from its fraction, so that precision does not fall
 * with the distance from the image's corner. */
__device__ inline Position locate(const Geometry& k, const Tap& tap, float dx, float dy,
                                  int origin_x, int origin_y) {
  const float x = fmaf(k.scale, dx, tap.u), y = fmaf(k.scale, dy, tap.v);
  if (!(fabsf(x) < kFar && fabsf(y) < kFar)) return {{-2, -2}, 0.0f, 0.0f}; /* NaN too */
  const float floor_x = floorf(x), floor_y = floorf(y);
  return {{origin_x + tap.x + int(floor_x), origin_y + tap.y + int(floor_y)},
          x - floor_x, y - floor_y};
}

/* What the corners of a cell weigh, times `m`. */
__device__ inline float4 corner_weights(float u, float v, float m) {
  const float lower = m * v, upper = m - lower;
  const float upper_right = upper * u, lower_right = lower * u;
  return make_float4(upper - upper_right, upper_right, lower - lower_right, lower_right);
}

/* Sums over the lanes of a site; every lane gets the result. All threads of a warp must call. */
template <int lanes>
__device__ float lanes_sum(float value) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kWarp, value, step);
  return value;
}
template <int lanes>
__device__ float lanes_max(float value) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2)
    value = fmaxf(value, __shfl_xor_sync(kWarp, value, step));
  return value;
}

/* The samples of one site in shared memory: a float4 and a cell for each, sample `p` of all the
 * block's sites side by side, which avoids bank conflicts. */
struct Slots {
  float4* values;
  int2* cells;
  int stride;

  __device__ float4& value(int p) const { return values[p * stride]; }
  __device__ void set_cell(int p, Cell cell) const {
    cells[p * stride] = make_int2(cell.x, cell.y);
  }
  __device__ Cell cell(int p) const {
    const int2 cell = cells[p * stride];
    return {cell.x, cell.y};
  }
};
constexpr size_t kSlotBytes = sizeof(float4) + sizeof(int2);

extern __shared__ float4 shared_memory[];

__device__ inline Slots slots_of_site(int points, int site, int sites) {
  int2* cells = reinterpret_cast<int2*>(shared_memory + points * sites);
  return {shared_memory + site, cells + site, sites};
}

/* The site of a thread: where its output pixel is, and where its part of the tensors starts. */
template <int lanes>
struct Site {
  int local, lane, group, origin_x, origin_y;
  unsigned pixel;
  bool active; /* the last block has threads to spare: they do the last site's work, unseen */

  __device__ explicit Site(const Geometry& k) {
    local = threadIdx.x / lanes;
    lane = threadIdx.x % lanes;
    unsigned site = blockIdx.x * (blockDim.x / lanes) + local;
    active = site < k.sites;
    site = active ? site : k.sites - 1;
    pixel = site / k.groups;
    group = site - pixel * k.groups;
    const int row = pixel / k.out_width, column = pixel - row * k.out_width;
    origin_y = row * k.stride_h + k.origin_y;
    origin_x = column * k.stride_w + k.origin_x;
  }

  __device__ int64_t offsets(const Geometry& k, int64_t image) const {
    return (image * k.pixels + pixel) * k.groups * 3 * k.points + 2 * group * k.points;
  }
  __device__ int64_t masks(const Geometry& k, int64_t image) const {
    return offsets(k, image) + (2 * k.groups - group) * k.points;
  }
  __device__ int64_t outputs(const Geometry& k, int64_t image) const {
    return (image * k.pixels + pixel) * k.channels + group * k.depth;
  }
};

/* The offsets and masks of some of a lane's samples: those from `first` in steps of `lanes`. Past
 * the last sample that one is read again, so that nothing waits for a decision. */
template <int lanes, int size>
struct Batch {
  float dx[size], dy[size], mask[size];

  template <class T>
  __device__ void read_masks(const T* from, int first, int points) {
#pragma unroll
    for (int i = 0; i < size; ++i) mask[i] = to_float(from[min(first + i * lanes, points - 1)]);
  }
  template <class T>
  __device__ void read_offsets(const T* from, int first, int points, bool paired) {
    if (paired) {
#pragma unroll
      for (int i = 0; i < size; ++i) {
        float pair[2];
        load<2>(from + 2 * min(first + i * lanes, points - 1)).to_floats(pair);
        dx[i] = pair[0], dy[i] = pair[1];
      }
    } else {
#pragma unroll
      for (int i = 0; i < size; ++i) {
        const T* pair = from + 2 * min(first + i * lanes, points - 1);
        dx[i] = to_float(pair[0]), dy[i] = to_float(pair[1]);
      }
    }
  }
};

/* Locates the samples of a site and leaves them in `slots`: the corners' weights times the mask
 * where `weighted`, else (u, v, mask, 0). `count` is the number of points, or 0 if not known when
 * compiling: then samples are read one by one, and their masks three times. Returns whether all the
 * cells of all the warp's sites lie inside the image. All threads of a warp must call. */
template <int lanes, int count, bool weighted, class T>
__device__ bool locate_samples(const Geometry& k, const Site<lanes>& site, const T* offset,
                               const T* mask, const Slots& slots) {
  constexpr bool known = count > 0;
  constexpr int size = known ? (count + lanes - 1) / lanes : 1;
  const int points = known ? count : k.points;
  Batch<lanes, size> batch;
  if (known) {
    batch.read_offsets(offset, site.lane, points, k.paired);
    batch.read_masks(mask, site.lane, points);
  }
  float top = -INFINITY, factor = 1.0f;
  if (k.softmax) {
    for (int first = site.lane; first < points; first += size * lanes) {
      if (!known) batch.read_masks(mask, first, points);
#pragma unroll
      for (int i = 0; i < size; ++i) top = fmaxf(top, batch.mask[i]);
    }
    top = lanes_max<lanes>(top);
    float total = 0.0f;
    for (int first = site.lane; first < points; first += size * lanes) {
      if (!known) batch.read_masks(mask, first, points);
#pragma unroll
      for (int i = 0; i < size; ++i) {
        batch.mask[i] = __expf(batch.mask[i] - top);
        if (first + i * lanes < points) total += batch.mask[i];
      }
    }
    factor = __fdividef(1.0f, lanes_sum<lanes>(total));
  }
  bool all_inside = true;
  for (int first = site.lane; first < points; first += size * lanes) {
    if (!known) {
      batch.read_offsets(offset, first, points, k.paired);
      batch.read_masks(mask, first, points);
      if (k.softmax) batch.mask[0] = __expf(batch.mask[0] - top);
    }
#pragma unroll
    for (int i = 0; i < size; ++i) {
      const int p = first + i * lanes;
      if (p < points) {
        const Position at = locate(k, known ? k.taps[p] : locate_tap(k, p), batch.dx[i],
                                   batch.dy[i], site.origin_x, site.origin_y);
        const float m = batch.mask[i] * factor;
        slots.value(p) =
            weighted ? corner_weights(at.u, at.v, m) : make_float4(at.u, at.v, m, 0.0f);
        slots.set_cell(p, at.cell);
        all_inside = all_inside && inside(k, at.cell);
      }
    }
  }
  all_inside = __all_sync(kWarp, all_inside);
  __syncwarp();
  return all_inside;
}

}  // namespace dcnv3
#endif
