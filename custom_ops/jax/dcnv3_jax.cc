/* DCNv3, RoIAlign, suppression and convolutions for XLA's foreign function interface; JAX registers
 * the handlers by their names. */
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "binding.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Pair = ffi::Span<const int64_t>;

struct Prepared {
  dcnv3_call call;
  ffi::Error error;
};

ffi::Error invalid(const std::string& message) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, message);
}

ffi::Error status_of(const dcnv3_status& status) {
  if (status.code == 0) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kInternal, status.message);
}

bool dtype_of(ffi::DataType type, dcnv3_dtype* dtype) {
  switch (type) {
    case ffi::DataType::F32: *dtype = DCNV3_FLOAT32; return true;
    case ffi::DataType::F64: *dtype = DCNV3_FLOAT64; return true;
    case ffi::DataType::BF16: *dtype = DCNV3_BFLOAT16; return true;
    case ffi::DataType::F16: *dtype = DCNV3_FLOAT16; return true;
    default: return false;
  }
}

/* Under jax.vmap arrays have further axes in front: images of one batch, all of them. */
std::vector<int64_t> folded(const ffi::AnyBuffer& buffer) {
  const auto sizes = buffer.dimensions();
  std::vector<int64_t> shape{1};
  for (size_t i = 0; i < sizes.size(); ++i)
    if (i + 3 < sizes.size()) shape[0] *= sizes[i];
    else shape.push_back(sizes[i]);
  return shape;
}

Prepared prepare(const ffi::AnyBuffer& inputs, const ffi::AnyBuffer& offset_mask,
                 const dcnv3::Arguments<Pair>& arguments) {
  Prepared prepared{{}, ffi::Error::Success()};
  dcnv3_dtype dtype;
  if (!dtype_of(inputs.element_type(), &dtype) ||
      offset_mask.element_type() != inputs.element_type()) {
    prepared.error = invalid(
        "`inputs` and `offset_mask` must have one dtype: float32, float64, bfloat16 or float16.");
    return prepared;
  }
  if (inputs.dimensions().size() < 4 || offset_mask.dimensions().size() < 4) {
    prepared.error = invalid("`inputs` and `offset_mask` must have rank 4.");
    return prepared;
  }
  const std::string message = dcnv3::prepare(&prepared.call, dtype, arguments,
                                             folded(inputs).data(), folded(offset_mask).data());
  if (!message.empty()) prepared.error = invalid(message);
  return prepared;
}

/* Runs function(begin, end) over [0, count) on the pool's threads and the caller's. The caller
 * works too and waits for pieces that were begun, not for threads: so a pool whose threads all
 * wait in here cannot lock up. */
dcnv3_status parallel_for(ffi::ThreadPool& pool, int64_t count, int64_t grain,
                          const std::function<dcnv3_status(int64_t, int64_t)>& function) {
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t pieces = std::min(4 * threads, std::max<int64_t>(1, count / std::max<int64_t>(1, grain)));
  if (pieces <= 1 || threads <= 1) return function(0, count);

  struct State {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable finished;
    int64_t done = 0;
    dcnv3_status status{};
  };
  auto state = std::make_shared<State>();
  const auto* run = &function;
  auto work = [state, run, count, pieces] {
    for (int64_t piece; (piece = state->next.fetch_add(1)) < pieces;) {
      const dcnv3_status status =
          (*run)(count * piece / pieces, count * (piece + 1) / pieces);
      std::lock_guard<std::mutex> lock(state->mutex);
      if (status.code != 0) state->status = status;
      if (++state->done == pieces) state->finished.notify_all();
    }
  };
  for (int64_t i = 1; i < std::min(threads, pieces); ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->done == pieces; });
  return state->status;
}

ffi::Error forward_cpu(ffi::ThreadPool pool, ffi::AnyBuffer inputs, ffi::AnyBuffer offset_mask,
                       ffi::Result<ffi::AnyBuffer> output, Pair kernel_size, Pair strides,
                       Pair padding, Pair dilation_rate, int64_t groups, double offset_scale,
                       bool remove_center, bool softmax) {
  Prepared p = prepare(inputs, offset_mask,
                       {kernel_size, strides, padding, dilation_rate, groups, offset_scale,
                        remove_center, softmax});
  if (p.error.failure()) return p.error;
  return status_of(parallel_for(
      pool, dcnv3::output_pixels(p.call), dcnv3::forward_grain(p.call),
      [&](int64_t begin, int64_t end) {
        return dcnv3_cpu_forward(&p.call, inputs.untyped_data(), offset_mask.untyped_data(),
                                 output->untyped_data(), begin, end);
      }));
}

ffi::Error backward_cpu(ffi::ThreadPool pool, ffi::AnyBuffer grad_output, ffi::AnyBuffer inputs,
                        ffi::AnyBuffer offset_mask, ffi::Result<ffi::AnyBuffer> grad_inputs,
                        ffi::Result<ffi::AnyBuffer> grad_offset_mask, Pair kernel_size,
                        Pair strides, Pair padding, Pair dilation_rate, int64_t groups,
                        double offset_scale, bool remove_center, bool softmax,
                        bool /*deterministic: it always is*/) {
  Prepared p = prepare(inputs, offset_mask,
                       {kernel_size, strides, padding, dilation_rate, groups, offset_scale,
                        remove_center, softmax});
  if (p.error.failure()) return p.error;
  const std::string message = dcnv3::check_grad_output(p.call, folded(grad_output));
  if (!message.empty()) return invalid(message);
  return status_of(parallel_for(
      pool, dcnv3_cpu_backward_tasks(&p.call), 1, [&](int64_t begin, int64_t end) {
        return dcnv3_cpu_backward(&p.call, grad_output.untyped_data(), inputs.untyped_data(),
                                  offset_mask.untyped_data(), grad_inputs->untyped_data(),
                                  grad_offset_mask->untyped_data(), begin, end);
      }));
}

template <class Binding>
auto with_arguments(Binding binding) {
  return std::move(binding)
      .template Attr<Pair>("kernel_size")
      .template Attr<Pair>("strides")
      .template Attr<Pair>("padding")
      .template Attr<Pair>("dilation_rate")
      .template Attr<int64_t>("groups")
      .template Attr<double>("offset_scale")
      .template Attr<bool>("remove_center")
      .template Attr<bool>("softmax");
}

}  // namespace

/* XLA's macros that define handlers do not export them. */
#define DCNV3_HANDLER(name) extern "C" DCNV3_EXPORT XLA_FFI_Error* name(XLA_FFI_CallFrame*)

DCNV3_HANDLER(keras_internimage_dcnv3_cpu);
DCNV3_HANDLER(keras_internimage_dcnv3_backward_cpu);

XLA_FFI_DEFINE_HANDLER_SYMBOL(keras_internimage_dcnv3_cpu, forward_cpu,
                              with_arguments(ffi::Ffi::Bind()
                                                 .Ctx<ffi::ThreadPool>()
                                                 .Arg<ffi::AnyBuffer>()
                                                 .Arg<ffi::AnyBuffer>()
                                                 .Ret<ffi::AnyBuffer>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(keras_internimage_dcnv3_backward_cpu, backward_cpu,
                              with_arguments(ffi::Ffi::Bind()
                                                 .Ctx<ffi::ThreadPool>()
                                                 .Arg<ffi::AnyBuffer>()
                                                 .Arg<ffi::AnyBuffer>()
                                                 .Arg<ffi::AnyBuffer>()
                                                 .Ret<ffi::AnyBuffer>()
                                                 .Ret<ffi::AnyBuffer>())
                                  .Attr<bool>("deterministic"));

#include "convolution_jax.h"
#include "detection_jax.h"

#ifdef DCNV3_CUDA
namespace {

ffi::Error forward_cuda(void* stream, ffi::AnyBuffer inputs, ffi::AnyBuffer offset_mask,
                        ffi::Result<ffi::AnyBuffer> output, Pair kernel_size, Pair strides,
                        Pair padding, Pair dilation_rate, int64_t groups, double offset_scale,
                        bool remove_center, bool softmax) {
  Prepared p = prepare(inputs, offset_mask,
                       {kernel_size, strides, padding, dilation_rate, groups, offset_scale,
                        remove_center, softmax});
  if (p.error.failure()) return p.error;
  return status_of(dcnv3_cuda_forward(&p.call, inputs.untyped_data(), offset_mask.untyped_data(),
                                      output->untyped_data(), stream));
}

ffi::Error backward_cuda(void* stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer grad_output,
                         ffi::AnyBuffer inputs, ffi::AnyBuffer offset_mask,
                         ffi::Result<ffi::AnyBuffer> grad_inputs,
                         ffi::Result<ffi::AnyBuffer> grad_offset_mask, Pair kernel_size,
                         Pair strides, Pair padding, Pair dilation_rate, int64_t groups,
                         double offset_scale, bool remove_center, bool softmax,
                         bool deterministic) {
  Prepared p = prepare(inputs, offset_mask,
                       {kernel_size, strides, padding, dilation_rate, groups, offset_scale,
                        remove_center, softmax});
  if (p.error.failure()) return p.error;
  const std::string message = dcnv3::check_grad_output(p.call, folded(grad_output));
  if (!message.empty()) return invalid(message);
  void* workspace = nullptr;
  if (const size_t bytes = dcnv3_cuda_backward_workspace(&p.call, deterministic)) {
    const std::optional<void*> memory = scratch.Allocate(bytes, 256);
    if (!memory)
      return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                        "DCNv3's backward pass could not get " + std::to_string(bytes) +
                            " bytes of device memory.");
    workspace = *memory;
  }
  return status_of(dcnv3_cuda_backward(&p.call, grad_output.untyped_data(), inputs.untyped_data(),
                                       offset_mask.untyped_data(), grad_inputs->untyped_data(),
                                       grad_offset_mask->untyped_data(), workspace, deterministic,
                                       stream));
}

}  // namespace

DCNV3_HANDLER(keras_internimage_dcnv3_cuda);
DCNV3_HANDLER(keras_internimage_dcnv3_backward_cuda);

XLA_FFI_DEFINE_HANDLER_SYMBOL(keras_internimage_dcnv3_cuda, forward_cuda,
                              with_arguments(ffi::Ffi::Bind()
                                                 .Ctx<Stream>()
                                                 .Arg<ffi::AnyBuffer>()
                                                 .Arg<ffi::AnyBuffer>()
                                                 .Ret<ffi::AnyBuffer>()),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(keras_internimage_dcnv3_backward_cuda, backward_cuda,
                              with_arguments(ffi::Ffi::Bind()
                                                 .Ctx<Stream>()
                                                 .Ctx<ffi::ScratchAllocator>()
                                                 .Arg<ffi::AnyBuffer>()
                                                 .Arg<ffi::AnyBuffer>()
                                                 .Arg<ffi::AnyBuffer>()
                                                 .Ret<ffi::AnyBuffer>()
                                                 .Ret<ffi::AnyBuffer>())
                                  .Attr<bool>("deterministic"));
#endif
