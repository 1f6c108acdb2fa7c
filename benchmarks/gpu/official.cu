/* The algorithm of InternImage's official CUDA kernels, written anew from its description, to be
 * measured against: one thread for each channel of an output pixel, which reads the offset and the
 * mask of every point by itself. Backward, a block is one group of one pixel: its threads' shares
 * of the gradients of an offset and a mask meet in shared memory, where the first thread adds them
 * up; those of the inputs are added by atomics, in float32 for half types too. As there, indices
 * are 32-bit: no tensor has 2^31 numbers.
 *
 * Nothing is included, so that NVRTC compiles it alone. The checkout's rehearsal compiles it for a
 * processor, with DCNV3_EMULATED. */

struct Half { unsigned short bits; };

#ifndef DCNV3_EMULATED
__device__ inline float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
__device__ inline void put(Half* to, float value) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(value));
}
extern __shared__ float shares[]; /* of the threads: by x, y and mask */
#endif
__device__ inline float to_float(float value) { return value; }
__device__ inline void put(float* to, float value) { *to = value; }

struct Sizes {
  int batch, height, width, channels, out_height, out_width, groups;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  float scale;
};

/* Where the points of one output pixel lie. */
struct Place {
  int image;
  float x, y; /* of the kernel's first point, without offset */
};

__device__ inline Place place_of(const Sizes& s, int pixel) {
  const int column = pixel % s.out_width, row = pixel / s.out_width % s.out_height;
  const int center_x = s.dilation_w * (s.kernel_w - 1) / 2;
  const int center_y = s.dilation_h * (s.kernel_h - 1) / 2;
  return {pixel / s.out_width / s.out_height,
          column * s.stride_w - s.pad_w + center_x - center_x * s.scale,
          row * s.stride_h - s.pad_h + center_y - center_y * s.scale};
}

__device__ inline bool near_image(const Sizes& s, float x, float y) {
  return x > -1.0f && y > -1.0f && x < s.width && y < s.height;
}

/* One channel of one pixel; zero outside the image. */
template <class T>
__device__ inline float pixel_value(const Sizes& s, const T* channel, int x, int y) {
  if (x < 0 || y < 0 || x >= s.width || y >= s.height) return 0.0f;
  return to_float(channel[(y * s.width + x) * s.channels]);
}

template <class T>
__device__ void forward(const Sizes& s, const T* inputs, const T* offset, const T* mask,
                        T* output) {
  const int depth = s.channels / s.groups, points = s.kernel_h * s.kernel_w;
  const int image_size = s.height * s.width * s.channels;
  const int size = s.batch * s.out_height * s.out_width * s.channels;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size;
       i += gridDim.x * blockDim.x) {
    const int c = i % s.channels, group = c / depth;
    const int pixel = i / s.channels;
    const Place place = place_of(s, pixel);
    const T* channel = inputs + place.image * image_size + c;
    const int first = (pixel * s.groups + group) * points;
    float sum = 0.0f;
    int p = 0;
    for (int kx = 0; kx < s.kernel_w; ++kx)
      for (int ky = 0; ky < s.kernel_h; ++ky, ++p) {
        const float dx = to_float(offset[2 * (first + p)]);
        const float dy = to_float(offset[2 * (first + p) + 1]);
        const float m = to_float(mask[first + p]);
        const float x = place.x + (kx * s.dilation_w + dx) * s.scale;
        const float y = place.y + (ky * s.dilation_h + dy) * s.scale;
        if (!near_image(s, x, y)) continue;
        const int left = int(floorf(x)), top = int(floorf(y));
        const float u = x - left, v = y - top;
        const float upper = (1.0f - u) * pixel_value(s, channel, left, top) +
                            u * pixel_value(s, channel, left + 1, top);
        const float lower = (1.0f - u) * pixel_value(s, channel, left, top + 1) +
                            u * pixel_value(s, channel, left + 1, top + 1);
        sum += m * ((1.0f - v) * upper + v * lower);
      }
    put(output + i, sum);
  }
}

/* A block of `channels / groups` threads. `grad_inputs` is zero before. */
template <class T>
__device__ void backward(const Sizes& s, const T* grad_output, const T* inputs, const T* offset,
                         const T* mask, float* grad_inputs, T* grad_offset, T* grad_mask) {
  const int depth = blockDim.x, thread = threadIdx.x, points = s.kernel_h * s.kernel_w;
  const int image_size = s.height * s.width * s.channels;
  const int sites = s.batch * s.out_height * s.out_width * s.groups;
  for (int site = blockIdx.x; site < sites; site += gridDim.x) {
    const int c = site % s.groups * depth + thread;
    const int pixel = site / s.groups;
    const Place place = place_of(s, pixel);
    const int start = place.image * image_size + c;
    const float upstream = to_float(grad_output[pixel * s.channels + c]);
    int p = 0;
    for (int kx = 0; kx < s.kernel_w; ++kx)
      for (int ky = 0; ky < s.kernel_h; ++ky, ++p) {
        const int point = site * points + p;
        const float m = to_float(mask[point]);
        const float x =
            place.x + (kx * s.dilation_w + to_float(offset[2 * point])) * s.scale;
        const float y =
            place.y + (ky * s.dilation_h + to_float(offset[2 * point + 1])) * s.scale;
        float share_x = 0.0f, share_y = 0.0f, share_mask = 0.0f;
        if (near_image(s, x, y)) {
          const int left = int(floorf(x)), top = int(floorf(y));
          const float u = x - left, v = y - top;
          for (int corner = 0; corner < 4; ++corner) {
            const int right = corner & 1, below = corner >> 1;
            const int at_x = left + right, at_y = top + below;
            if (at_x < 0 || at_y < 0 || at_x >= s.width || at_y >= s.height) continue;
            const int where = start + (at_y * s.width + at_x) * s.channels;
            const float weight_x = right ? u : 1.0f - u, weight_y = below ? v : 1.0f - v;
            const float product = upstream * to_float(inputs[where]);
            share_mask += weight_x * weight_y * product;
            share_x += (right ? weight_y : -weight_y) * product;
            share_y += (below ? weight_x : -weight_x) * product;
            atomicAdd(grad_inputs + where, weight_x * weight_y * m * upstream);
          }
        }
        shares[thread] = share_x;
        shares[depth + thread] = share_y;
        shares[2 * depth + thread] = share_mask;
        __syncthreads();
        if (thread == 0) {
          float sums[3] = {0.0f, 0.0f, 0.0f};
          for (int i = 0; i < depth; ++i)
            for (int k = 0; k < 3; ++k) sums[k] += shares[k * depth + i];
          put(grad_offset + 2 * point, s.scale * m * sums[0]);
          put(grad_offset + 2 * point + 1, s.scale * m * sums[1]);
          put(grad_mask + point, sums[2]);
        }
        __syncthreads();
      }
  }
}

extern "C" {

__global__ void forward_float32(Sizes s, const float* inputs, const float* offset,
                                const float* mask, float* output) {
  forward(s, inputs, offset, mask, output);
}

__global__ void forward_float16(Sizes s, const Half* inputs, const Half* offset, const Half* mask,
                                Half* output) {
  forward(s, inputs, offset, mask, output);
}

__global__ void backward_float32(Sizes s, const float* grad_output, const float* inputs,
                                 const float* offset, const float* mask, float* grad_inputs,
                                 float* grad_offset, float* grad_mask) {
  backward(s, grad_output, inputs, offset, mask, grad_inputs, grad_offset, grad_mask);
}

__global__ void backward_float16(Sizes s, const Half* grad_output, const Half* inputs,
                                 const Half* offset, const Half* mask, float* grad_inputs,
                                 Half* grad_offset, Half* grad_mask) {
  backward(s, grad_output, inputs, offset, mask, grad_inputs, grad_offset, grad_mask);
}

__global__ void round_to_float16(const float* from, Half* to, int size) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size;
       i += gridDim.x * blockDim.x)
    put(to + i, from[i]);
}

/* Keeps the device busy while the host enqueues what is measured. */
__global__ void spin(long long cycles) {
#ifndef DCNV3_EMULATED
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
#endif
}

}  // extern "C"
