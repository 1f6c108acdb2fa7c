/* Convolutions with kernels of 3 x 3 for processors, behind plain C as in dcnv3.h.
 *
 *   inputs    (N, H, W, C), float32, dense, channels last, as all that follows
 *   kernel    (3, 3, C, F)
 *   bias      (F)
 *   output    (N, H, W, F): stride 1, zeros around; with `relu`, what is negative becomes zero
 *
 * Rounding errors are one to four times the plain sum's. Numbers do not depend on how the work is
 * split, on the number of threads, or on the other images of a batch, to the last bit.
 */
#ifndef KERAS_INTERNIMAGE_CONVOLUTION_H
#define KERAS_INTERNIMAGE_CONVOLUTION_H

#include "dcnv3.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int64_t batch, height, width, channels, filters;
  int32_t relu;
} dcnv3_convolution;

/* Checks the sizes. Every other function expects a call that passed. */
DCNV3_EXPORT dcnv3_status dcnv3_convolution_prepare(const dcnv3_convolution* call);

/* The kernel is transformed first: into how many floats, and in how many tasks. */
DCNV3_EXPORT int64_t dcnv3_cpu_convolution_workspace(const dcnv3_convolution* call);
DCNV3_EXPORT int64_t dcnv3_cpu_convolution_kernel_tasks(const dcnv3_convolution* call);

/* Runs the tasks [begin, end). Together they write the workspace. */
DCNV3_EXPORT dcnv3_status dcnv3_cpu_convolution_kernel(const dcnv3_convolution* call,
                                                       const float* kernel, float* workspace,
                                                       int64_t begin, int64_t end);

/* Tasks of the convolution, each of the same size but for the last. */
DCNV3_EXPORT int64_t dcnv3_cpu_convolution_tasks(const dcnv3_convolution* call);

/* Runs the tasks [begin, end). Together they write the output. */
DCNV3_EXPORT dcnv3_status dcnv3_cpu_convolution(const dcnv3_convolution* call, const float* inputs,
                                                const float* workspace, const float* bias,
                                                float* output, int64_t begin, int64_t end);

#ifdef __cplusplus
}
#endif
#endif
