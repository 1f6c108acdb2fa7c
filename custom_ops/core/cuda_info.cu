/* What the library for NVIDIA GPUs holds, and which driver it meets. */
#include <cuda_runtime_api.h>

#include "dcnv3.h"

#define DCNV3_STRING_OF(text) #text
#define DCNV3_STRING(text) DCNV3_STRING_OF(text)

extern "C" {

int32_t dcnv3_cuda_runtime_version(void) {
  int version = 0;
  if (cudaRuntimeGetVersion(&version) != cudaSuccess) version = 0;
#ifdef __CUDACC_VER_MAJOR__
  const int compiler = 1000 * __CUDACC_VER_MAJOR__ + 10 * __CUDACC_VER_MINOR__;
  if (version < compiler) version = compiler; /* wheels of both may differ in the minor version */
#endif
  return version;
}

int32_t dcnv3_cuda_driver_version(void) {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

const char* dcnv3_cuda_code(void) { return DCNV3_STRING(DCNV3_ARCHITECTURES); }

}  // extern "C"
