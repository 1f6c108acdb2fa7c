/* RoIAlign and non-maximum suppression for XLA's foreign function interface; included by
 * dcnv3_jax.cc. The number of maps is that of the arguments or results that are left. */
#ifndef KERAS_INTERNIMAGE_DETECTION_JAX_H
#define KERAS_INTERNIMAGE_DETECTION_JAX_H

namespace {

using Strides = ffi::Span<const double>;

bool is_int32(const ffi::AnyBuffer& buffer) { return buffer.element_type() == ffi::DataType::S32; }

/* `shape(l)` is that of a map, and `type` their dtype. */
template <class Shape>
ffi::Error prepare_regions(dcnv3_regions* call, ffi::DataType type, int64_t maps,
                           const Shape& shape, const ffi::AnyBuffer& boxes,
                           const ffi::AnyBuffer& levels, Strides strides, int64_t bins) {
  dcnv3_dtype dtype;
  if (!dtype_of(type, &dtype))
    return invalid("Maps must be float32, float64, bfloat16 or float16.");
  if (boxes.element_type() != (dtype == DCNV3_FLOAT64 ? ffi::DataType::F64 : ffi::DataType::F32) ||
      !is_int32(levels))
    return invalid("`boxes` must be float32, or float64 with maps of float64; `levels` int32.");
  const std::string message = dcnv3::prepare_regions(
      call, dtype, maps, shape, boxes.dimensions(), levels.dimensions(), strides, bins);
  return message.empty() ? ffi::Error::Success() : invalid(message);
}

std::vector<int64_t> shape_of(const ffi::AnyBuffer& buffer) {
  const auto sizes = buffer.dimensions();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

/* `run(call, maps, levels)` computes. */
template <class Run>
ffi::Error roi_align(const ffi::AnyBuffer& boxes, const ffi::AnyBuffer& levels,
                     const ffi::RemainingArgs& maps, Strides strides, int64_t bins, Run run) {
  std::vector<std::vector<int64_t>> shapes;
  std::vector<const void*> data;
  ffi::DataType type = ffi::DataType::INVALID;
  for (size_t l = 0; l < maps.size(); ++l) {
    auto map = maps.get<ffi::AnyBuffer>(l);
    if (map.has_error()) return map.error();
    if (l > 0 && map->element_type() != type) return invalid("Maps must have one dtype.");
    type = map->element_type();
    shapes.push_back(shape_of(*map));
    data.push_back(map->untyped_data());
  }
  dcnv3_regions call;
  const ffi::Error error = prepare_regions(
      &call, type, int64_t(maps.size()), [&](int64_t l) { return shapes[l]; }, boxes, levels,
      strides, bins);
  if (error.failure()) return error;
  return status_of(run(call, data.data(), static_cast<const int32_t*>(levels.untyped_data())));
}

ffi::Error roi_align_cpu(ffi::ThreadPool pool, ffi::AnyBuffer boxes, ffi::AnyBuffer levels,
                         ffi::RemainingArgs maps, ffi::Result<ffi::AnyBuffer> output,
                         Strides strides, int64_t bins) {
  const auto run = [&](const dcnv3_regions& call, const void* const* from, const int32_t* of) {
    return parallel_for(pool, call.batch * call.regions, dcnv3::region_grain(call),
                        [&](int64_t begin, int64_t end) {
                          return dcnv3_cpu_roi_align(&call, from, boxes.untyped_data(), of,
                                                     output->untyped_data(), begin, end);
                        });
  };
  return roi_align(boxes, levels, maps, strides, bins, run);
}

/* `run(call, levels, grads)` computes. */
template <class Run>
ffi::Error roi_align_backward(const ffi::AnyBuffer& grad_output, const ffi::AnyBuffer& boxes,
                              const ffi::AnyBuffer& levels, const ffi::RemainingRets& grads,
                              Strides strides, int64_t bins, Run run) {
  std::vector<std::vector<int64_t>> shapes;
  std::vector<void*> data;
  for (size_t l = 0; l < grads.size(); ++l) {
    auto grad = grads.get<ffi::AnyBuffer>(l);
    if (grad.has_error()) return grad.error();
    ffi::Result<ffi::AnyBuffer> result = *grad;
    shapes.push_back(shape_of(*result));
    data.push_back(result->untyped_data());
  }
  dcnv3_regions call;
  const ffi::Error error = prepare_regions(
      &call, grad_output.element_type(), int64_t(grads.size()),
      [&](int64_t l) { return shapes[l]; }, boxes, levels, strides, bins);
  if (error.failure()) return error;
  const std::vector<int64_t> expected{call.batch, call.regions, bins, bins, call.channels};
  if (shape_of(grad_output) != expected)
    return invalid("`grad_output` must have the output's shape.");
  return status_of(run(call, static_cast<const int32_t*>(levels.untyped_data()), data.data()));
}

ffi::Error roi_align_backward_cpu(ffi::ThreadPool pool, ffi::AnyBuffer grad_output,
                                  ffi::AnyBuffer boxes, ffi::AnyBuffer levels,
                                  ffi::RemainingRets grads, Strides strides, int64_t bins) {
  const auto run = [&](const dcnv3_regions& call, const int32_t* of, void* const* into) {
    return parallel_for(pool, dcnv3_cpu_roi_align_backward_tasks(&call), 1,
                        [&](int64_t begin, int64_t end) {
                          return dcnv3_cpu_roi_align_backward(
                              &call, grad_output.untyped_data(), boxes.untyped_data(), of, into,
                              begin, end);
                        });
  };
  return roi_align_backward(grad_output, boxes, levels, grads, strides, bins, run);
}

#ifdef DCNV3_CUDA
using Stream = ffi::PlatformStream<void*>;

ffi::Error roi_align_cuda(void* stream, ffi::AnyBuffer boxes, ffi::AnyBuffer levels,
                          ffi::RemainingArgs maps, ffi::Result<ffi::AnyBuffer> output,
                          Strides strides, int64_t bins) {
  const auto run = [&](const dcnv3_regions& call, const void* const* from, const int32_t* of) {
    return dcnv3_cuda_roi_align(&call, from, boxes.untyped_data(), of, output->untyped_data(),
                                stream);
  };
  return roi_align(boxes, levels, maps, strides, bins, run);
}

ffi::Error roi_align_backward_cuda(void* stream, ffi::AnyBuffer grad_output, ffi::AnyBuffer boxes,
                                   ffi::AnyBuffer levels, ffi::RemainingRets grads,
                                   Strides strides, int64_t bins) {
  const auto run = [&](const dcnv3_regions& call, const int32_t* of, void* const* into) {
    return dcnv3_cuda_roi_align_backward(&call, grad_output.untyped_data(), boxes.untyped_data(),
                                         of, into, stream);
  };
  return roi_align_backward(grad_output, boxes, levels, grads, strides, bins, run);
}
#endif

ffi::Error nms_cpu(ffi::ThreadPool pool, ffi::AnyBuffer boxes, ffi::AnyBuffer scores,
                   ffi::AnyBuffer classes, ffi::Result<ffi::AnyBuffer> indices,
                   ffi::Result<ffi::AnyBuffer> valid, double threshold) {
  dcnv3_dtype dtype;
  if (!dtype_of(boxes.element_type(), &dtype) || scores.element_type() != boxes.element_type() ||
      !is_int32(classes))
    return invalid("`boxes` and `scores` must have one dtype, and `classes` be int32.");
  const std::vector<int64_t> shape = shape_of(scores);
  if (shape.size() != 2 || shape_of(classes) != shape ||
      shape_of(boxes) != std::vector<int64_t>{shape[0], shape[1], 4})
    return invalid("`boxes` must have the shape (N, K, 4), `scores` and `classes` (N, K).");
  const int64_t number = shape[1], count = indices->dimensions()[1];
  const int64_t bytes = dtype == DCNV3_FLOAT64 ? 8 : 4;
  const char *b = static_cast<const char*>(boxes.untyped_data()),
             *s = static_cast<const char*>(scores.untyped_data());
  const int32_t* c = static_cast<const int32_t*>(classes.untyped_data());
  int32_t* i = static_cast<int32_t*>(indices->untyped_data());
  uint8_t* v = static_cast<uint8_t*>(valid->untyped_data());
  return status_of(parallel_for(pool, shape[0], 1, [&](int64_t begin, int64_t end) {
    dcnv3_status status{};
    for (int64_t n = begin; n < end && status.code == 0; ++n)
      status = dcnv3_cpu_nms(dtype, b + 4 * n * number * bytes, s + n * number * bytes,
                             c + n * number, number, threshold, count, i + n * count,
                             v + n * count);
    return status;
  }));
}

}  // namespace

DCNV3_HANDLER(keras_internimage_roi_align_cpu);
DCNV3_HANDLER(keras_internimage_roi_align_backward_cpu);
DCNV3_HANDLER(keras_internimage_nms_cpu);

/* `context` is what a processor or a GPU computes with. */
#define DCNV3_ALIGN_BINDING(context)    \
  ffi::Ffi::Bind()                      \
      .Ctx<context>()                   \
      .Arg<ffi::AnyBuffer>()            \
      .Arg<ffi::AnyBuffer>()            \
      .RemainingArgs()                  \
      .Ret<ffi::AnyBuffer>()            \
      .Attr<Strides>("strides")         \
      .Attr<int64_t>("bins")
#define DCNV3_ALIGN_BACKWARD_BINDING(context) \
  ffi::Ffi::Bind()                            \
      .Ctx<context>()                         \
      .Arg<ffi::AnyBuffer>()                  \
      .Arg<ffi::AnyBuffer>()                  \
      .Arg<ffi::AnyBuffer>()                  \
      .RemainingRets()                        \
      .Attr<Strides>("strides")               \
      .Attr<int64_t>("bins")

XLA_FFI_DEFINE_HANDLER_SYMBOL(keras_internimage_roi_align_cpu, roi_align_cpu,
                              DCNV3_ALIGN_BINDING(ffi::ThreadPool));
XLA_FFI_DEFINE_HANDLER_SYMBOL(keras_internimage_roi_align_backward_cpu, roi_align_backward_cpu,
                              DCNV3_ALIGN_BACKWARD_BINDING(ffi::ThreadPool));

#ifdef DCNV3_CUDA
DCNV3_HANDLER(keras_internimage_roi_align_cuda);
DCNV3_HANDLER(keras_internimage_roi_align_backward_cuda);

XLA_FFI_DEFINE_HANDLER_SYMBOL(keras_internimage_roi_align_cuda, roi_align_cuda,
                              DCNV3_ALIGN_BINDING(Stream),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(keras_internimage_roi_align_backward_cuda, roi_align_backward_cuda,
                              DCNV3_ALIGN_BACKWARD_BINDING(Stream),
                              {ffi::Traits::kCmdBufferCompatible});
#endif

XLA_FFI_DEFINE_HANDLER_SYMBOL(keras_internimage_nms_cpu, nms_cpu,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<double>("threshold"));
#endif
