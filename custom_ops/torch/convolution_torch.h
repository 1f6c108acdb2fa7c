/* Convolutions as an operator of PyTorch; included by dcnv3_torch.cc. */
#ifndef KERAS_INTERNIMAGE_CONVOLUTION_TORCH_H
#define KERAS_INTERNIMAGE_CONVOLUTION_TORCH_H

namespace {

Tensor convolution_cpu(Tensor inputs, Tensor kernel, Tensor bias, bool relu) {
  for (const Tensor* tensor : {&inputs, &kernel, &bias})
    STD_TORCH_CHECK(tensor->scalar_type() == torch::headeronly::ScalarType::Float &&
                        tensor->is_cpu(),
                    "`inputs`, `kernel` and `bias` must be float32 on a processor.");
  dcnv3_convolution call;
  const std::string message = dcnv3::prepare_convolution(&call, inputs.sizes(), kernel.sizes(),
                                                         bias.sizes(), relu);
  STD_TORCH_CHECK(message.empty(), message.c_str());
  inputs = torch::stable::contiguous(inputs);
  kernel = torch::stable::contiguous(kernel);
  bias = torch::stable::contiguous(bias);
  Tensor output =
      torch::stable::new_empty(inputs, {call.batch, call.height, call.width, call.filters});
  Tensor workspace = torch::stable::new_empty(inputs, {dcnv3_cpu_convolution_workspace(&call)});
  const float* const x = static_cast<const float*>(inputs.const_data_ptr());
  const float* const w = static_cast<const float*>(kernel.const_data_ptr());
  const float* const b = static_cast<const float*>(bias.const_data_ptr());
  float* const u = static_cast<float*>(workspace.mutable_data_ptr());
  float* const y = static_cast<float*>(output.mutable_data_ptr());
  Failure failure;
  torch::stable::parallel_for(0, dcnv3_cpu_convolution_kernel_tasks(&call), 1,
                              [&](int64_t begin, int64_t end) {
                                failure.note(
                                    dcnv3_cpu_convolution_kernel(&call, w, u, begin, end));
                              });
  torch::stable::parallel_for(0, dcnv3_cpu_convolution_tasks(&call), 1,
                              [&](int64_t begin, int64_t end) {
                                failure.note(
                                    dcnv3_cpu_convolution(&call, x, u, b, y, begin, end));
                              });
  failure.raise();
  return output;
}

}  // namespace
#endif
