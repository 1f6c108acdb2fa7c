/* A stand-in for NVIDIA's driver, libcuda.so.1: `benchmarks.gpu.driver` calls it as it would the
 * real one, and the kernels run on the processor. Where CUDA's header is there, the compiler
 * compares the prototypes with the real ones. */
#include "emulated.cc"

#if __has_include(<cuda.h>)
#include <cuda.h>
#undef cuEventElapsedTime /* the name before CUDA 13, which drivers keep */
#else
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st* CUcontext;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
typedef struct CUstream_st* CUstream;
typedef struct CUevent_st* CUevent;
typedef int CUdevice_attribute;
#endif

namespace {

/* Beyond 32 bits, so that a handle cut off in a call shows. */
CUcontext const kContext = CUcontext(0x1234567800000000);
CUmodule const kModule = CUmodule(0x2234567800000000);
CUstream const kStream = CUstream(0x3234567800000000);
thread_local CUcontext current;
int launches, spins;

CUresult status(bool good) { return CUresult(good ? 0 : 400); }

}  // namespace

extern "C" {

int stub_launches() { return launches; }
int stub_spins() { return spins; }

CUresult cuInit(unsigned flags) { return status(flags == 0); }
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = 0;
  return status(ordinal == 0);
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = kContext;
  return status(device == 0);
}
CUresult cuCtxSetCurrent(CUcontext context) {
  current = context;
  return status(context == kContext);
}
CUresult cuCtxSynchronize() { return status(current == kContext); }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  *value = attribute == 75 ? 9 : 0;
  return status(device == 0 && (attribute == 75 || attribute == 76));
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error ? "invalid" : "no error";
  return CUresult(0);
}
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  *module = kModule;
  return status(!strcmp(static_cast<const char*>(image), "machine code"));
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  *function = CUfunction(strdup(name));
  return status(module == kModule);
}
CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  *stream = kStream;
  return status(flags == 1 && current == kContext);
}
CUresult cuStreamSynchronize(CUstream stream) { return status(stream == kStream); }
CUresult cuEventCreate(CUevent* event, unsigned flags) {
  *event = CUevent(new int(-1));
  return status(flags == 0);
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
  *reinterpret_cast<int*>(event) = launches;
  return status(stream == kStream);
}
CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  *milliseconds = *reinterpret_cast<int*>(end) - *reinterpret_cast<int*>(start);
  return status(true);
}
CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t size) {
  *address = CUdeviceptr(malloc(size));
  return status(size > 0 && current == kContext);
}
CUresult cuMemFree_v2(CUdeviceptr address) {
  free(reinterpret_cast<void*>(address));
  return status(true);
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t size) {
  memcpy(reinterpret_cast<void*>(to), from, size);
  return status(true);
}
CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t size) {
  memcpy(to, reinterpret_cast<void*>(from), size);
  return status(true);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
  memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size);
  ++launches;
  return status(stream == kStream);
}
CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
  unsigned* words = reinterpret_cast<unsigned*>(to);
  for (size_t i = 0; i < count; ++i) words[i] = value;
  return status(stream == kStream);
}
CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        CUstream stream, void** arguments, void** extra) {
  const char* name = reinterpret_cast<const char*>(function);
  const bool good = current == kContext && stream == kStream && !extra &&
                    grid_y * grid_z * block_y * block_z == 1;
  ++(strcmp(name, "spin") ? launches : spins);
  return status(good && emulated_launch(name, grid_x, block_x, shared, arguments) == 0);
}

}  // extern "C"
