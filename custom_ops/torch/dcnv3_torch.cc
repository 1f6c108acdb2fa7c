/* DCNv3, RoIAlign, suppression and convolutions as operators of PyTorch, through LibTorch's stable interface: one
 * library serves every PyTorch from 2.10 on. Shapes for tracing and the gradients' registration are
 * in Python. */
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "binding.h"

#ifdef DCNV3_CUDA
/* Declared here: its header declares it in builds of PyTorch with CUDA alone. */
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace {

using torch::stable::Tensor;
using Pair = std::vector<int64_t>;

dcnv3_dtype dtype_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DCNV3_FLOAT32;
    case ScalarType::Double: return DCNV3_FLOAT64;
    case ScalarType::BFloat16: return DCNV3_BFLOAT16;
    case ScalarType::Half: return DCNV3_FLOAT16;
    default:
      STD_TORCH_CHECK(false, "`inputs` must be float32, float64, bfloat16 or float16.");
  }
}

dcnv3_call prepare(const Tensor& inputs, const Tensor& offset_mask,
                   const dcnv3::Arguments<Pair>& arguments) {
  STD_TORCH_CHECK(inputs.scalar_type() == offset_mask.scalar_type(),
                  "`inputs` and `offset_mask` must have one dtype.");
  STD_TORCH_CHECK(inputs.is_cpu() == offset_mask.is_cpu() &&
                      inputs.get_device_index() == offset_mask.get_device_index(),
                  "`inputs` and `offset_mask` must be on one device.");
  STD_TORCH_CHECK(inputs.dim() == 4 && offset_mask.dim() == 4,
                  "`inputs` and `offset_mask` must have rank 4. Received: inputs of rank ",
                  inputs.dim(), ", offset_mask of rank ", offset_mask.dim());
  const dcnv3_dtype dtype = dtype_of(inputs);
  int64_t shapes[2][4];
  for (int i = 0; i < 4; ++i) shapes[0][i] = inputs.size(i), shapes[1][i] = offset_mask.size(i);
  dcnv3_call call;
  const std::string message = dcnv3::prepare(&call, dtype, arguments, shapes[0], shapes[1]);
  STD_TORCH_CHECK(message.empty(), message.c_str());
  return call;
}

void check(const dcnv3_status& status) { STD_TORCH_CHECK(status.code == 0, status.message); }

/* The ranges' first failure; exceptions must not leave PyTorch's threads. */
class Failure {
 public:
  void note(const dcnv3_status& status) {
    if (status.code == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    status_ = status;
  }
  void raise() const { check(status_); }

 private:
  std::mutex mutex_;
  dcnv3_status status_{};
};

Tensor forward_cpu(Tensor inputs, Tensor offset_mask, Pair kernel_size, Pair strides, Pair padding,
                   Pair dilation_rate, int64_t groups, double offset_scale, bool remove_center,
                   bool softmax) {
  const dcnv3_call call = prepare(inputs, offset_mask,
                                  {kernel_size, strides, padding, dilation_rate, groups,
                                   offset_scale, remove_center, softmax});
  inputs = torch::stable::contiguous(inputs);
  offset_mask = torch::stable::contiguous(offset_mask);
  Tensor output = torch::stable::new_empty(
      inputs, {call.batch, call.out_height, call.out_width, call.channels});
  const void *x = inputs.const_data_ptr(), *om = offset_mask.const_data_ptr();
  void* y = output.mutable_data_ptr();
  Failure failure;
  torch::stable::parallel_for(
      0, dcnv3::output_pixels(call), dcnv3::forward_grain(call), [&](int64_t begin, int64_t end) {
        failure.note(dcnv3_cpu_forward(&call, x, om, y, begin, end));
      });
  failure.raise();
  return output;
}

std::tuple<Tensor, Tensor> backward_cpu(Tensor grad_output, Tensor inputs, Tensor offset_mask,
                                        Pair kernel_size, Pair strides, Pair padding,
                                        Pair dilation_rate, int64_t groups, double offset_scale,
                                        bool remove_center, bool softmax,
                                        bool /*deterministic: it always is*/) {
  const dcnv3_call call = prepare(inputs, offset_mask,
                                  {kernel_size, strides, padding, dilation_rate, groups,
                                   offset_scale, remove_center, softmax});
  const std::string message = dcnv3::check_grad_output(call, grad_output.sizes());
  STD_TORCH_CHECK(message.empty(), message.c_str());
  STD_TORCH_CHECK(grad_output.scalar_type() == inputs.scalar_type(),
                  "`grad_output` must have the dtype of `inputs`.");
  grad_output = torch::stable::contiguous(grad_output);
  inputs = torch::stable::contiguous(inputs);
  offset_mask = torch::stable::contiguous(offset_mask);
  Tensor grad_inputs = torch::stable::new_empty(inputs, inputs.sizes());
  Tensor grad_offset_mask = torch::stable::new_empty(offset_mask, offset_mask.sizes());
  const void *g = grad_output.const_data_ptr(), *x = inputs.const_data_ptr(),
             *om = offset_mask.const_data_ptr();
  void *grad_x = grad_inputs.mutable_data_ptr(), *grad_om = grad_offset_mask.mutable_data_ptr();
  Failure failure;
  torch::stable::parallel_for(
      0, dcnv3_cpu_backward_tasks(&call), 1, [&](int64_t begin, int64_t end) {
        failure.note(dcnv3_cpu_backward(&call, g, x, om, grad_x, grad_om, begin, end));
      });
  failure.raise();
  return {grad_inputs, grad_offset_mask};
}

#ifdef DCNV3_CUDA
void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == 0,
                  "PyTorch did not give its current CUDA stream.");
  return stream;
}

Tensor forward_cuda(Tensor inputs, Tensor offset_mask, Pair kernel_size, Pair strides, Pair padding,
                    Pair dilation_rate, int64_t groups, double offset_scale, bool remove_center,
                    bool softmax) {
  const dcnv3_call call = prepare(inputs, offset_mask,
                                  {kernel_size, strides, padding, dilation_rate, groups,
                                   offset_scale, remove_center, softmax});
  const torch::stable::accelerator::DeviceGuard guard(inputs.get_device_index());
  inputs = torch::stable::contiguous(inputs);
  offset_mask = torch::stable::contiguous(offset_mask);
  Tensor output = torch::stable::new_empty(
      inputs, {call.batch, call.out_height, call.out_width, call.channels});
  check(dcnv3_cuda_forward(&call, inputs.const_data_ptr(), offset_mask.const_data_ptr(),
                           output.mutable_data_ptr(), current_stream(inputs)));
  return output;
}

std::tuple<Tensor, Tensor> backward_cuda(Tensor grad_output, Tensor inputs, Tensor offset_mask,
                                         Pair kernel_size, Pair strides, Pair padding,
                                         Pair dilation_rate, int64_t groups, double offset_scale,
                                         bool remove_center, bool softmax, bool deterministic) {
  const dcnv3_call call = prepare(inputs, offset_mask,
                                  {kernel_size, strides, padding, dilation_rate, groups,
                                   offset_scale, remove_center, softmax});
  const std::string message = dcnv3::check_grad_output(call, grad_output.sizes());
  STD_TORCH_CHECK(message.empty(), message.c_str());
  STD_TORCH_CHECK(grad_output.scalar_type() == inputs.scalar_type(),
                  "`grad_output` must have the dtype of `inputs`.");
  const torch::stable::accelerator::DeviceGuard guard(inputs.get_device_index());
  grad_output = torch::stable::contiguous(grad_output);
  inputs = torch::stable::contiguous(inputs);
  offset_mask = torch::stable::contiguous(offset_mask);
  Tensor grad_inputs = torch::stable::new_empty(inputs, inputs.sizes());
  Tensor grad_offset_mask = torch::stable::new_empty(offset_mask, offset_mask.sizes());
  const int64_t bytes = int64_t(dcnv3_cuda_backward_workspace(&call, deterministic));
  const Tensor workspace =
      torch::stable::new_empty(inputs, {bytes}, torch::headeronly::ScalarType::Byte);
  check(dcnv3_cuda_backward(&call, grad_output.const_data_ptr(), inputs.const_data_ptr(),
                            offset_mask.const_data_ptr(), grad_inputs.mutable_data_ptr(),
                            grad_offset_mask.mutable_data_ptr(), workspace.mutable_data_ptr(),
                            deterministic, current_stream(inputs)));
  return {grad_inputs, grad_offset_mask};
}
#endif

}  // namespace

#include "convolution_torch.h"
#include "detection_torch.h"

#define DCNV3_ARGUMENTS                                                                      \
  "Tensor inputs, Tensor offset_mask, int[] kernel_size, int[] strides, int[] padding, "     \
  "int[] dilation_rate, int groups, float offset_scale, bool remove_center, bool softmax"

STABLE_TORCH_LIBRARY(keras_internimage, m) {
  m.def("dcnv3(" DCNV3_ARGUMENTS ") -> Tensor");
  m.def("dcnv3_backward(Tensor grad_output, " DCNV3_ARGUMENTS
        ", bool deterministic) -> (Tensor, Tensor)");
  m.def("convolution(Tensor inputs, Tensor kernel, Tensor bias, bool relu) -> Tensor");
  DCNV3_DEFINE_DETECTION(m);
}

STABLE_TORCH_LIBRARY_IMPL(keras_internimage, CPU, m) {
  m.impl("dcnv3", TORCH_BOX(&forward_cpu));
  m.impl("dcnv3_backward", TORCH_BOX(&backward_cpu));
  m.impl("convolution", TORCH_BOX(&convolution_cpu));
  DCNV3_IMPLEMENT_DETECTION(m);
}

#ifdef DCNV3_CUDA
STABLE_TORCH_LIBRARY_IMPL(keras_internimage, CUDA, m) {
  m.impl("dcnv3", TORCH_BOX(&forward_cuda));
  m.impl("dcnv3_backward", TORCH_BOX(&backward_cuda));
  DCNV3_IMPLEMENT_DETECTION_CUDA(m);
}
#endif
