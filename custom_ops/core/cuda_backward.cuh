/* The backward pass. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CUDA_BACKWARD_CUH
#define KERAS_INTERNIMAGE_DCNV3_CUDA_BACKWARD_CUH

#include "cuda_samples.cuh"

namespace dcnv3 {

/* Neighbouring floats that one atomic addition can take. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kAtomicFloats = 4;
#else
constexpr int kAtomicFloats = 1;
#endif

/* Adds `weight * values` to device memory, safe against other threads. */
__device__ inline void atomic_add(char* to, float weight, const float (&values)[1]) {
  atomicAdd(reinterpret_cast<float*>(to), weight * values[0]);
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ inline void atomic_add(char* to, float weight, const float (&values)[4]) {
  atomicAdd(reinterpret_cast<float4*>(to),
            make_float4(weight * values[0], weight * values[1], weight * values[2],
                        weight * values[3]));
}
#endif

/* Adds the gradient of an image, which the samples in `slots` cause, to `grad_inputs`, which starts
 * `k.before` elements in front of the image.
 *
 * An atomic addition of a warp costs as much as it touches sectors of 32 bytes. Here lanes are not
 * those of a site: the channels of all the warp's sites, one site behind the other, are dealt to
 * the lanes in turn, so that neighbouring lanes add to neighbouring floats. All threads of a warp
 * must call, and `slots` are those of the thread's own site. Without `checked`, the warp's samples
 * must all lie inside the image, and whole turns must fill the channels. */
template <int pack, int lanes, int count, bool checked, class T>
__device__ void scatter(const Geometry& k, const Site<lanes>& site, const Slots<lanes>& slots,
                        const T* __restrict__ grad_output, float* __restrict__ grad_inputs) {
  constexpr int width = pack % kAtomicFloats ? 1 : kAtomicFloats;
  constexpr int turns = pack / width, turn = 32 * width; /* floats of one addition of the warp */
  constexpr int chunk = lanes * pack;                    /* channels of a site in `turns` turns */
  const int points = count ? count : k.points;
  const int lane = threadIdx.x % 32;
  const int own = lane / lanes; /* which of the warp's sites */
  const unsigned first_site = site.index - own;
  for (int first = 0; first < k.depth; first += chunk) {
    const auto channel = [&](int i) { return first + (i * turn + lane * width) % chunk; };
    const auto neighbour = [&](int i) { return (i * turn + lane * width) / chunk; };
    float upstream[turns][width] = {};
#pragma unroll
    for (int i = 0; i < turns; ++i)
      if (!checked || (channel(i) < k.depth && first_site + neighbour(i) < k.sites))
        load<width>(grad_output + int64_t(first_site + neighbour(i)) * k.depth + channel(i))
            .to_floats(upstream[i]);
#pragma unroll 1
    for (int p = 0; p < points; ++p) {
#pragma unroll
      for (int i = 0; i < turns; ++i) {
        const float4 slot = slots.value(p, neighbour(i) - own);
        const Place place = slots.place(p, neighbour(i) - own);
        if (checked && channel(i) >= k.depth) continue;
        const float4 weights = corner_weights(slot.x, slot.y, slot.z);
        const float weight[4] = {weights.x, weights.y, weights.z, weights.w};
        char* to = reinterpret_cast<char*>(grad_inputs + __float_as_int(slot.w) + channel(i));
#pragma unroll
        for (int corner = 0; corner < 4; ++corner)
          if (!checked || place.corners >> corner & 1)
            atomic_add(to + corner_bytes(k, place.pixel, corner, 4), weight[corner], upstream[i]);
      }
    }
  }
}

/* One sample and one pack of channels: the products of the upstream gradient with the corners are
 * added to `dots`. */
template <int pack, bool checked, class T>
__device__ void multiply_corners(const Geometry& k, const T* image, const T* upstream,
                                 const Place& place, float (&dots)[4]) {
  Pack<T, pack> corners[4];
  load_corners<pack, checked>(k, image, place, corners);
  float gradient[pack];
  load<pack>(upstream).to_floats(gradient);
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    float values[pack];
    corners[corner].to_floats(values);
#pragma unroll
    for (int i = 0; i < pack; ++i) dots[corner] = fmaf(gradient[i], values[i], dots[corner]);
  }
}

/* Writes the gradients of the offsets and masks, and adds that of the inputs to `grad_inputs`
 * unless that is null. Grid: sites of an image, and images in two axes. */
template <class T, int pack, int lanes, int count>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(const __grid_constant__ Geometry k, const T* __restrict__ grad_output,
                    const T* __restrict__ inputs, const T* __restrict__ offset_mask,
                    float* __restrict__ grad_inputs, T* __restrict__ grad_offset_mask) {
  const int64_t n = image_of_block();
  if (n >= k.batch) return;
  const Site<lanes> site(k);
  const int points = count ? count : k.points;
  const Slots<lanes> slots(points);
  const bool inside = locate_samples<lanes, count, false>(
      k, site, offset_mask + site.offsets(k, n), offset_mask + site.masks(k, n), slots);
  if (grad_inputs != nullptr) {
    const T* from = grad_output + n * k.pixels * k.channels;
    float* to = grad_inputs + n * k.image - k.before;
    if (inside && k.depth % (lanes * pack) == 0)
      scatter<pack, lanes, count, false>(k, site, slots, from, to);
    else
      scatter<pack, lanes, count, true>(k, site, slots, from, to);
  }
  const T* image = inputs + n * k.image - k.before + site.group * k.depth;
  const T* upstream = grad_output + site.outputs(k, n);
  float correction = 0.0f; /* of the softmax: sum of mask * gradient of mask */
  for (int p = 0; p < points; ++p) {
    const float4 slot = slots.value(p);
    const Place place = slots.place(p);
    const float u = slot.x, v = slot.y, m = slot.z;
    float d[4] = {}; /* products of the upstream gradient with the corners */
    for (int c = site.lane * pack; c < k.depth; c += lanes * pack)
      if (inside)
        multiply_corners<pack, false>(k, image + c, upstream + c, place, d);
      else
        multiply_corners<pack, true>(k, image + c, upstream + c, place, d);
    const float4 w = corner_weights(u, v, 1.0f);
    const float grad_x = lanes_sum<lanes>((1.0f - v) * (d[1] - d[0]) + v * (d[3] - d[2]));
    const float grad_y = lanes_sum<lanes>((1.0f - u) * (d[2] - d[0]) + u * (d[3] - d[1]));
    const float grad_mask = lanes_sum<lanes>(w.x * d[0] + w.y * d[1] + w.z * d[2] + w.w * d[3]);
    correction += m * grad_mask;
    __syncwarp(); /* all lanes have read the slot */
    if (site.lane == 0)
      slots.value(p) = make_float4(k.scale * m * grad_x, k.scale * m * grad_y, grad_mask, m);
  }
  __syncwarp();
  T* to_offset = grad_offset_mask + site.offsets(k, n);
  T* to_mask = grad_offset_mask + site.masks(k, n);
  for (int p = site.lane; site.active && p < points; p += lanes) {
    const float4 slot = slots.value(p);
    if (k.paired) {
      store(to_offset + 2 * p, {slot.x, slot.y});
    } else {
      to_offset[2 * p] = from_float<T>(slot.x);
      to_offset[2 * p + 1] = from_float<T>(slot.y);
    }
    to_mask[p] = from_float<T>(k.softmax ? slot.w * (slot.z - correction) : slot.z);
  }
}

/* Rounds `count` packs. */
template <class T, int pack>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const float* __restrict__ from, T* __restrict__ to, int64_t count) {
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kThreads) {
    float values[pack];
    load<pack>(from + pack * i).to_floats(values);
    store(to + pack * i, values);
  }
}

}  // namespace dcnv3
#endif
