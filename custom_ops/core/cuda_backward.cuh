/* The backward pass. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CUDA_BACKWARD_CUH
#define KERAS_INTERNIMAGE_DCNV3_CUDA_BACKWARD_CUH

#include "cuda_samples.cuh"

namespace dcnv3 {

/* Adds `weight * values` to neighbouring floats of device memory, safe against other threads. */
template <int count>
__device__ void atomic_add(float* to, float weight, const float (&values)[count]) {
#pragma unroll
  for (int i = 0; i < count;) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (count % 4 == 0) {
      atomicAdd(reinterpret_cast<float4*>(to + i),
                make_float4(weight * values[i], weight * values[i + 1], weight * values[i + 2],
                            weight * values[i + 3]));
      i += 4;
      continue;
    }
#endif
    atomicAdd(to + i, weight * values[i]);
    ++i;
  }
}

/* One sample and one pack of channels: the products of the upstream gradient with the corners are
 * added to `dots`, and the gradient of the inputs, unless `grad_inputs` is null, goes to memory. */
template <int pack, class T>
__device__ void backward_sample(const Geometry& k, const T* image, const T* upstream,
                                float* grad_inputs, const Cell& cell, const float (&weights)[4],
                                float (&dots)[4]) {
  const int64_t place = (int64_t(cell.y) * k.width + cell.x) * k.channels;
  Pack<T, pack> corners[4];
  load_corners<pack, true>(k, image, cell, corners);
  float gradient[pack];
  load<pack>(upstream).to_floats(gradient);
  const int64_t steps[4] = {0, k.channels, k.row, k.row + k.channels};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    float values[pack];
    corners[corner].to_floats(values);
#pragma unroll
    for (int i = 0; i < pack; ++i) dots[corner] = fmaf(gradient[i], values[i], dots[corner]);
    if (grad_inputs != nullptr && has_corner(k, cell, corner))
      atomic_add(grad_inputs + place + steps[corner], weights[corner], gradient);
  }
}

/* Writes the gradients of the offsets and masks, and adds that of the inputs to `grad_inputs`
 * unless that is null. Grid: sites of an image, images. */
template <class T, int pack, int lanes, int count>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(const __grid_constant__ Geometry k, const T* __restrict__ grad_output,
                    const T* __restrict__ inputs, const T* __restrict__ offset_mask,
                    float* __restrict__ grad_inputs, T* __restrict__ grad_offset_mask) {
  const Site<lanes> site(k);
  const int points = count ? count : k.points;
  const Slots slots = slots_of_site(points, site.local, blockDim.x / lanes);
  for (int64_t n = blockIdx.y; n < k.batch; n += gridDim.y) {
    locate_samples<lanes, count, false>(k, site, offset_mask + site.offsets(k, n),
                                        offset_mask + site.masks(k, n), slots);
    const int64_t image = n * k.image + site.group * k.depth;
    const T* upstream = grad_output + site.outputs(k, n);
    float* accumulator = grad_inputs && site.active ? grad_inputs + image : nullptr;
    float correction = 0.0f; /* of the softmax: sum of mask * gradient of mask */
    for (int p = 0; p < points; ++p) {
      const float4 slot = slots.value(p);
      const Cell cell = slots.cell(p);
      const float u = slot.x, v = slot.y, m = slot.z;
      const float4 w = corner_weights(u, v, 1.0f);
      const float weights[4] = {m * w.x, m * w.y, m * w.z, m * w.w};
      float d[4] = {}; /* products of the upstream gradient with the corners */
      for (int c = site.lane * pack; c < k.depth; c += lanes * pack)
        backward_sample<pack>(k, inputs + image + c, upstream + c,
                              accumulator ? accumulator + c : nullptr, cell, weights, d);
      const float grad_x = lanes_sum<lanes>((1.0f - v) * (d[1] - d[0]) + v * (d[3] - d[2]));
      const float grad_y = lanes_sum<lanes>((1.0f - u) * (d[2] - d[0]) + u * (d[3] - d[1]));
      const float grad_mask =
          lanes_sum<lanes>(w.x * d[0] + w.y * d[1] + w.z * d[2] + w.w * d[3]);
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
    __syncwarp(); /* the next image uses the same slots */
  }
}

/* The gradient of the inputs without atomics, always added up in the same order: a block owns some
 * channels of one group of one image and goes through all their samples. Of its threads, each owns
 * one of `width` channels and the image rows that leave the same remainder. */
constexpr size_t kOrderedSharedMemory = kThreads * (sizeof(float4) + sizeof(Cell));
template <class T>
__global__ void __launch_bounds__(kThreads)
    ordered_kernel(const __grid_constant__ Geometry k, const T* __restrict__ grad_output,
                   const T* __restrict__ offset_mask, float* __restrict__ grad_inputs,
                   int width, int64_t blocks) {
  float4* weights = shared_memory;
  Cell* cells = reinterpret_cast<Cell*>(shared_memory + kThreads);
  const int slices = (k.depth + width - 1) / width;
  const int rows = kThreads / width, row = threadIdx.x / width;
  const int64_t total = int64_t(k.pixels) * k.points;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t n = block / slices / k.groups;
    const int group = int(block / slices % k.groups);
    const int channel = int(block % slices) * width + threadIdx.x % width;
    const T* upstream = grad_output + n * k.pixels * k.channels + group * k.depth + channel;
    float* image = grad_inputs + n * k.image + group * k.depth + channel;
    for (int64_t first = 0; first < total; first += kThreads) {
      const int64_t sample = first + threadIdx.x;
      if (sample < total) {
        const int64_t pixel = sample / k.points;
        const int p = int(sample % k.points);
        const T* of_pixel = offset_mask + (n * k.pixels + pixel) * k.groups * 3 * k.points;
        const T* mask = of_pixel + (2 * k.groups + group) * k.points;
        const T* offset = of_pixel + 2 * (group * k.points + p);
        const int y = int(pixel / k.out_width), x = int(pixel % k.out_width);
        const Position at =
            locate(k, locate_tap(k, p), to_float(offset[0]), to_float(offset[1]),
                   x * k.stride_w + k.origin_x, y * k.stride_h + k.origin_y);
        float m = to_float(mask[p]);
        if (k.softmax) {
          float top = -INFINITY, sum = 0.0f;
          for (int i = 0; i < k.points; ++i) top = fmaxf(top, to_float(mask[i]));
          for (int i = 0; i < k.points; ++i) sum += __expf(to_float(mask[i]) - top);
          m = __expf(m - top) * __fdividef(1.0f, sum);
        }
        weights[threadIdx.x] = corner_weights(at.u, at.v, m);
        cells[threadIdx.x] = at.cell;
      }
      __syncthreads();
      const int samples = int(total - first < kThreads ? total - first : kThreads);
      for (int i = 0; channel < k.depth && i < samples; ++i) {
        const Cell cell = cells[i];
        const bool upper = (cell.y & (rows - 1)) == row;
        const bool lower = ((cell.y + 1) & (rows - 1)) == row;
        if (!upper && !lower) continue;
        const float4 weight = weights[i];
        const float g = to_float(upstream[(first + i) / k.points * k.channels]);
        float* to = image + (int64_t(cell.y) * k.width + cell.x) * k.channels;
        if (upper && has_corner(k, cell, 0)) to[0] += weight.x * g;
        if (upper && has_corner(k, cell, 1)) to[k.channels] += weight.y * g;
        to += k.row;
        if (lower && has_corner(k, cell, 2)) to[0] += weight.z * g;
        if (lower && has_corner(k, cell, 3)) to[k.channels] += weight.w * g;
      }
      __syncthreads();
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const float* __restrict__ from, T* __restrict__ to, int64_t size) {
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < size;
       i += int64_t(gridDim.x) * kThreads)
    to[i] = from_float<T>(from[i]);
}

}  // namespace dcnv3
#endif
