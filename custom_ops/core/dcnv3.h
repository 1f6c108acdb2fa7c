/* DCNv3 for processors and NVIDIA GPUs behind plain C: no framework, pointers and sizes only.
 *
 *   N H W C   inputs               Ho Wo  output size          G  groups, D = C / G channels each
 *   P         sampling points of a group, x-major: p = column * kernel_h + row
 *
 * All tensors are dense, channels last and of one element type:
 *
 *   inputs       (N, H, W, C)
 *   offset_mask  (N, Ho, Wo, 3 G P): 2 G P offsets, for each (g, p) the pair (x, y) in pixels,
 *                then G P masks, logits where `softmax` is set
 *   output       (N, Ho, Wo, C)
 *
 * float16 and bfloat16 are storage: positions and sums are float32, and float64 for float64.
 * An offset that is not finite, or is beyond 2^24 pixels, samples nothing. Corners outside the
 * image are left out rather than multiplied by zero, so that an infinite border pixel stays there.
 *
 * Results do not depend on how the work is split, on the number of threads, or on the other images
 * of a batch, to the last bit (on a GPU: `deterministic`).
 */
#ifndef KERAS_INTERNIMAGE_DCNV3_H
#define KERAS_INTERNIMAGE_DCNV3_H

#include <stddef.h>
#include <stdint.h>

/* Raised whenever a struct or a signature changes, here or in detection.h; bindings compare it when
 * they load. */
#define DCNV3_ABI 3

#if defined(_WIN32)
#define DCNV3_EXPORT __declspec(dllexport)
#elif defined(__GNUC__)
#define DCNV3_EXPORT __attribute__((visibility("default")))
#else
#define DCNV3_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  DCNV3_FLOAT32 = 0,
  DCNV3_FLOAT64 = 1,
  DCNV3_BFLOAT16 = 2,
  DCNV3_FLOAT16 = 3
} dcnv3_dtype;

/* One call of the operator. The first block is the caller's, the second that of dcnv3_prepare. */
typedef struct {
  int32_t dtype; /* a dcnv3_dtype */
  int32_t kernel_h, kernel_w;
  int32_t stride_h, stride_w;
  int32_t pad_h, pad_w;
  int32_t dilation_h, dilation_w;
  int32_t groups;
  int32_t remove_center; /* 0 or 1 */
  int32_t softmax;       /* 0 or 1: normalise the masks of a group over its points */
  double offset_scale;

  int64_t batch, height, width, channels;
  int64_t out_height, out_width;
  int64_t points; /* P */
} dcnv3_call;

/* code 0 is success; otherwise the message says what must hold and what was received. */
typedef struct {
  int32_t code;
  char message[252];
} dcnv3_status;

DCNV3_EXPORT int32_t dcnv3_abi(void);

/* Checks the geometry and the shapes, and fills in the sizes. Every other function expects a call
 * that passed. An empty batch is allowed. */
DCNV3_EXPORT dcnv3_status dcnv3_prepare(dcnv3_call* call, const int64_t inputs[4],
                                        const int64_t offset_mask[4]);

/* ---- processors ------------------------------------------------------------------------------ */

/* Computes the output pixels [begin, end) of the N * Ho * Wo, in raster order. */
DCNV3_EXPORT dcnv3_status dcnv3_cpu_forward(const dcnv3_call* call, const void* inputs,
                                            const void* offset_mask, void* output, int64_t begin,
                                            int64_t end);

/* The backward pass is split into tasks that write to places of their own. */
DCNV3_EXPORT int64_t dcnv3_cpu_backward_tasks(const dcnv3_call* call);

/* Runs the tasks [begin, end). Together they write every element of both gradients. */
DCNV3_EXPORT dcnv3_status dcnv3_cpu_backward(const dcnv3_call* call, const void* grad_output,
                                             const void* inputs, const void* offset_mask,
                                             void* grad_inputs, void* grad_offset_mask,
                                             int64_t begin, int64_t end);

/* The instruction set in use: "avx512", "avx2", "sse2", or "generic" on other processors. */
DCNV3_EXPORT const char* dcnv3_cpu_isa(void);

/* Chooses another one this processor has, for tests and measurements; 0 if it has not. */
DCNV3_EXPORT int32_t dcnv3_cpu_set_isa(const char* isa);

/* ---- NVIDIA GPUs, in a library of their own -------------------------------------------------- */

/* Device pointers; `stream` is a cudaStream_t. float64 is refused. */
DCNV3_EXPORT dcnv3_status dcnv3_cuda_forward(const dcnv3_call* call, const void* inputs,
                                             const void* offset_mask, void* output, void* stream);

/* Bytes of device memory that the backward pass needs beside its results. */
DCNV3_EXPORT size_t dcnv3_cuda_backward_workspace(const dcnv3_call* call, int32_t deterministic);

DCNV3_EXPORT dcnv3_status dcnv3_cuda_backward(const dcnv3_call* call, const void* grad_output,
                                              const void* inputs, const void* offset_mask,
                                              void* grad_inputs, void* grad_offset_mask,
                                              void* workspace, int32_t deterministic,
                                              void* stream);

/* Of the CUDA runtime in the library, or of nvcc if that is later, and the latest that the driver
 * supports: 1000 * major + 10 * minor, such as 13050. The driver's is 0 where there is none. */
DCNV3_EXPORT int32_t dcnv3_cuda_runtime_version(void);
DCNV3_EXPORT int32_t dcnv3_cuda_driver_version(void);

/* The architectures whose machine code the library holds, then the one of its PTX, such as
 * "sm_75_sm_80_compute_80". */
DCNV3_EXPORT const char* dcnv3_cuda_code(void);

#ifdef __cplusplus
}
#endif
#endif
