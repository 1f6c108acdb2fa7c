/* RoIAlign for processors and NVIDIA GPUs, and non-maximum suppression for processors, behind plain
 * C as in dcnv3.h.
 *
 *   N         images               R  regions of each image      C  channels
 *   maps      one for each level, (N, H_l, W_l, C), dense, channels last
 *   boxes     (N, R, 4): left, top, right, bottom in pixels of the image; float32, and float64
 *             where the maps are
 *   levels    (N, R) int32, the map of each region; of any other number than a level's the region
 *             is zero
 *   output    (N, R, bins, bins, C)
 *
 * A bin is the mean of bilinear samples, ceil(size of a bin) along each axis: pixels are counted
 * from the centre of the first, a sample more than a pixel outside of the outermost centres counts
 * as zero, others outside as the nearest pixel. A box without extent is zero, as is one that is not
 * finite or reaches further than 2^24 pixels of its map. Time is bounded by the map's size, whatever
 * the box. float16 and bfloat16 are storage, sums are float32.
 *
 * Results do not depend on how the work is split, on the number of threads, or on the other images
 * of a batch, to the last bit.
 */
#ifndef KERAS_INTERNIMAGE_DETECTION_H
#define KERAS_INTERNIMAGE_DETECTION_H

#include "dcnv3.h"

#ifdef __cplusplus
extern "C" {
#endif

#define DCNV3_MAX_LEVELS 16

/* One call of RoIAlign. */
typedef struct {
  int32_t dtype; /* a dcnv3_dtype */
  int32_t levels;
  int64_t bins; /* along each side */
  int64_t batch, regions, channels;
  int64_t heights[DCNV3_MAX_LEVELS], widths[DCNV3_MAX_LEVELS];
  double strides[DCNV3_MAX_LEVELS]; /* pixels of the image in one of the map */
} dcnv3_regions;

/* Checks the sizes. Every other function expects a call that passed. */
DCNV3_EXPORT dcnv3_status dcnv3_roi_align_prepare(const dcnv3_regions* call);

/* Computes the regions [begin, end) of the N * R. */
DCNV3_EXPORT dcnv3_status dcnv3_cpu_roi_align(const dcnv3_regions* call, const void* const* maps,
                                              const void* boxes, const int32_t* levels,
                                              void* output, int64_t begin, int64_t end);

/* The backward pass is split into tasks that write to places of their own. */
DCNV3_EXPORT int64_t dcnv3_cpu_roi_align_backward_tasks(const dcnv3_regions* call);

/* Runs the tasks [begin, end). Together they write every element of the maps' gradients. */
DCNV3_EXPORT dcnv3_status dcnv3_cpu_roi_align_backward(const dcnv3_regions* call,
                                                       const void* grad_output, const void* boxes,
                                                       const int32_t* levels,
                                                       void* const* grad_maps, int64_t begin,
                                                       int64_t end);

/* The boxes of one image that remain when, from the best on, those are dropped whose intersection
 * over union with a better one of their class is greater than `threshold`.
 *
 *   boxes     (number, 4)          scores  (number); minus infinity and NaN do not count
 *   classes   (number)
 *   indices   (count), the best first, of equal scores the first; 0 where there is none
 *   valid     (count), 1 or 0
 *
 * `dtype` is that of boxes and scores, DCNV3_FLOAT32 or DCNV3_FLOAT64. */
DCNV3_EXPORT dcnv3_status dcnv3_cpu_nms(int32_t dtype, const void* boxes, const void* scores,
                                        const int32_t* classes, int64_t number, double threshold,
                                        int64_t count, int32_t* indices, uint8_t* valid);

/* ---- NVIDIA GPUs, in a library of their own -------------------------------------------------- */

/* Device pointers, but for the lists of maps; `stream` is a cudaStream_t. float64 is refused. The
 * backward pass writes every element of the maps' gradients, in an order of additions that is the
 * same in every run. */
DCNV3_EXPORT dcnv3_status dcnv3_cuda_roi_align(const dcnv3_regions* call, const void* const* maps,
                                               const void* boxes, const int32_t* levels,
                                               void* output, void* stream);

DCNV3_EXPORT dcnv3_status dcnv3_cuda_roi_align_backward(const dcnv3_regions* call,
                                                        const void* grad_output, const void* boxes,
                                                        const int32_t* levels,
                                                        void* const* grad_maps, void* stream);

#ifdef __cplusplus
}
#endif
#endif
