/* The gradient of the inputs without atomics: to the last bit the same in every run, on every GPU,
 * and for an image in any batch.
 *
 * The output is cut into tiles: some pixels, and up to 32 channels of one group. A warp owns a tile
 * and goes through all samples of its image and group that touch the tile, in their order. So each
 * number is a sum in an order of its own, however large tiles are and whenever warps run. Offsets
 * may point anywhere. Where they are small, as they mostly are, most sites are passed over at the
 * sight of their boxes: the pixels that a site's samples touch, which a kernel writes down before.
 */
#ifndef KERAS_INTERNIMAGE_DCNV3_CUDA_ORDERED_CUH
#define KERAS_INTERNIMAGE_DCNV3_CUDA_ORDERED_CUH

#include "cuda_samples.cuh"

namespace dcnv3 {

constexpr int kTileWidth = 8, kTileHeight = 8; /* pixels, at most */
constexpr int kWarps = 4;                      /* of a block, each with a tile of its own */
constexpr int kScanned = 4 * 32;               /* sites that a warp looks at together */

/* What is known of a site beforehand: of the pixels its samples touch the first and the last column
 * and row, 16 bits each, and of its softmax the largest logit and the factor of exponentials. */
struct Summary {
  unsigned columns, rows;
  float top, factor;
};

struct Tiles {
  int width, height, columns, rows; /* pixels of a tile, tiles of an image */
  int channels, slices;             /* channels of a tile, a power of two, and tiles of a group */
  int shift;                        /* by how many bits coordinates in summaries are short */
  unsigned count;                   /* of an image */
};

/* Bytes of shared memory of a block: sums, samples and sites of each warp. */
constexpr size_t kOrderedSample = sizeof(float4) + sizeof(int2);
__host__ __device__ inline size_t tile_bytes(const Tiles& tiles) {
  const size_t sums = sizeof(float) * tiles.width * tiles.height * tiles.channels;
  return (sums + 15) / 16 * 16 + 32 * kOrderedSample + kScanned * sizeof(unsigned);
}

/* The logits of a site, behind all offsets of its pixel. */
template <class T>
__device__ const T* masks_of(const Geometry& k, const T* offset_mask, int64_t pixel, int group) {
  return offset_mask + pixel * k.groups * 3 * k.points + (2 * k.groups + group) * k.points;
}

template <class T>
__device__ Position locate_sample(const Geometry& k, const T* offset_mask, int64_t first_pixel,
                                  unsigned pixel, int group, int p) {
  const T* offset = offset_mask + (first_pixel + pixel) * k.groups * 3 * k.points +
                    2 * (int64_t(group) * k.points + p);
  const int y = pixel / k.out_width, x = pixel - y * k.out_width;
  return locate(k, p < kTaps ? k.taps[p] : locate_tap(k, p), to_float(offset[0]),
                to_float(offset[1]), x * k.stride_w + k.origin_x, y * k.stride_h + k.origin_y);
}

/* One thread summarises one site; those of a group and image lie side by side. */
template <class T>
__global__ void __launch_bounds__(kThreads)
    summary_kernel(const __grid_constant__ Geometry k, const T* __restrict__ offset_mask,
                   Summary* __restrict__ summaries, int shift) {
  const int64_t count = k.batch * k.sites;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kThreads) {
    const unsigned pixel = unsigned(i % k.pixels);
    const int group = int(i / k.pixels % k.groups);
    const int64_t first_pixel = i / k.sites * k.pixels;
    int left = k.width, right = -1, upper = k.height, lower = -1;
    for (int p = 0; p < k.points; ++p) {
      const Cell cell = locate_sample(k, offset_mask, first_pixel, pixel, group, p).cell;
      if (!corners_inside(k, cell)) continue;
      left = min(left, max(cell.x, 0)), right = max(right, min(cell.x + 1, k.width - 1));
      upper = min(upper, max(cell.y, 0)), lower = max(lower, min(cell.y + 1, k.height - 1));
    }
    float top = -INFINITY, sum = 0.0f;
    const T* mask = masks_of(k, offset_mask, first_pixel + pixel, group);
    for (int p = 0; k.softmax && p < k.points; ++p) top = fmaxf(top, to_float(mask[p]));
    for (int p = 0; k.softmax && p < k.points; ++p) sum += __expf(to_float(mask[p]) - top);
    Summary summary = {0xffff, 0xffff, top, __fdividef(1.0f, sum)}; /* ends before it begins */
    if (right >= 0) {
      summary.columns = unsigned(left >> shift) | unsigned(right >> shift) << 16;
      summary.rows = unsigned(upper >> shift) | unsigned(lower >> shift) << 16;
    }
    summaries[i] = summary;
  }
}

/* The tile of a warp. Its lanes share the channels; `corners` says for how many corners of a sample
 * a lane has to care, 4, 2 or 1. Where 2 or 1, the lanes of a channel share the columns, even and
 * odd ones, and then the rows. A number is thus added to by one lane only, which needs no barrier.
 */
template <class T, int corners>
struct Tile {
  const Geometry& k;
  const Tiles& tiles;
  int lane, group, column, row, first_channel, channel, part;
  int64_t image;
  float* sums;
  float4* weights;
  int2* samples; /* site, and the cell in the tile, each coordinate plus one */
  unsigned* sites;

  __device__ Tile(const Geometry& k, const Tiles& tiles, int64_t image, unsigned index)
      : k(k), tiles(tiles), image(image) {
    lane = threadIdx.x % 32;
    const int slice = index % tiles.slices;
    index /= tiles.slices;
    column = index % tiles.columns * tiles.width;
    index /= tiles.columns;
    row = index % tiles.rows * tiles.height;
    group = index / tiles.rows;
    part = lane / tiles.channels;
    first_channel = slice * tiles.channels;
    channel = lane % tiles.channels;
    char* memory = reinterpret_cast<char*>(shared_memory) + threadIdx.x / 32 * tile_bytes(tiles);
    weights = reinterpret_cast<float4*>(memory);
    samples = reinterpret_cast<int2*>(weights + 32);
    sites = reinterpret_cast<unsigned*>(samples + 32);
    sums = reinterpret_cast<float*>(sites + kScanned);
  }

  __device__ int size() const { return tiles.width * tiles.height * tiles.channels; }

  __device__ bool meets(const Summary& summary) const {
    const unsigned left = column >> tiles.shift, upper = row >> tiles.shift;
    const unsigned right = (column + tiles.width - 1) >> tiles.shift;
    const unsigned lower = (row + tiles.height - 1) >> tiles.shift;
    return (summary.columns & 0xffff) <= right && summary.columns >> 16 >= left &&
           (summary.rows & 0xffff) <= lower && summary.rows >> 16 >= upper;
  }

  /* Locates sample `index` of those of the listed sites. Returns how many of the warp's 32 samples
   * touch the tile; they are left side by side, in their order. */
  __device__ int locate_touching(const T* offset_mask, const Summary* summaries, unsigned index,
                                 unsigned count) const {
    bool touches = false;
    float4 weight = {};
    int2 sample = {};
    if (index < count) {
      const unsigned site = sites[index / k.points];
      const int p = index % k.points;
      const int64_t first_pixel = image * k.pixels;
      const Position at = locate_sample(k, offset_mask, first_pixel, site, group, p);
      const int x = at.cell.x - column + 1, y = at.cell.y - row + 1;
      touches = unsigned(x) <= unsigned(tiles.width) && unsigned(y) <= unsigned(tiles.height);
      if (touches) {
        float m = to_float(masks_of(k, offset_mask, first_pixel + site, group)[p]);
        if (k.softmax) m = __expf(m - summaries[site].top) * summaries[site].factor;
        weight = corner_weights(at.u, at.v, m);
        sample = make_int2(int(site), y << 16 | x);
      }
    }
    const unsigned found = __ballot_sync(kWarp, touches);
    if (touches) {
      const int place = __popc(found & ((1u << lane) - 1));
      weights[place] = weight;
      samples[place] = sample;
    }
    return __popc(found);
  }

  /* Adds what the lane owns of a sample. */
  __device__ void add(const T* grad_output, int i) {
    const float4 w = weights[i];
    const int2 sample = samples[i];
    const int x = (sample.y & 0xffff) - 1, y = (sample.y >> 16) - 1;
    const float g = to_float(grad_output[int64_t(unsigned(sample.x)) * k.channels]);
    /* The column, or row, of the two that is this lane's; both, if it has both. */
    const int dx = corners < 4 ? (x ^ part) & 1 : 0, dy = corners < 2 ? (y ^ part >> 1) & 1 : 0;
    if (corners == 4) {
      add_corner(x, y, w.x, g), add_corner(x + 1, y, w.y, g);
      add_corner(x, y + 1, w.z, g), add_corner(x + 1, y + 1, w.w, g);
    } else if (corners == 2) {
      add_corner(x + dx, y, dx ? w.y : w.x, g), add_corner(x + dx, y + 1, dx ? w.w : w.z, g);
    } else {
      add_corner(x + dx, y + dy, dy ? (dx ? w.w : w.z) : (dx ? w.y : w.x), g);
    }
  }
  __device__ void add_corner(int x, int y, float weight, float g) {
    if (unsigned(x) >= unsigned(tiles.width) || unsigned(y) >= unsigned(tiles.height)) return;
    float& sum = sums[(y * tiles.width + x) * tiles.channels + channel];
    sum = fmaf(weight, g, sum);
  }

  __device__ void write(T* grad_inputs) const {
    for (int i = lane; i < size(); i += 32) {
      const int x = column + i / tiles.channels % tiles.width;
      const int y = row + i / tiles.channels / tiles.width;
      if (first_channel + channel < k.depth && x < k.width && y < k.height)
        grad_inputs[image * k.image + y * k.row + int64_t(x) * k.channels + group * k.depth +
                    first_channel + channel] = from_float<T>(sums[i]);
    }
  }
};

/* Grid: tiles of an image, and images in two axes. */
template <class T, int corners>
__global__ void __launch_bounds__(32 * kWarps, 8)
    ordered_kernel(const __grid_constant__ Geometry k, const __grid_constant__ Tiles tiles,
                   const T* __restrict__ grad_output, const T* __restrict__ offset_mask,
                   const Summary* __restrict__ all_summaries, T* __restrict__ grad_inputs) {
  const int64_t n = image_of_block();
  const unsigned index = blockIdx.x * kWarps + threadIdx.x / 32;
  if (n >= k.batch || index >= tiles.count) return; /* no barrier is for more than a warp */
  Tile<T, corners> tile(k, tiles, n, index);
  const int lane = tile.lane, channel = tile.first_channel + tile.channel;
  const bool adds = channel < k.depth && tile.part < 4 / corners;
  const T* upstream = grad_output + n * k.pixels * k.channels + tile.group * k.depth + channel;
  const Summary* summaries = all_summaries + (n * k.groups + tile.group) * k.pixels;
  for (int i = lane; i < tile.size(); i += 32) tile.sums[i] = 0.0f;
  for (unsigned first = 0; first < k.pixels; first += kScanned) {
    bool meets[kScanned / 32];
#pragma unroll
    for (int i = 0; i < kScanned / 32; ++i) {
      const unsigned site = first + 32 * i + lane;
      meets[i] = site < k.pixels && tile.meets(summaries[site]);
    }
    unsigned found = 0;
#pragma unroll
    for (int i = 0; i < kScanned / 32; ++i) {
      const unsigned those = __ballot_sync(kWarp, meets[i]);
      if (meets[i]) tile.sites[found + __popc(those & ((1u << lane) - 1))] = first + 32 * i + lane;
      found += __popc(those);
    }
    __syncwarp(); /* the sites are listed, and before the first of them the sums are zero */
    for (unsigned begin = 0; begin < found * k.points; begin += 32) {
      const int count =
          tile.locate_touching(offset_mask, summaries, begin + lane, found * k.points);
      __syncwarp();
#pragma unroll 4
      for (int i = 0; i < count; ++i)
        if (adds) tile.add(upstream, i);
      __syncwarp(); /* all lanes have added the samples */
    }
  }
  tile.write(grad_inputs); /* a barrier has followed all additions */
}

}  // namespace dcnv3
#endif
