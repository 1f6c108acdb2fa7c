/* CUDA's vectors and half types, for `cuda_emulation.h`. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Aligned as on a GPU: the test has the compiler check every access. */
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

/* ---- element types --------------------------------------------------------------------------- */

inline uint32_t emulated_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float emulated_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline float __uint_as_float(unsigned value) { return emulated_float(value); }

struct __half { uint16_t bits; };
inline float __half2float(__half half) {
  const int sign = half.bits >> 15, exponent = half.bits >> 10 & 31, mantissa = half.bits & 1023;
  const float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                     : exponent     ? ldexpf(float(1024 + mantissa), exponent - 25)
                                    : ldexpf(float(mantissa), -24);
  return sign ? -size : size;
}
inline __half __float2half_rn(float value) {
  const uint16_t sign = emulated_bits(value) >> 16 & 0x8000;
  const float size = fabsf(value);
  if (isnan(value)) return {uint16_t(sign | 0x7e00)};
  if (size >= 65520.0f) return {uint16_t(sign | 0x7c00)};
  if (size < 0x1p-14f) return {uint16_t(sign | int(nearbyintf(size * 0x1p24f)))};
  int exponent;
  const float mantissa = frexpf(size, &exponent); /* [0.5, 1), rounded to 11 bits */
  return {uint16_t(sign + ((exponent + 13) << 10) + int(nearbyintf(mantissa * 2048.0f)))};
}

struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 value) {
  return emulated_float(uint32_t(value.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = emulated_bits(value);
  if (isnan(value)) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

struct alignas(4) __half2 { __half x, y; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float2 __half22float2(__half2 pair) {
  return {__half2float(pair.x), __half2float(pair.y)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

template <class T>
void __stwb(T* to, T value) {
  *to = value;
}
