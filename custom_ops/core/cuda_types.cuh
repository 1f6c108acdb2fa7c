/* What the kernels share: element types, vectors of them, and the geometry of a call. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CUDA_TYPES_CUH
#define KERAS_INTERNIMAGE_DCNV3_CUDA_TYPES_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

namespace dcnv3 {

constexpr int kThreads = 256;
constexpr unsigned kWarp = 0xffffffffu;
/* The number of points that has kernels of its own: those of a 3 x 3 kernel. */
constexpr int kTaps = 9;

/* Where a point of the kernel lies: whole pixels, and the rest. */
struct Tap {
  int x, y;
  float u, v;
};

/* One call of the operator as the kernels read it. */
struct Geometry {
  int64_t batch;
  int64_t row, image; /* elements of an image row, and of an image of the inputs */
  int64_t before;     /* of a row and a pixel */
  int height, width, channels, depth; /* depth: channels of a group */
  int out_width, groups, points;
  unsigned pixels, sites; /* of an image: output pixels, and (output pixel, group) pairs */
  int stride_h, stride_w, origin_y, origin_x;
  int kernel_h, dilation_h, dilation_w, center_y, center_x, middle; /* middle: the point left out */
  double exact_scale;
  float scale;
  bool softmax;
  bool paired; /* the two offsets of a point can be read and written at once */
  Tap taps[kTaps];
};

/* The place of point `p` without its learned offset, relative to the origin of its pixel. */
__host__ __device__ inline Tap locate_tap(const Geometry& k, int p) {
  p += p >= k.middle;
  const double x = k.exact_scale * (p / k.kernel_h * k.dilation_w - k.center_x);
  const double y = k.exact_scale * (p % k.kernel_h * k.dilation_h - k.center_y);
  const double floor_x = floor(x), floor_y = floor(y);
  return {int(floor_x), int(floor_y), float(x - floor_x), float(y - floor_y)};
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float(float value) {
  return value;
}
template <>
__device__ inline __half from_float(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float(float value) {
  return __float2bfloat16_rn(value);
}

/* Two neighbouring elements. */
template <class T>
struct Pair;
template <>
struct Pair<float> {
  float2 value;
  __device__ float2 floats() const { return value; }
  __device__ static Pair from(float a, float b) { return {make_float2(a, b)}; }
};
template <>
struct Pair<__half> {
  __half2 value;
  __device__ float2 floats() const { return __half22float2(value); }
  __device__ static Pair from(float a, float b) { return {__floats2half2_rn(a, b)}; }
};
template <>
struct Pair<__nv_bfloat16> {
  __nv_bfloat162 value;
  /* One instruction each; CUDA's own conversion takes the upper half out and shifts it back. */
  __device__ float2 floats() const {
    const unsigned bits = reinterpret_cast<const unsigned&>(value);
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
  }
  __device__ static Pair from(float a, float b) { return {__floats2bfloat162_rn(a, b)}; }
};

/* The type that an instruction reads or writes `bytes` bytes as. */
template <size_t bytes>
struct Raw;
template <>
struct Raw<4> { typedef unsigned int Type; };
template <>
struct Raw<8> { typedef uint2 Type; };
template <>
struct Raw<16> { typedef uint4 Type; };

/* `count` neighbouring elements, read and written by one instruction. */
template <class T, int count>
struct Pack {
  typename Raw<sizeof(T) * count>::Type raw;

  __device__ void to_floats(float (&values)[count]) const {
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const float2 pair = reinterpret_cast<const Pair<T>*>(&raw)[i].floats();
      values[2 * i] = pair.x, values[2 * i + 1] = pair.y;
    }
  }
  __device__ static Pack from_floats(const float (&values)[count]) {
    Pack pack;
#pragma unroll
    for (int i = 0; i < count / 2; ++i)
      reinterpret_cast<Pair<T>*>(&pack.raw)[i] = Pair<T>::from(values[2 * i], values[2 * i + 1]);
    return pack;
  }
};
template <class T>
struct Pack<T, 1> {
  T raw;

  __device__ void to_floats(float (&values)[1]) const { values[0] = to_float(raw); }
  __device__ static Pack from_floats(const float (&values)[1]) {
    return {from_float<T>(values[0])};
  }
};

template <int count, class T>
__device__ Pack<T, count> load(const T* from) {
  return {*reinterpret_cast<const decltype(Pack<T, count>::raw)*>(from)};
}

template <int count, class T>
__device__ void store(T* to, const float (&values)[count]) {
  const auto raw = Pack<T, count>::from_floats(values).raw;
  if constexpr (sizeof raw == 16)
    __stwb(reinterpret_cast<uint4*>(to), raw); /* nvcc takes a plain assignment apart */
  else
    *reinterpret_cast<decltype(Pack<T, count>::raw)*>(to) = raw;
}

/* The pixel at the upper left of a sample. It may lie outside the image, as may those to its right
 * and below. */
struct Cell {
  int x, y;
};

/* Whether all four corners are inside the image. */
__device__ inline bool inside(const Geometry& k, const Cell& cell) {
  return unsigned(cell.x) < unsigned(k.width - 1) && unsigned(cell.y) < unsigned(k.height - 1);
}

/* One bit for each corner inside the image: upper left, upper right, lower left, lower right. */
__device__ inline unsigned corners_inside(const Geometry& k, const Cell& cell) {
  const unsigned left = unsigned(cell.x) < unsigned(k.width);
  const unsigned right = unsigned(cell.x + 1) < unsigned(k.width);
  const unsigned columns = left | right << 1;
  return (unsigned(cell.y) < unsigned(k.height) ? columns : 0) |
         (unsigned(cell.y + 1) < unsigned(k.height) ? columns << 2 : 0);
}

/* A cell as it is addressed: `corners_inside`, and the index of its upper left pixel. That may lie
 * outside the image, so pixels are counted from `k.before` elements in front of it on. */
struct Place {
  unsigned pixel, corners;
};
constexpr unsigned kAllCorners = 15;

__device__ inline Place place_of(const Geometry& k, const Cell& cell) {
  return {unsigned(cell.y) * k.width + cell.x + (k.width + 1), corners_inside(k, cell)};
}

/* Bytes from where pixels are counted from to corner `corner` of a cell. Unsigned, 32 bits times 32
 * bits: one instruction multiplies and adds to the pointer. */
__device__ inline uint64_t corner_bytes(const Geometry& k, unsigned pixel, int corner,
                                        unsigned size) {
  return uint64_t(pixel) * (k.channels * size) + (corner & 1 ? k.channels * size : 0) +
         (corner & 2 ? k.row * size : 0);
}

/* Reads all four corners before any is used. Those that are not in `place.corners` are not read and
 * are zero; without `checked`, all are read. */
template <int count, bool checked, class T>
__device__ void load_corners(const Geometry& k, const T* from, const Place& place,
                             Pack<T, count> (&corners)[4]) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const char* pixel = reinterpret_cast<const char*>(from) +
                        corner_bytes(k, place.pixel, corner, sizeof(T));
    if (checked) corners[corner] = Pack<T, count>{};
    if (!checked || place.corners >> corner & 1)
      corners[corner] = load<count>(reinterpret_cast<const T*>(pixel));
  }
}

}  // namespace dcnv3
#endif
