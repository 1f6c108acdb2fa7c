/* `official.cu` for a processor: what a rehearsal launches in the place of a GPU's kernels. */
#include "cuda_emulation.h"

#include <utility>

#define DCNV3_EMULATED
struct Half;
inline float to_float(Half value);
inline void put(Half* to, float value);
static float shares[3 * 1024];
#include "official.cu"

inline float to_float(Half value) { return __half2float(__half{value.bits}); }
inline void put(Half* to, float value) { to->bits = __float2half_rn(value).bits; }

/* A driver is given the address of each argument, and knows their types from the kernel. */
template <class... Parameters, size_t... indices>
void run(void (*kernel)(Parameters...), void** arguments, std::index_sequence<indices...>) {
  kernel(*static_cast<Parameters*>(arguments[indices])...);
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), unsigned grid, unsigned block, void** arguments) {
  gridDim = grid, blockDim = block;
  emulation::body = [&] {
    run(kernel, arguments, std::make_index_sequence<sizeof...(Parameters)>());
  };
  for (blockIdx = 0; blockIdx.x < grid; ++blockIdx.x) emulation::run_block(block);
}

extern "C" int emulated_launch(const char* name, unsigned grid, unsigned block, unsigned shared,
                               void** arguments) {
  if (shared > sizeof shares) return 2;
  for (float& share : shares) share = NAN; /* as if unwritten */
#define KERNEL(kernel)                             \
  if (!strcmp(name, #kernel)) {                    \
    launch(kernel, grid, block, arguments);        \
    return 0;                                      \
  }
  KERNEL(forward_float32)
  KERNEL(forward_float16)
  KERNEL(backward_float32)
  KERNEL(backward_float16)
  KERNEL(round_to_float16)
  KERNEL(spin)
  return 1;
}
