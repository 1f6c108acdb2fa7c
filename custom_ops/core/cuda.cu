/* DCNv3 on NVIDIA GPUs behind plain C: checks, the choice of the kernels, and their launches. */
#include <algorithm>
#include <type_traits>

#include "cuda_backward.cuh"
#include "cuda_forward.cuh"
#include "cuda_host.cuh"
#include "cuda_ordered.cuh"
#include "dcnv3.h"

namespace dcnv3 {

/* Of a block; more would have to be asked for, and would leave too little to the cache. */
constexpr size_t kSharedMemory = 48 * 1024;
constexpr int64_t kMaxPoints = kSharedMemory / kSlotBytes / (32 / 8);
constexpr int64_t kMaxChannels = int64_t(1) << 28, kMaxSites = (int64_t(1) << 31) - 1;
/* Below this many threads in all, smaller blocks spread them over more multiprocessors. */
constexpr int64_t kManyThreads = int64_t(1) << 18;
/* Below this many, tiles of the deterministic gradient are smaller. A large GPU has 132
 * multiprocessors, which are to have 16 warps each. */
constexpr int64_t kManyTiles = 132 * 16;
constexpr int kMaxCoordinate = 0xffff; /* that fits into a Summary */

dcnv3_status check(const dcnv3_call& c) {
  if (c.dtype != DCNV3_FLOAT32 && c.dtype != DCNV3_FLOAT16 && c.dtype != DCNV3_BFLOAT16)
    return error("`dtype` must be float32, float16 or bfloat16 on a GPU. Received: dtype=%s",
                 c.dtype == DCNV3_FLOAT64 ? "float64" : "unknown");
  if (c.points > kMaxPoints)
    return error("A kernel must not have more than %lld points on a GPU. Received: "
                 "kernel_size=(%d, %d)", (long long)kMaxPoints, c.kernel_h, c.kernel_w);
  if (c.channels >= kMaxChannels || c.out_height * c.out_width > kMaxSites / c.groups ||
      3 * c.groups * c.points > kMaxSites)
    return error("On a GPU, C must be less than 2^28, and G * Ho * Wo and 3 * G * P less than "
                 "2^31. Received: C=%lld, G=%d, Ho=%lld, Wo=%lld, P=%lld", (long long)c.channels,
                 c.groups, (long long)c.out_height, (long long)c.out_width, (long long)c.points);
  return {0, {}};
}

Geometry geometry(const dcnv3_call& c) {
  Geometry k = {};
  k.batch = c.batch;
  k.height = int(c.height), k.width = int(c.width), k.channels = int(c.channels);
  k.row = c.width * c.channels, k.image = c.height * k.row;
  k.before = k.row + c.channels;
  k.depth = int(c.channels / c.groups);
  k.out_width = int(c.out_width), k.groups = c.groups, k.points = int(c.points);
  k.pixels = unsigned(c.out_height * c.out_width), k.sites = k.pixels * c.groups;
  k.kernel_h = c.kernel_h, k.dilation_h = c.dilation_h, k.dilation_w = c.dilation_w;
  k.center_y = c.dilation_h * (c.kernel_h - 1) / 2;
  k.center_x = c.dilation_w * (c.kernel_w - 1) / 2;
  k.middle = c.remove_center ? c.kernel_h * c.kernel_w / 2 : c.kernel_h * c.kernel_w;
  k.stride_h = c.stride_h, k.stride_w = c.stride_w;
  k.origin_y = k.center_y - c.pad_h, k.origin_x = k.center_x - c.pad_w;
  k.exact_scale = c.offset_scale, k.scale = float(c.offset_scale);
  k.softmax = c.softmax != 0;
  for (int p = 0; p < std::min(k.points, kTaps); ++p) k.taps[p] = locate_tap(k, p);
  return k;
}

template <int pack_, int lanes_, int count_>
struct Layout {
  static constexpr int pack = pack_, lanes = lanes_, count = count_;
};

/* How the sites are given to threads. */
struct Plan {
  int pack, lanes, count;
  cudaLaunchConfig_t config;
};

template <class T>
Plan make_plan(const Geometry& k, bool vectors, cudaStream_t stream) {
  constexpr int wide = 16 / sizeof(T);
  const bool packed = vectors && k.depth % wide == 0;
  const int packs = packed ? k.depth / wide : k.depth;
  Plan plan = {packed ? wide : 1, packed && packs <= 2 ? 2 : packed && packs <= 4 ? 4 : 8,
               k.points == kTaps ? kTaps : 0, {}};
  const auto bytes = [&](int threads) { return threads / plan.lanes * k.points * kSlotBytes; };
  while (bytes(32) > kSharedMemory) plan.lanes *= 2; /* no further than 8: see kMaxPoints */
  int threads = k.batch * k.sites * plan.lanes < kManyThreads ? 64 : kThreads;
  while (bytes(threads) > kSharedMemory) threads -= 32;
  const int64_t sites = threads / plan.lanes;
  plan.config.gridDim = grid_of(k.batch, (k.sites + sites - 1) / sites);
  plan.config.blockDim = dim3(threads);
  plan.config.dynamicSmemBytes = bytes(threads);
  plan.config.stream = stream;
  return plan;
}

/* Calls `run` with the plan's Layout. */
template <class T, class Run>
cudaError_t with_layout(const Plan& plan, Run run) {
  constexpr int wide = 16 / sizeof(T);
  const auto with_count = [&](auto pack, auto lanes) {
    return plan.count ? run(Layout<pack.value, lanes.value, kTaps>())
                      : run(Layout<pack.value, lanes.value, 0>());
  };
  const std::integral_constant<int, wide> vector;
  if (plan.pack == 1)
    return with_count(std::integral_constant<int, 1>(), std::integral_constant<int, 8>());
  if (plan.lanes == 2) return with_count(vector, std::integral_constant<int, 2>());
  if (plan.lanes == 4) return with_count(vector, std::integral_constant<int, 4>());
  return with_count(vector, std::integral_constant<int, 8>());
}

/* A thread for each of `size` numbers, or fewer. */
cudaLaunchConfig_t linear_config(int64_t size, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(std::min((size + kThreads - 1) / kThreads, kMaxGridX)));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return config;
}

template <class T>
dcnv3_status forward(const dcnv3_call& c, const void* inputs, const void* offset_mask,
                     void* output, cudaStream_t stream) {
  Geometry k = geometry(c);
  k.paired = k.groups * int64_t(k.points) % 2 == 0 && aligned(offset_mask, 2 * sizeof(T));
  const Plan plan = make_plan<T>(k, aligned(inputs, 16) && aligned(output, 16), stream);
  return to_status(with_layout<T>(plan, [&](auto layout) {
    using L = decltype(layout);
    return launch(plan.config, forward_kernel<T, L::pack, L::lanes, L::count>, k,
                  static_cast<const T*>(inputs), static_cast<const T*>(offset_mask),
                  static_cast<T*>(output));
  }), "DCNv3's forward kernel");
}

Tiles make_tiles(const Geometry& k) {
  Tiles tiles = {};
  tiles.channels = 1;
  while (tiles.channels < 32 && tiles.channels < k.depth) tiles.channels *= 2;
  tiles.slices = (k.depth + tiles.channels - 1) / tiles.channels;
  tiles.width = std::min(kTileWidth, k.width);
  tiles.columns = (k.width + tiles.width - 1) / tiles.width;
  for (tiles.height = kTileHeight;; tiles.height /= 2) {
    tiles.rows = (k.height + tiles.height - 1) / tiles.height;
    tiles.count = unsigned(k.groups) * tiles.slices * tiles.columns * tiles.rows;
    if (k.batch * tiles.count >= kManyTiles || tiles.height == 1) break;
  }
  while ((std::max(k.height, k.width) - 1) >> tiles.shift > kMaxCoordinate) ++tiles.shift;
  return tiles;
}

/* The gradient of the inputs in a fixed order. */
template <class T>
dcnv3_status ordered_backward(const Geometry& k, const T* grad_output, const T* offset_mask,
                              Summary* summaries, T* grad_inputs, cudaStream_t stream) {
  const Tiles tiles = make_tiles(k);
  const int64_t sites = k.batch * k.sites;
  cudaError_t code = launch(linear_config(sites, stream), summary_kernel<T>, k, offset_mask,
                            summaries, tiles.shift);
  if (code == cudaSuccess) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid_of(k.batch, (int64_t(tiles.count) + kWarps - 1) / kWarps);
    config.blockDim = dim3(32 * kWarps);
    config.dynamicSmemBytes = kWarps * tile_bytes(tiles);
    config.stream = stream;
    const auto kernel = tiles.channels == 32   ? ordered_kernel<T, 4>
                        : tiles.channels == 16 ? ordered_kernel<T, 2>
                                               : ordered_kernel<T, 1>;
    code = launch(config, kernel, k, tiles, grad_output, offset_mask, summaries, grad_inputs);
  }
  return to_status(code, "DCNv3's deterministic backward kernels");
}

template <class T>
dcnv3_status backward(const dcnv3_call& c, const T* grad_output, const T* inputs,
                      const T* offset_mask, T* grad_inputs, T* grad_offset_mask, void* workspace,
                      bool deterministic, cudaStream_t stream) {
  constexpr bool half = sizeof(T) < sizeof(float);
  Geometry k = geometry(c);
  k.paired = k.groups * int64_t(k.points) % 2 == 0 && aligned(offset_mask, 2 * sizeof(T)) &&
             aligned(grad_offset_mask, 2 * sizeof(T));
  const int64_t size = c.batch * k.image;
  float* sums = deterministic ? nullptr : static_cast<float*>(half ? workspace : grad_inputs);
  dcnv3_status status = {0, {}};
  if (!deterministic)
    status = to_status(cudaMemsetAsync(sums, 0, size * sizeof(float), stream),
                       "Zeroing the gradient of DCNv3's inputs");
  if (status.code) return status;

  const bool vectors = aligned(inputs, 16) && aligned(grad_output, 16) && aligned(sums, 16);
  const Plan plan = make_plan<T>(k, vectors, stream);
  status = to_status(with_layout<T>(plan, [&](auto layout) {
    using L = decltype(layout);
    return launch(plan.config, backward_kernel<T, L::pack, L::lanes, L::count>, k, grad_output,
                  inputs, offset_mask, sums, grad_offset_mask);
  }), "DCNv3's backward kernel");
  if (status.code) return status;
  if (deterministic)
    return ordered_backward(k, grad_output, offset_mask, static_cast<Summary*>(workspace),
                            grad_inputs, stream);
  if constexpr (half) {
    const bool wide = size % 4 == 0 && aligned(sums, 16) && aligned(grad_inputs, 8);
    const auto kernel = wide ? convert_kernel<T, 4> : convert_kernel<T, 1>;
    const int64_t packs = wide ? size / 4 : size;
    status = to_status(launch(linear_config(packs, stream), kernel,
                              static_cast<const float*>(sums), grad_inputs, packs),
                       "Rounding the gradient of DCNv3's inputs");
  }
  return status;
}

/* Calls `run` with a null pointer to the call's element type. */
template <class Run>
dcnv3_status with_dtype(const dcnv3_call& call, Run run) {
  const dcnv3_status status = check(call);
  if (status.code || call.batch == 0) return status;
  switch (call.dtype) {
    case DCNV3_FLOAT16: return run(static_cast<__half*>(nullptr));
    case DCNV3_BFLOAT16: return run(static_cast<__nv_bfloat16*>(nullptr));
    default: return run(static_cast<float*>(nullptr));
  }
}

}  // namespace dcnv3

extern "C" {

dcnv3_status dcnv3_cuda_forward(const dcnv3_call* call, const void* inputs,
                                const void* offset_mask, void* output, void* stream) {
  return dcnv3::with_dtype(*call, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    return dcnv3::forward<T>(*call, inputs, offset_mask, output,
                             static_cast<cudaStream_t>(stream));
  });
}

size_t dcnv3_cuda_backward_workspace(const dcnv3_call* call, int32_t deterministic) {
  const int64_t sites = call->batch * call->out_height * call->out_width * call->groups;
  if (deterministic) return sites * sizeof(dcnv3::Summary);
  const bool half = call->dtype == DCNV3_FLOAT16 || call->dtype == DCNV3_BFLOAT16;
  return half ? call->batch * call->height * call->width * call->channels * sizeof(float) : 0;
}

dcnv3_status dcnv3_cuda_backward(const dcnv3_call* call, const void* grad_output,
                                 const void* inputs, const void* offset_mask, void* grad_inputs,
                                 void* grad_offset_mask, void* workspace, int32_t deterministic,
                                 void* stream) {
  return dcnv3::with_dtype(*call, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    return dcnv3::backward<T>(
        *call, static_cast<const T*>(grad_output), static_cast<const T*>(inputs),
        static_cast<const T*>(offset_mask), static_cast<T*>(grad_inputs),
        static_cast<T*>(grad_offset_mask), workspace, deterministic != 0,
        static_cast<cudaStream_t>(stream));
  });
}

}  // extern "C"
