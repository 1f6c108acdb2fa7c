/* What the launches of all kernels share: statuses, grids, and the launch itself. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CUDA_HOST_CUH
#define KERAS_INTERNIMAGE_DCNV3_CUDA_HOST_CUH

#include <cuda_runtime.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include <algorithm>

#include "dcnv3.h"

namespace dcnv3 {

constexpr int64_t kMaxGridX = (int64_t(1) << 31) - 1, kMaxGridY = 65535;

__attribute__((format(printf, 1, 2))) inline dcnv3_status error(const char* format, ...) {
  dcnv3_status status = {1, {}};
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(status.message, sizeof status.message, format, arguments);
  va_end(arguments);
  return status;
}

inline dcnv3_status to_status(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return {0, {}};
  return error("%s must succeed. Received: CUDA error %d, %s", what, int(code),
               cudaGetErrorString(code));
}

inline bool aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

/* A grid of `blocks` for each of `count` images, or regions, and those in two axes. */
inline dim3 grid_of(int64_t count, int64_t blocks) {
  const int64_t columns = std::min(count, kMaxGridY);
  return dim3(unsigned(blocks), unsigned(columns), unsigned((count + columns - 1) / columns));
}

/* Launches, and picks up what the launch itself left behind. */
template <class... Parameters, class... Arguments>
cudaError_t launch(const cudaLaunchConfig_t& config, void (*kernel)(Parameters...),
                   Arguments... arguments) {
  const cudaError_t code = cudaLaunchKernelEx(&config, kernel, arguments...);
  const cudaError_t last = cudaGetLastError();
  return code != cudaSuccess ? code : last;
}

}  // namespace dcnv3
#endif
