/* Convolutions for XLA's foreign function interface; included by dcnv3_jax.cc. */
#ifndef KERAS_INTERNIMAGE_CONVOLUTION_JAX_H
#define KERAS_INTERNIMAGE_CONVOLUTION_JAX_H

namespace {

/* `workspace` is a result that nobody reads: for processors XLA gives no scratch. */
ffi::Error convolution_cpu(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> inputs,
                           ffi::Buffer<ffi::F32> kernel, ffi::Buffer<ffi::F32> bias,
                           ffi::ResultBuffer<ffi::F32> output,
                           ffi::ResultBuffer<ffi::F32> workspace, bool relu) {
  dcnv3_convolution call;
  const std::string message = dcnv3::prepare_convolution(
      &call, inputs.dimensions(), kernel.dimensions(), bias.dimensions(), relu);
  if (!message.empty()) return invalid(message);
  if (int64_t(workspace->element_count()) < dcnv3_cpu_convolution_workspace(&call))
    return invalid("The workspace of a convolution is too small.");
  float* const u = workspace->typed_data();
  dcnv3_status status = parallel_for(
      pool, dcnv3_cpu_convolution_kernel_tasks(&call), 1, [&](int64_t begin, int64_t end) {
        return dcnv3_cpu_convolution_kernel(&call, kernel.typed_data(), u, begin, end);
      });
  if (status.code == 0)
    status = parallel_for(
        pool, dcnv3_cpu_convolution_tasks(&call), 1, [&](int64_t begin, int64_t end) {
          return dcnv3_cpu_convolution(&call, inputs.typed_data(), u, bias.typed_data(),
                                       output->typed_data(), begin, end);
        });
  return status_of(status);
}

}  // namespace

DCNV3_HANDLER(keras_internimage_convolution_cpu);

XLA_FFI_DEFINE_HANDLER_SYMBOL(keras_internimage_convolution_cpu, convolution_cpu,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("relu"));
#endif
