/* Just enough of CUDA for g++ to compile the kernels and run them on a processor, one block after
 * the other. Each thread of a block is a fibre that runs until it has to wait for others, so a
 * missing barrier shows as a wrong result; a barrier that not all threads reach ends the program.
 * The test puts this file in the place of CUDA's own headers. */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)

/* Aligned as on a GPU: the test has the compiler check every access. */
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
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
inline float2 __bfloat1622float2(__nv_bfloat162 pair) {
  return {__bfloat162float(pair.x), __bfloat162float(pair.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

template <class T>
void __stwb(T* to, T value) {
  *to = value;
}

/* ---- threads --------------------------------------------------------------------------------- */

namespace emulation {

enum State { kRunning, kAtWarp, kAtBlock, kDone };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  int turn; /* which of the two exchange slots is in use */
  unsigned exchange[2];
};

constexpr size_t kStack = 64 * 1024;
inline std::vector<Fibre> fibres;
inline ucontext_t scheduler;
inline unsigned current;
inline std::function<void()> body;

inline void enter() {
  body();
  fibres[current].state = kDone;
}

inline void wait(State state) {
  const unsigned self = current;
  fibres[self].state = state;
  swapcontext(&fibres[self].context, &scheduler);
}

/* Hands `value` to the other threads of the warp; returns the slot to read theirs from. */
inline int exchange(unsigned value) {
  Fibre& self = fibres[current];
  const int turn = self.turn ^= 1;
  self.exchange[turn] = value;
  wait(kAtWarp);
  return turn;
}

inline bool all_in(State state, unsigned begin, unsigned end) {
  for (unsigned i = begin; i < end; ++i)
    if (fibres[i].state != state) return false;
  return true;
}

inline void run_block(unsigned threads) {
  if (fibres.size() < threads) fibres.resize(threads);
  for (current = 0; current < threads; ++current) {
    Fibre& fibre = fibres[current];
    if (!fibre.stack) fibre.stack.reset(new char[kStack]);
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = &scheduler;
    makecontext(&fibre.context, enter, 0);
    fibre.state = kRunning;
    fibre.turn = 0;
  }
  while (!all_in(kDone, 0, threads)) {
    bool progress = false;
    const bool whole_block = all_in(kAtBlock, 0, threads);
    for (unsigned warp = 0; warp < threads; warp += 32) {
      const unsigned end = warp + 32 < threads ? warp + 32 : threads;
      if (!whole_block && !all_in(kRunning, warp, end) && !all_in(kAtWarp, warp, end)) continue;
      progress = true;
      for (current = warp; current < end; ++current)
        swapcontext(&scheduler, &fibres[current].context);
    }
    if (!progress) {
      fprintf(stderr, "a barrier is not reached by all threads\n");
      abort();
    }
  }
}

}  // namespace emulation

inline dim3 gridDim, blockDim, blockIdx;
struct emulated_thread_index {
  struct {
    operator unsigned() const { return emulation::current; }
  } x;
};
inline emulated_thread_index threadIdx;

inline void __syncthreads() { emulation::wait(emulation::kAtBlock); }
inline void __syncwarp() { emulation::exchange(0); }
inline bool __all_sync(unsigned, bool value) {
  const int turn = emulation::exchange(value);
  bool all = true;
  for (unsigned i = 0; i < 32; ++i)
    all = all && emulation::fibres[(emulation::current & ~31u) + i].exchange[turn];
  return all;
}
inline float __shfl_xor_sync(unsigned, float value, int lane) {
  const int turn = emulation::exchange(emulated_bits(value));
  return emulated_float(emulation::fibres[emulation::current ^ lane].exchange[turn]);
}
inline float atomicAdd(float* to, float value) {
  const float old = *to;
  *to += value;
  return old;
}
inline float __expf(float value) { return expf(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline int min(int a, int b) { return a < b ? a : b; }

/* ---- the host's side ------------------------------------------------------------------------- */

typedef void* cudaStream_t;
enum cudaError_t { cudaSuccess = 0 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}

namespace dcnv3 {
alignas(16) float4 shared_memory[48 * 1024 / sizeof(float4)];
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (config->dynamicSmemBytes > sizeof dcnv3::shared_memory || config->blockDim.x % 32) abort();
  gridDim = config->gridDim, blockDim = config->blockDim;
  emulation::body = [&] { kernel(arguments...); };
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      memset(dcnv3::shared_memory, 0xff, sizeof dcnv3::shared_memory); /* NaN, as if unwritten */
      emulation::run_block(blockDim.x);
    }
  return cudaSuccess;
}
