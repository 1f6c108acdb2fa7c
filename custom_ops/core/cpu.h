/* What the instruction sets' kernels share with their caller. Included by files compiled for
 * different processors: nothing here may leave code behind that the linker could mix up. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CPU_H
#define KERAS_INTERNIMAGE_DCNV3_CPU_H

#include "convolution.h"
#include "detection.h"

namespace dcnv3 {

/* Positions further than this from their pixel are outside every image. */
constexpr double kFar = 16777216.0;

/* Each returns false where memory for its scratch could not be had. */
using Forward = bool (*)(const dcnv3_call&, const void* inputs, const void* offset_mask,
                         void* output, int64_t begin, int64_t end);
using Backward = bool (*)(const dcnv3_call&, const void* grad_output, const void* inputs,
                          const void* offset_mask, void* grad_inputs, void* grad_offset_mask,
                          int64_t begin, int64_t end);

using RoiAlign = bool (*)(const dcnv3_regions&, const void* const* maps, const void* boxes,
                          const int32_t* levels, void* output, int64_t begin, int64_t end);
using RoiAlignBackward = bool (*)(const dcnv3_regions&, const void* grad_output, const void* boxes,
                                  const int32_t* levels, void* const* grad_maps, int64_t begin,
                                  int64_t end);

/* The tiles [begin, end), which are numbered image by image. */
using Convolution = bool (*)(const dcnv3_convolution&, const float* inputs,
                             const float* transformed, const float* bias, float* output,
                             int64_t begin, int64_t end);
using ConvolutionKernel = void (*)(const dcnv3_convolution&, const float* kernel,
                                   float* transformed, int64_t begin, int64_t end);

struct Kernels {
  const char* isa;
  Forward forward;
  Backward backward;
  RoiAlign roi_align;
  RoiAlignBackward roi_align_backward;
  Convolution convolution;
  ConvolutionKernel convolution_kernel;
  int64_t convolution_filters; /* in a block of the transformed kernel */
};

#ifdef DCNV3_X86
namespace sse2 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
#else
namespace generic { extern const Kernels kernels; }
#endif

/* Groups in a task of the backward pass: few, so that one image gives work to several threads. */
constexpr int64_t kTaskGroups = 2;
/* Likewise channels of RoIAlign's. */
constexpr int64_t kTaskChannels = 32;

/* Pixels along a side of a convolution's tiles, and how many tiles are computed together. */
constexpr int64_t kTileSize = 4, kMostTiles = 96;

/* Sizes of an image and positions in it must fit into 32 bits with room to spare. */
constexpr int64_t kMaxSize = int64_t(1) << 28;

/* The kernels in use, and statuses: in cpu.cc. */
const Kernels& chosen();
dcnv3_status ok();
__attribute__((format(printf, 1, 2))) dcnv3_status error(const char* format, ...);
dcnv3_status out_of_memory();

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace dcnv3
#endif
