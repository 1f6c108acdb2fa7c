/* What the instruction sets' kernels share with their caller. Included by files compiled for
 * different processors: nothing here may leave code behind that the linker could mix up. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CPU_H
#define KERAS_INTERNIMAGE_DCNV3_CPU_H

#include "dcnv3.h"

namespace dcnv3 {

/* Positions further than this from their pixel are outside every image. */
constexpr double kFar = 16777216.0;

/* Each returns false where memory for its scratch could not be had. */
using Forward = bool (*)(const dcnv3_call&, const void* inputs, const void* offset_mask,
                         void* output, int64_t begin, int64_t end);
using Backward = bool (*)(const dcnv3_call&, const void* grad_output, const void* inputs,
                          const void* offset_mask, void* grad_inputs, void* grad_offset_mask,
                          int64_t begin, int64_t end);

struct Kernels {
  const char* isa;
  Forward forward;
  Backward backward;
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

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace dcnv3
#endif
