/* RoIAlign on NVIDIA GPUs behind plain C: checks and launches. */
#include <type_traits>

#include "cuda_host.cuh"
#include "cuda_regions.cuh"

namespace dcnv3 {

constexpr int64_t kMaxItems = (int64_t(1) << 31) - 1;
constexpr int kWarpsOfBlock = kThreads / 32;

int64_t pixels_of_image(const dcnv3_regions& c) {
  int64_t pixels = 0;
  for (int l = 0; l < c.levels; ++l) pixels += c.heights[l] * c.widths[l];
  return pixels;
}

dcnv3_status check(const dcnv3_regions& c) {
  if (c.dtype != DCNV3_FLOAT32 && c.dtype != DCNV3_FLOAT16 && c.dtype != DCNV3_BFLOAT16)
    return error("Maps must be float32, float16 or bfloat16 on a GPU. Received: dtype=%s",
                 c.dtype == DCNV3_FLOAT64 ? "float64" : "unknown");
  const int64_t slabs = (c.channels + 31) / 32;
  if (c.channels > kMaxItems || c.bins > kMaxItems / c.bins / slabs ||
      pixels_of_image(c) > kMaxItems / slabs ||
      (c.batch > 0 && c.regions > kMaxItems / c.batch))
    return error("On a GPU, N * R must be less than 2^31, as must C / 32 times the pixels of an "
                 "image's maps, and times the square of `output_size`. Received: N=%lld, R=%lld, "
                 "C=%lld, output_size=%lld", (long long)c.batch, (long long)c.regions,
                 (long long)c.channels, (long long)c.bins);
  return {0, {}};
}

/* `each` is how many bins, or pixels, a region or an image has, and `count` how many of those there
 * are. */
template <int pack>
cudaLaunchConfig_t share_out(const dcnv3_regions& c, int64_t each, int64_t count, Regions* k,
                             cudaStream_t stream) {
  *k = {};
  k->batch = c.batch, k->regions = c.regions, k->channels = c.channels;
  k->bins = int(c.bins), k->levels = c.levels;
  k->slabs = unsigned((c.channels + 32 * pack - 1) / (32 * pack));
  k->items = unsigned(each * k->slabs);
  for (int l = 0; l < c.levels; ++l) {
    k->heights[l] = int(c.heights[l]), k->widths[l] = int(c.widths[l]);
    k->scales[l] = float(1 / c.strides[l]);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid_of(count, (int64_t(k->items) + kWarpsOfBlock - 1) / kWarpsOfBlock);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return config;
}

/* Whether all tensors can be read and written in packs of 16 bytes. */
template <class T>
bool wide(const dcnv3_regions& c, const void* const* maps, const void* pooled) {
  bool fits = c.channels % (16 / sizeof(T)) == 0 && aligned(pooled, 16);
  for (int l = 0; l < c.levels; ++l) fits = fits && aligned(maps[l], 16);
  return fits;
}

template <class T, int pack>
cudaError_t forward(const dcnv3_regions& c, const void* const* maps, const float* boxes,
                    const int32_t* levels, T* output, cudaStream_t stream) {
  Regions k;
  const auto config =
      share_out<pack>(c, c.bins * c.bins, c.batch * c.regions, &k, stream);
  Maps<const T> from = {};
  for (int l = 0; l < c.levels; ++l) from.of[l] = static_cast<const T*>(maps[l]);
  return launch(config, roi_align_kernel<T, pack>, k, from, boxes, levels, output);
}

template <class T, int pack>
cudaError_t backward(const dcnv3_regions& c, const T* grad_output, const float* boxes,
                     const int32_t* levels, void* const* grad_maps, cudaStream_t stream) {
  Regions k;
  const auto config = share_out<pack>(c, pixels_of_image(c), c.batch, &k, stream);
  Maps<T> into = {};
  for (int l = 0; l < c.levels; ++l) into.of[l] = static_cast<T*>(grad_maps[l]);
  return launch(config, roi_align_backward_kernel<T, pack>, k, into, grad_output, boxes, levels);
}

/* Calls `run` with a null pointer to the maps' element type. */
template <class Run>
dcnv3_status with_dtype(const dcnv3_regions& call, const char* what, Run run) {
  const dcnv3_status status = check(call);
  if (status.code || call.batch == 0) return status;
  switch (call.dtype) {
    case DCNV3_FLOAT16: return to_status(run(static_cast<__half*>(nullptr)), what);
    case DCNV3_BFLOAT16: return to_status(run(static_cast<__nv_bfloat16*>(nullptr)), what);
    default: return to_status(run(static_cast<float*>(nullptr)), what);
  }
}

}  // namespace dcnv3

extern "C" {

dcnv3_status dcnv3_cuda_roi_align(const dcnv3_regions* call, const void* const* maps,
                                  const void* boxes, const int32_t* levels, void* output,
                                  void* stream) {
  return dcnv3::with_dtype(*call, "RoIAlign's forward kernel", [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (call->regions == 0) return cudaSuccess;
    const auto run = dcnv3::wide<T>(*call, maps, output) ? dcnv3::forward<T, 16 / sizeof(T)>
                                                         : dcnv3::forward<T, 1>;
    return run(*call, maps, static_cast<const float*>(boxes), levels, static_cast<T*>(output),
               static_cast<cudaStream_t>(stream));
  });
}

dcnv3_status dcnv3_cuda_roi_align_backward(const dcnv3_regions* call, const void* grad_output,
                                           const void* boxes, const int32_t* levels,
                                           void* const* grad_maps, void* stream) {
  return dcnv3::with_dtype(*call, "RoIAlign's backward kernel", [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const auto run = dcnv3::wide<T>(*call, grad_maps, grad_output)
                         ? dcnv3::backward<T, 16 / sizeof(T)>
                         : dcnv3::backward<T, 1>;
    return run(*call, static_cast<const T*>(grad_output), static_cast<const float*>(boxes), levels,
               grad_maps, static_cast<cudaStream_t>(stream));
  });
}

}  // extern "C"
