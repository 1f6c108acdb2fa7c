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

/* The samples of one site in shared memory: for each a float4, and a Cell or Place. Sample `p` of
 * all the warp's sites lie side by side, which avoids bank conflicts, in memory of the warp's own,
 * which leaves distances that are known when compiling. */
template <int lanes>
struct Slots {
  static constexpr int sites = 32 / lanes;
  float4* values;
  uint2* places;

  __device__ explicit Slots(int points);

  /* Of sample `p`; of the site `neighbour` places further, if given. */
  __device__ float4& value(int p, int neighbour = 0) const { return values[p * sites + neighbour]; }
  __device__ Cell cell(int p) const {
    const uint2 cell = places[p * sites];
    return {int(cell.x), int(cell.y)};
  }
  __device__ Place place(int p, int neighbour = 0) const {
    const uint2 place = places[p * sites + neighbour];
    return {place.x, place.y};
  }
  __device__ void set(int p, Cell cell) const {
    places[p * sites] = make_uint2(unsigned(cell.x), unsigned(cell.y));
  }
  __device__ void set(int p, Place place) const {
    places[p * sites] = make_uint2(place.pixel, place.corners);
  }
};
constexpr size_t kSlotBytes = sizeof(float4) + sizeof(uint2);

extern __shared__ float4 shared_memory[];

template <int lanes>
__device__ Slots<lanes>::Slots(int points) {
  const int count = points * sites, site = threadIdx.x % 32 / lanes;
  char* memory = reinterpret_cast<char*>(shared_memory) + threadIdx.x / 32 * count * kSlotBytes;
  values = reinterpret_cast<float4*>(memory) + site;
  places = reinterpret_cast<uint2*>(memory + count * sizeof(float4)) + site;
}

/* The image of a block. Past the last one there may be blocks to spare. */
__device__ inline int64_t image_of_block() { return int64_t(blockIdx.z) * gridDim.y + blockIdx.y; }

/* The site of a thread: where its output pixel is, and where its part of the tensors starts. */
template <int lanes>
struct Site {
  int lane, group, origin_x, origin_y;
  unsigned index, pixel; /* index: in the image, also past the last one */
  bool active; /* the last block has threads to spare: they do the last site's work, unseen */

  __device__ explicit Site(const Geometry& k) {
    lane = threadIdx.x % lanes;
    index = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    active = index < k.sites;
    const unsigned site = active ? index : k.sites - 1;
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
  /* `paired`: of all pixels. Where G * P is odd, it would be of every second pixel; most warps have
   * sites of several, and would issue both kinds of loads. */
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

/* Locates the samples of a site and leaves them in `slots`. Where `weighted`, those are the corners'
 * weights times the mask, and cells; else (u, v, mask, the bits of the group's first channel), and
 * places, without corners for a thread to spare. `count` is the number of points, or 0 if not known
 * when compiling: then samples are read one by one, and their masks three times. Returns whether all
 * the cells of all the warp's sites lie inside the image, and no place is without corners. All
 * threads of a warp must call. */
template <int lanes, int count, bool weighted, class T>
__device__ bool locate_samples(const Geometry& k, const Site<lanes>& site, const T* offset,
                               const T* mask, const Slots<lanes>& slots) {
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
        if constexpr (weighted) {
          slots.value(p) = corner_weights(at.u, at.v, m);
          slots.set(p, at.cell);
          all_inside = all_inside && inside(k, at.cell);
        } else {
          const Place place = site.active ? place_of(k, at.cell) : Place{0, 0};
          slots.value(p) = make_float4(at.u, at.v, m, __int_as_float(site.group * k.depth));
          slots.set(p, place);
          all_inside = all_inside && place.corners == kAllCorners;
        }
      }
    }
  }
  all_inside = __all_sync(kWarp, all_inside);
  __syncwarp();
  return all_inside;
}

}  // namespace dcnv3
#endif
