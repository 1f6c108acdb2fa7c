/* Just enough of CUDA for g++ to compile the kernels and run them on a processor, one block after
 * the other. Each thread of a block is a fibre that runs until it has to wait for others, in an
 * order that the test chooses. Two threads that touch a word of shared memory with no `__syncwarp`
 * between them fail the launch, whatever the order; a barrier that not all threads reach ends
 * the program. The test puts this file in the place of CUDA's own headers. */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cuda_emulation_types.h"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)

/* ---- threads --------------------------------------------------------------------------------- */

inline dim3 gridDim, blockDim, blockIdx;

namespace dcnv3 {
alignas(16) inline float4 shared_memory[48 * 1024 / sizeof(float4)];
}

#define EMULATION_UNSEEN __attribute__((no_sanitize("thread")))
/* Weak: several files of kernels are linked, with one definition of what has a name in C. */
#define EMULATION_HOOK __attribute__((no_sanitize("thread"), weak))
#define EMULATION_EXPORT __attribute__((visibility("default"), weak))

namespace emulation {

enum State { kRunning, kAtBarrier, kAtShuffle, kAtVote, kAtBlock, kDone };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  int turn; /* which of the two exchange slots is in use */
  unsigned exchange[2];
  unsigned barriers; /* how many it has passed */
  std::vector<std::pair<uintptr_t, size_t>> atomics; /* addresses and bytes, in their order */
};

constexpr size_t kStack = 64 * 1024;
inline std::vector<Fibre> fibres;
inline ucontext_t scheduler;
inline unsigned current;
inline std::function<void()> body;

/* ---- orders, of the threads of a warp and of warps and blocks ---- */

enum Order { kAscending, kDescending, kRotated };
inline int order = kAscending;
inline bool dry; /* launches are looked at, not run */
inline size_t shared_bytes; /* of a block of the last launch */

inline unsigned ordered(unsigned i, unsigned count) {
  if (order == kDescending) return count - 1 - i;
  return order == kRotated ? (i + count / 2 - 1) % count : i;
}

/* ---- races: who has touched a word of shared memory since his warp's last barrier ---- */

struct Word {
  unsigned warp, barriers, readers, writers;
  bool written;
};
inline std::vector<Word> words;
inline std::string race;

/* Ends the launch: what a thread reads in a race may be no address to go on with. */
EMULATION_UNSEEN inline void stop(size_t word, const char* what) {
  race = "threads race for word " + std::to_string(word) + " of shared memory" + what;
  swapcontext(&fibres[current].context, &scheduler);
}

EMULATION_UNSEEN inline void touch(const void* address, size_t bytes, bool writes) {
  const size_t offset =
      static_cast<const char*>(address) - reinterpret_cast<const char*>(dcnv3::shared_memory);
  if (offset >= sizeof dcnv3::shared_memory || words.empty()) return;
  const unsigned warp = current / 32, self = 1u << current % 32;
  for (size_t i = offset / 4; i <= (offset + bytes - 1) / 4; ++i) {
    Word& word = words[i];
    const bool touched = word.readers | word.writers;
    const bool same_warp = word.warp == warp;
    if (!touched || (same_warp && word.barriers != fibres[current].barriers))
      word = {warp, fibres[current].barriers, 0, 0, word.written};
    const unsigned others = writes ? word.readers | word.writers : word.writers;
    if ((touched && !same_warp) || others & ~self) stop(i, "");
    if (!writes && !word.written) stop(i, ", which is read before it is written");
    (writes ? word.writers : word.readers) |= self;
    word.written |= writes;
  }
}

/* ---- sectors: how much of memory the atomic additions of a warp touch ---- */

constexpr size_t kSector = 32;
inline size_t atomic_instructions, atomic_sectors, most_sectors;

/* As if the n-th addition of each thread were one instruction: of samples inside the image only. */
inline void count_sectors(unsigned begin, unsigned end) {
  for (size_t n = 0;; ++n) {
    std::set<uintptr_t> sectors;
    for (unsigned i = begin; i < end; ++i)
      if (n < fibres[i].atomics.size()) {
        const auto& [address, bytes] = fibres[i].atomics[n];
        for (uintptr_t s = address / kSector; s <= (address + bytes - 1) / kSector; ++s)
          sectors.insert(s);
      }
    if (sectors.empty()) return;
    atomic_instructions += 1, atomic_sectors += sectors.size();
    most_sectors = std::max(most_sectors, sectors.size());
  }
}

/* ---- running ---- */

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
inline int exchange(unsigned value, State state) {
  Fibre& self = fibres[current];
  const int turn = self.turn ^= 1;
  self.exchange[turn] = value;
  wait(state);
  return turn;
}

inline void all_alike(unsigned begin, unsigned end) {
  for (unsigned i = begin; i < end; ++i)
    if (fibres[i].state != fibres[begin].state) {
      fprintf(stderr, "a barrier is not reached by all threads\n");
      abort();
    }
}

/* To its end, or to the next barrier of the whole block. */
inline void run_warp(unsigned begin, unsigned end) {
  do {
    for (unsigned i = 0; i < end - begin; ++i) {
      current = begin + ordered(i, end - begin);
      swapcontext(&scheduler, &fibres[current].context);
      if (!race.empty()) return;
    }
    all_alike(begin, end);
  } while (fibres[begin].state != kDone && fibres[begin].state != kAtBlock);
}

inline void run_block(unsigned threads) {
  if (fibres.size() < threads) fibres.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fibre& fibre = fibres[i];
    if (!fibre.stack) fibre.stack.reset(new char[kStack]);
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = &scheduler;
    makecontext(&fibre.context, enter, 0);
    fibre.state = kRunning;
    fibre.turn = fibre.barriers = 0;
    fibre.atomics.clear();
  }
  words.assign(sizeof dcnv3::shared_memory / 4, {});
  const unsigned warps = (threads + 31) / 32;
  do {
    for (Word& word : words) word.readers = word.writers = 0;
    for (unsigned i = 0; i < warps && race.empty(); ++i) {
      const unsigned warp = ordered(i, warps) * 32;
      run_warp(warp, std::min(warp + 32, threads));
    }
    if (race.empty()) all_alike(0, threads);
  } while (race.empty() && fibres[0].state != kDone);
  for (unsigned warp = 0; warp < threads && race.empty(); warp += 32)
    count_sectors(warp, std::min(warp + 32, threads));
  words.clear();
}

}  // namespace emulation

/* What g++ puts before every access to memory under -fsanitize=thread; its library is not linked. */
extern "C" {
#define EMULATION_ACCESS(bytes)                                                              \
  EMULATION_HOOK void __tsan_read##bytes(void* at) { emulation::touch(at, bytes, false); }   \
  EMULATION_HOOK void __tsan_write##bytes(void* at) { emulation::touch(at, bytes, true); }
EMULATION_ACCESS(1)
EMULATION_ACCESS(2)
EMULATION_ACCESS(4)
EMULATION_ACCESS(8)
EMULATION_ACCESS(16)
EMULATION_HOOK void __tsan_read_range(void* at, size_t bytes) {
  emulation::touch(at, bytes, false);
}
EMULATION_HOOK void __tsan_write_range(void* at, size_t bytes) {
  emulation::touch(at, bytes, true);
}
EMULATION_HOOK void __tsan_func_entry(void*) {}
EMULATION_HOOK void __tsan_func_exit() {}
EMULATION_HOOK void __tsan_init() {}
EMULATION_HOOK void __tsan_vptr_update(void*, void*) {}
EMULATION_HOOK void __tsan_vptr_read(void*) {}
}

struct emulated_thread_index {
  struct {
    operator unsigned() const { return emulation::current; }
  } x;
};
inline emulated_thread_index threadIdx;

inline void __syncthreads() { emulation::exchange(0, emulation::kAtBlock); }
/* Of a warp's, only this one orders accesses to memory: shuffles and votes do not, for all that
 * they wait. */
inline void __syncwarp() {
  emulation::exchange(0, emulation::kAtBarrier);
  ++emulation::fibres[emulation::current].barriers;
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const int turn = emulation::exchange(value, emulation::kAtVote);
  unsigned all = 0;
  for (unsigned i = 0; i < 32; ++i)
    all |= emulation::fibres[(emulation::current & ~31u) + i].exchange[turn] << i;
  return all;
}
inline bool __all_sync(unsigned mask, bool value) { return !~__ballot_sync(mask, value); }
inline float __shfl_xor_sync(unsigned, float value, int lane) {
  const int turn = emulation::exchange(emulated_bits(value), emulation::kAtShuffle);
  return emulated_float(emulation::fibres[emulation::current ^ lane].exchange[turn]);
}
inline float __shfl_sync(unsigned, float value, int lane) {
  const int turn = emulation::exchange(emulated_bits(value), emulation::kAtShuffle);
  return emulated_float(emulation::fibres[(emulation::current & ~31u) + lane].exchange[turn]);
}
inline int __shfl_sync(unsigned, int value, int lane) {
  const int turn = emulation::exchange(unsigned(value), emulation::kAtShuffle);
  return int(emulation::fibres[(emulation::current & ~31u) + lane].exchange[turn]);
}
inline float atomicAdd(float* to, float value) {
  emulation::fibres[emulation::current].atomics.emplace_back(uintptr_t(to), sizeof value);
  const float old = *to;
  *to += value;
  return old;
}
inline void atomicAdd(float4* to, float4 value) {
  emulation::fibres[emulation::current].atomics.emplace_back(uintptr_t(to), sizeof value);
  *to = {to->x + value.x, to->y + value.y, to->z + value.z, to->w + value.w};
}
inline float __expf(float value) { return expf(value); }
inline float __fdividef(float a, float b) { return a / b; }
/* Rounded each; this processor's compiler fuses nothing unasked. */
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline int __float_as_int(float value) { return int(emulated_bits(value)); }
inline float __int_as_float(int value) { return emulated_float(uint32_t(value)); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(unsigned value) { return __builtin_ffs(int(value)); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

/* ---- the host's side ------------------------------------------------------------------------- */

typedef void* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
inline const char* cudaGetErrorString(cudaError_t) { return emulation::race.c_str(); }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (!emulation::dry) memset(to, value, bytes);
  return cudaSuccess;
}

extern "C" {
EMULATION_EXPORT void emulation_set_order(int order) {
  emulation::order = order;
}
EMULATION_EXPORT void emulation_set_dry(int dry) { emulation::dry = dry; }
/* Of all atomic additions since the last call: instructions, sectors, and the most of one. */
EMULATION_EXPORT void emulation_take_sectors(size_t counts[3]) {
  counts[0] = emulation::atomic_instructions, counts[1] = emulation::atomic_sectors;
  counts[2] = emulation::most_sectors;
  emulation::atomic_instructions = emulation::atomic_sectors = emulation::most_sectors = 0;
}
EMULATION_EXPORT size_t emulation_shared_bytes() {
  return emulation::shared_bytes;
}
/* Blocks of the last launch. */
EMULATION_EXPORT size_t emulation_blocks() {
  return size_t(gridDim.x) * gridDim.y * gridDim.z;
}
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (config->dynamicSmemBytes > sizeof dcnv3::shared_memory || config->blockDim.x % 32) abort();
  gridDim = config->gridDim, blockDim = config->blockDim;
  emulation::shared_bytes = config->dynamicSmemBytes;
  emulation::body = [&] { kernel(arguments...); };
  const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
  emulation::race.clear();
  for (unsigned i = 0; i < blocks && !emulation::dry && emulation::race.empty(); ++i) {
    const unsigned block = emulation::ordered(i, blocks);
    blockIdx.x = block % gridDim.x, blockIdx.y = block / gridDim.x % gridDim.y;
    blockIdx.z = block / gridDim.x / gridDim.y;
    memset(dcnv3::shared_memory, 0xff, sizeof dcnv3::shared_memory); /* NaN, as if unwritten */
    emulation::run_block(blockDim.x);
  }
  return emulation::race.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
