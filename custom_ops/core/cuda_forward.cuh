/* The forward pass. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CUDA_FORWARD_CUH
#define KERAS_INTERNIMAGE_DCNV3_CUDA_FORWARD_CUH

#include "cuda_samples.cuh"

namespace dcnv3 {

/* The weighted sum over the samples of a site, for one pack of channels. All in float32: if packed
 * instructions of the half types added up the corners, fewer would do, but the error would be twice
 * as large, and in float16 more than 1e-3 of the largest value. */
template <int pack, int lanes, int count, bool checked, class T>
__device__ void gather(const Geometry& k, const T* image, const Slots<lanes>& slots,
                       float (&sum)[pack]) {
  const int points = count ? count : k.points;
#pragma unroll (count ? 3 : 1)
  for (int p = 0; p < points; ++p) {
    const float4 weights = slots.value(p);
    Pack<T, pack> corners[4];
    const Cell cell = slots.cell(p);
    if (checked)
      load_corners<pack, true>(k, image - k.before, place_of(k, cell), corners);
    else
      load_corners<pack, false>(k, image, {unsigned(cell.y * k.width + cell.x), 0}, corners);
    const float weight[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      float values[pack];
      corners[corner].to_floats(values);
#pragma unroll
      for (int i = 0; i < pack; ++i) sum[i] = fmaf(weight[corner], values[i], sum[i]);
    }
  }
}

/* Grid: sites of an image, and images in two axes. */
template <class T, int pack, int lanes, int count>
__global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(const __grid_constant__ Geometry k, const T* __restrict__ inputs,
                   const T* __restrict__ offset_mask, T* __restrict__ output) {
  const int64_t n = image_of_block();
  if (n >= k.batch) return;
  const Site<lanes> site(k);
  const Slots<lanes> slots(count ? count : k.points);
  const bool inside = locate_samples<lanes, count, true>(
      k, site, offset_mask + site.offsets(k, n), offset_mask + site.masks(k, n), slots);
  const T* image = inputs + n * k.image + site.group * k.depth;
  T* to = output + site.outputs(k, n);
  for (int c = site.lane * pack; c < k.depth; c += lanes * pack) {
    float sum[pack] = {};
    if (inside)
      gather<pack, lanes, count, false>(k, image + c, slots, sum);
    else
      gather<pack, lanes, count, true>(k, image + c, slots, sum);
    if (site.active) store(to + c, sum);
  }
}

}  // namespace dcnv3
#endif
