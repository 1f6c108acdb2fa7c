/* What the bindings to the frameworks share: one reading of the operator's arguments, and how much
 * work is worth a thread. */
#ifndef KERAS_INTERNIMAGE_DCNV3_BINDING_H
#define KERAS_INTERNIMAGE_DCNV3_BINDING_H

#include <string>

#include "convolution.h"
#include "detection.h"

namespace dcnv3 {

/* The operator's arguments as every framework spells them. `Pair` is any list of integers. */
template <class Pair>
struct Arguments {
  Pair kernel_size, strides, padding, dilation_rate;
  int64_t groups;
  double offset_scale;
  bool remove_center, softmax;
};

inline std::string check_version() {
  if (dcnv3_abi() == DCNV3_ABI) return "";
  return "The DCNv3 library and its binding must be of one version. Received: " +
         std::to_string(dcnv3_abi()) + " and " + std::to_string(DCNV3_ABI);
}

/* Fills `call` and checks it. Returns what is wrong, or nothing. */
template <class Pair>
std::string prepare(dcnv3_call* call, dcnv3_dtype dtype, const Arguments<Pair>& a,
                    const int64_t inputs[4], const int64_t offset_mask[4]) {
  const std::string other = check_version();
  if (!other.empty()) return other;
  int32_t pairs[8];
  int filled = 0;
  for (const Pair* pair : {&a.kernel_size, &a.strides, &a.padding, &a.dilation_rate}) {
    if (pair->size() != 2)
      return "`kernel_size`, `strides`, `padding` and `dilation_rate` must have two elements. "
             "Received: " + std::to_string(pair->size());
    for (int i = 0; i < 2; ++i) {
      const int64_t value = (*pair)[i];
      pairs[filled++] = value > INT32_MAX ? INT32_MAX : value < -1 ? -1 : int32_t(value);
    }
  }
  *call = dcnv3_call{};
  call->dtype = dtype;
  call->kernel_h = pairs[0], call->kernel_w = pairs[1];
  call->stride_h = pairs[2], call->stride_w = pairs[3];
  call->pad_h = pairs[4], call->pad_w = pairs[5];
  call->dilation_h = pairs[6], call->dilation_w = pairs[7];
  call->groups = a.groups > INT32_MAX || a.groups < 0 ? 0 : int32_t(a.groups);
  call->offset_scale = a.offset_scale;
  call->remove_center = a.remove_center;
  call->softmax = a.softmax;
  return dcnv3_prepare(call, inputs, offset_mask).message;
}

/* Of a shape given as any list of integers. */
template <class Shape>
std::string check_grad_output(const dcnv3_call& call, const Shape& shape) {
  const int64_t expected[] = {call.batch, call.out_height, call.out_width, call.channels};
  bool same = shape.size() == 4;
  for (int i = 0; same && i < 4; ++i) same = int64_t(shape[i]) == expected[i];
  if (same) return "";
  std::string text = "`grad_output` must have the output's shape, (";
  for (int i = 0; i < 4; ++i) text += (i ? ", " : "") + std::to_string(expected[i]);
  text += "). Received: grad_output.shape=(";
  for (size_t i = 0; i < size_t(shape.size()); ++i)
    text += (i ? ", " : "") + std::to_string(int64_t(shape[i]));
  return text + ")";
}

inline int64_t output_pixels(const dcnv3_call& call) {
  return call.batch * call.out_height * call.out_width;
}

/* Roughly, in processor cycles. */
inline int64_t forward_cost_of_pixel(const dcnv3_call& call) {
  return call.points * (6 * call.groups + call.channels / 2);
}
inline int64_t backward_cost_of_task(const dcnv3_call& call) {
  return 4 * forward_cost_of_pixel(call) * output_pixels(call) /
         (dcnv3_cpu_backward_tasks(&call) + 1);
}

/* Pixels that take some 20 microseconds: fewer are not worth waking a thread. */
inline int64_t forward_grain(const dcnv3_call& call) {
  return 1 + 60000 / forward_cost_of_pixel(call);
}

/* ---- RoIAlign --------------------------------------------------------------------------------- */

/* Fills `call` and checks it. Returns what is wrong, or nothing. `shape(l)` is that of a map, a
 * list of four integers; `boxes` and `levels` are shapes, too. */
template <class Shape, class Strides, class Boxes, class Levels>
std::string prepare_regions(dcnv3_regions* call, dcnv3_dtype dtype, int64_t maps,
                            const Shape& shape, const Boxes& boxes, const Levels& levels,
                            const Strides& strides, int64_t bins) {
  const std::string other = check_version();
  if (!other.empty()) return other;
  if (maps < 1 || maps > DCNV3_MAX_LEVELS || size_t(maps) != size_t(strides.size()))
    return "There must be 1 to 16 maps, and a stride for each. Received: " + std::to_string(maps) +
           " maps, " + std::to_string(strides.size()) + " strides";
  if (boxes.size() != 3 || boxes[2] != 4 || levels.size() != 2 || levels[0] != boxes[0] ||
      levels[1] != boxes[1])
    return "`boxes` must have the shape (N, R, 4), and `levels` (N, R).";
  *call = dcnv3_regions{};
  call->dtype = dtype;
  call->levels = int32_t(maps);
  call->bins = bins;
  call->batch = boxes[0], call->regions = boxes[1];
  for (int64_t l = 0; l < maps; ++l) {
    const auto size = shape(l);
    if (size.size() != 4 || size[0] != call->batch || (l > 0 && size[3] != call->channels))
      return "Maps must have the shape (N, height, width, C), all of one N, that of the boxes, and "
             "of one C.";
    call->heights[l] = size[1], call->widths[l] = size[2], call->channels = size[3];
    call->strides[l] = strides[l];
  }
  return dcnv3_roi_align_prepare(call).message;
}

/* Roughly, in processor cycles. */
inline int64_t cost_of_region(const dcnv3_regions& call) {
  return 1 + 2 * call.bins * call.bins * call.channels;
}
inline int64_t cost_of_region_task(const dcnv3_regions& call) {
  return 1 + 2 * call.batch * call.regions * cost_of_region(call) /
                 (dcnv3_cpu_roi_align_backward_tasks(&call) + 1);
}
inline int64_t region_grain(const dcnv3_regions& call) {
  return 1 + 60000 / cost_of_region(call);
}

/* ---- convolution ------------------------------------------------------------------------------ */

/* Fills `call` and checks it. Returns what is wrong, or nothing. All are shapes. */
template <class Shape>
std::string prepare_convolution(dcnv3_convolution* call, const Shape& inputs, const Shape& kernel,
                                const Shape& bias, bool relu) {
  const std::string other = check_version();
  if (!other.empty()) return other;
  if (inputs.size() != 4 || kernel.size() != 4 || bias.size() != 1 || kernel[0] != 3 ||
      kernel[1] != 3 || kernel[2] != inputs[3] || bias[0] != kernel[3])
    return "`inputs` must have the shape (N, H, W, C), `kernel` (3, 3, C, F) and `bias` (F).";
  *call = dcnv3_convolution{inputs[0], inputs[1], inputs[2], inputs[3], kernel[3], relu};
  return dcnv3_convolution_prepare(call).message;
}

/* Roughly, of a task, in processor cycles. */
inline int64_t cost_of_kernel_task(const dcnv3_convolution& call) { return 100 * call.channels; }
inline int64_t cost_of_convolution_task(const dcnv3_convolution& call) {
  return 1 + call.batch * call.height * call.width * call.channels * call.filters / 8 /
                 (dcnv3_cpu_convolution_tasks(&call) + 1);
}

/* Of one image's suppression, in cycles. */
inline int64_t cost_of_suppression(int64_t boxes, int64_t count) { return 20 * boxes + 200 * count; }

}  // namespace dcnv3
#endif
