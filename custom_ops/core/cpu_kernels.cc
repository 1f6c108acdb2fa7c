/* The forward and backward passes on a processor. Compiled once for each instruction set, into a
 * namespace of its own: no inline function from elsewhere may be used here, for the linker keeps
 * one copy of those, perhaps one that the processor at hand cannot run. */
#include "cpu.h"
#include "cpu_backward.h"
#include "cpu_convolution.h"
#include "cpu_forward.h"
#include "cpu_regions.h"

namespace dcnv3 {
namespace DCNV3_ISA {
namespace {

#define DCNV3_CHOOSE(pass, S, ...)                                                  \
  (call.points == 9 && depth == 16   ? pass<S, 16, 9>(__VA_ARGS__)                  \
   : call.points == 9 && depth == 32 ? pass<S, 32, 9>(__VA_ARGS__)                  \
   : depth == 16                     ? pass<S, 16, 0>(__VA_ARGS__)                  \
   : depth == 32                     ? pass<S, 32, 0>(__VA_ARGS__)                  \
                                     : pass<S, 0, 0>(__VA_ARGS__))

#define DCNV3_DISPATCH(pass, ...)                                          \
  const int64_t depth = call.channels / call.groups;                       \
  switch (call.dtype) {                                                    \
    case DCNV3_FLOAT32: return DCNV3_CHOOSE(pass, float, __VA_ARGS__);     \
    case DCNV3_BFLOAT16: return DCNV3_CHOOSE(pass, BFloat16, __VA_ARGS__); \
    case DCNV3_FLOAT16: return DCNV3_CHOOSE(pass, Float16, __VA_ARGS__);   \
    default: return pass<double, 0, 0>(__VA_ARGS__);                       \
  }

bool run_forward(const dcnv3_call& call, const void* inputs, const void* offset_mask, void* output,
                 int64_t begin, int64_t end) {
  DCNV3_DISPATCH(forward, call, inputs, offset_mask, output, begin, end)
}

bool run_backward(const dcnv3_call& call, const void* grad_output, const void* inputs,
                  const void* offset_mask, void* grad_inputs, void* grad_offset_mask, int64_t begin,
                  int64_t end) {
  DCNV3_DISPATCH(backward, call, grad_output, inputs, offset_mask, grad_inputs, grad_offset_mask,
                 begin, end)
}

#define DCNV3_OF_ELEMENTS(pass, ...)                         \
  switch (call.dtype) {                                      \
    case DCNV3_FLOAT32: return pass<float>(__VA_ARGS__);     \
    case DCNV3_BFLOAT16: return pass<BFloat16>(__VA_ARGS__); \
    case DCNV3_FLOAT16: return pass<Float16>(__VA_ARGS__);   \
    default: return pass<double>(__VA_ARGS__);               \
  }

bool run_roi_align(const dcnv3_regions& call, const void* const* maps, const void* boxes,
                   const int32_t* levels, void* output, int64_t begin, int64_t end) {
  DCNV3_OF_ELEMENTS(roi_align, call, maps, boxes, levels, output, begin, end)
}

bool run_roi_align_backward(const dcnv3_regions& call, const void* grad_output, const void* boxes,
                            const int32_t* levels, void* const* grad_maps, int64_t begin,
                            int64_t end) {
  DCNV3_OF_ELEMENTS(roi_align_backward, call, grad_output, boxes, levels, grad_maps, begin, end)
}

#define DCNV3_NAME(isa) DCNV3_STRING(isa)
#define DCNV3_STRING(isa) #isa

}  // namespace

extern const Kernels kernels = {DCNV3_NAME(DCNV3_ISA), run_forward, run_backward,
                                run_roi_align, run_roi_align_backward,
                                convolution, convolution_kernel, filtering::kFilters};

}  // namespace DCNV3_ISA
}  // namespace dcnv3
