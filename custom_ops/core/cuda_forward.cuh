/* The forward pass. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CUDA_FORWARD_CUH
#define KERAS_INTERNIMAGE_DCNV3_CUDA_FORWARD_CUH

#include "cuda_samples.cuh"

namespace dcnv3 {

/* The weighted sum over the samples of a site, for one pack of channels. */
template <int pack, int count, bool checked, class T>
__device__ void gather(const Geometry& k, const T* image, const Slots& slots,
                       float (&sum)[pack]) {
  const int points = count ? count : k.points;
#pragma unroll (count ? 3 : 1)
  for (int p = 0; p < points; ++p) {
    const float4 weights = slots.value(p);
    Pack<T, pack> corners[4];
    load_corners<pack, checked>(k, image, slots.cell(p), corners);
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

/* Grid: sites of an image, images. */
template <class T, int pack, int lanes, int count>
__global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(const __grid_constant__ Geometry k, const T* __restrict__ inputs,
                   const T* __restrict__ offset_mask, T* __restrict__ output) {
  const Site<lanes> site(k);
  const Slots slots = slots_of_site(count ? count : k.points, site.local, blockDim.x / lanes);
  for (int64_t n = blockIdx.y; n < k.batch; n += gridDim.y) {
    const bool inside =
        locate_samples<lanes, count, true>(k, site, offset_mask + site.offsets(k, n),
                                           offset_mask + site.masks(k, n), slots);
    const T* image = inputs + n * k.image + site.group * k.depth;
    T* to = output + site.outputs(k, n);
    for (int c = site.lane * pack; c < k.depth; c += lanes * pack) {
      float sum[pack] = {};
      if (inside)
        gather<pack, count, false>(k, image + c, slots, sum);
      else
        gather<pack, count, true>(k, image + c, slots, sum);
      if (site.active) store(to + c, sum);
    }
    __syncwarp(); /* the next image uses the same slots */
  }
}

}  // namespace dcnv3
#endif
