/* RoIAlign and non-maximum suppression as operators of PyTorch; included by dcnv3_torch.cc. */
#ifndef KERAS_INTERNIMAGE_DETECTION_TORCH_H
#define KERAS_INTERNIMAGE_DETECTION_TORCH_H

namespace {

using Tensors = std::vector<Tensor>;

/* `maps`, or their shapes in a list of four integers each, are what is pooled from. */
template <class Shape>
dcnv3_regions prepare_regions(const Tensor& of_dtype, int64_t maps, const Shape& shape,
                              const Tensor& boxes, const Tensor& levels,
                              const std::vector<double>& strides, int64_t bins) {
  using torch::headeronly::ScalarType;
  const dcnv3_dtype dtype = dtype_of(of_dtype);
  STD_TORCH_CHECK(boxes.scalar_type() ==
                      (dtype == DCNV3_FLOAT64 ? ScalarType::Double : ScalarType::Float),
                  "`boxes` must be float32, or float64 with maps of float64.");
  STD_TORCH_CHECK(levels.scalar_type() == ScalarType::Int, "`levels` must be int32.");
  dcnv3_regions call;
  const std::string message = dcnv3::prepare_regions(&call, dtype, maps, shape, boxes.sizes(),
                                                     levels.sizes(), strides, bins);
  STD_TORCH_CHECK(message.empty(), message.c_str());
  return call;
}

void check_device(const Tensor& one, const Tensor& other) {
  STD_TORCH_CHECK(one.is_cpu() == other.is_cpu() &&
                      one.get_device_index() == other.get_device_index(),
                  "Maps, `boxes` and `levels` must be on one device.");
}

/* `run(call, maps, boxes, levels, output)` computes; all pointers. */
template <class Run>
Tensor roi_align(Tensors maps, Tensor boxes, Tensor levels, const std::vector<double>& strides,
                 int64_t bins, Run run) {
  STD_TORCH_CHECK(!maps.empty(), "There must be a map.");
  for (const Tensor& map : maps) {
    STD_TORCH_CHECK(map.scalar_type() == maps[0].scalar_type(), "Maps must have one dtype.");
    check_device(maps[0], map);
  }
  check_device(maps[0], boxes);
  check_device(maps[0], levels);
  const dcnv3_regions call = prepare_regions(
      maps[0], int64_t(maps.size()), [&](int64_t l) { return maps[l].sizes(); }, boxes, levels,
      strides, bins);
  const void* from[DCNV3_MAX_LEVELS];
  for (size_t l = 0; l < maps.size(); ++l) {
    maps[l] = torch::stable::contiguous(maps[l]);
    from[l] = maps[l].const_data_ptr();
  }
  boxes = torch::stable::contiguous(boxes);
  levels = torch::stable::contiguous(levels);
  Tensor output = torch::stable::new_empty(
      maps[0], {call.batch, call.regions, bins, bins, call.channels});
  run(call, from, boxes.const_data_ptr(), static_cast<const int32_t*>(levels.const_data_ptr()),
      output.mutable_data_ptr());
  return output;
}

Tensor roi_align_cpu(Tensors maps, Tensor boxes, Tensor levels, std::vector<double> strides,
                     int64_t bins) {
  const auto run = [](const dcnv3_regions& call, const void* const* from, const void* b,
                      const int32_t* l, void* y) {
    Failure failure;
    torch::stable::parallel_for(
        0, call.batch * call.regions, dcnv3::region_grain(call), [&](int64_t begin, int64_t end) {
          failure.note(dcnv3_cpu_roi_align(&call, from, b, l, y, begin, end));
        });
    failure.raise();
  };
  return roi_align(std::move(maps), boxes, levels, strides, bins, run);
}

/* The gradients of maps with the heights and widths `sizes`, one after the other, which
 * `run(call, grad_output, boxes, levels, grads)` computes. */
template <class Run>
Tensors roi_align_backward(Tensor grad_output, Tensor boxes, Tensor levels,
                           const std::vector<int64_t>& sizes, const std::vector<double>& strides,
                           int64_t bins, Run run) {
  check_device(grad_output, boxes);
  check_device(grad_output, levels);
  STD_TORCH_CHECK(grad_output.dim() == 5 && sizes.size() == 2 * strides.size(),
                  "`grad_output` must have rank 5, and each map two sizes.");
  const int64_t images = grad_output.size(0), channels = grad_output.size(4);
  const auto shape = [&](int64_t l) {
    return std::vector<int64_t>{images, sizes[2 * l], sizes[2 * l + 1], channels};
  };
  const int64_t maps = int64_t(strides.size());
  const dcnv3_regions call =
      prepare_regions(grad_output, maps, shape, boxes, levels, strides, bins);
  STD_TORCH_CHECK(grad_output.size(1) == call.regions && grad_output.size(2) == bins &&
                      grad_output.size(3) == bins,
                  "`grad_output` must have the output's shape.");
  grad_output = torch::stable::contiguous(grad_output);
  boxes = torch::stable::contiguous(boxes);
  levels = torch::stable::contiguous(levels);
  Tensors grads;
  void* into[DCNV3_MAX_LEVELS];
  for (int64_t l = 0; l < maps; ++l) {
    grads.push_back(torch::stable::new_empty(grad_output, shape(l)));
    into[l] = grads.back().mutable_data_ptr();
  }
  run(call, grad_output.const_data_ptr(), boxes.const_data_ptr(),
      static_cast<const int32_t*>(levels.const_data_ptr()), into);
  return grads;
}

Tensors roi_align_backward_cpu(Tensor grad_output, Tensor boxes, Tensor levels,
                               std::vector<int64_t> sizes, std::vector<double> strides,
                               int64_t bins) {
  const auto run = [](const dcnv3_regions& call, const void* g, const void* b, const int32_t* l,
                      void* const* into) {
    Failure failure;
    torch::stable::parallel_for(
        0, dcnv3_cpu_roi_align_backward_tasks(&call), 1, [&](int64_t begin, int64_t end) {
          failure.note(dcnv3_cpu_roi_align_backward(&call, g, b, l, into, begin, end));
        });
    failure.raise();
  };
  return roi_align_backward(grad_output, boxes, levels, sizes, strides, bins, run);
}

#ifdef DCNV3_CUDA
Tensor roi_align_cuda(Tensors maps, Tensor boxes, Tensor levels, std::vector<double> strides,
                      int64_t bins) {
  STD_TORCH_CHECK(!maps.empty(), "There must be a map.");
  const torch::stable::accelerator::DeviceGuard guard(maps[0].get_device_index());
  void* stream = current_stream(maps[0]);
  const auto run = [stream](const dcnv3_regions& call, const void* const* from, const void* b,
                            const int32_t* l, void* y) {
    check(dcnv3_cuda_roi_align(&call, from, b, l, y, stream));
  };
  return roi_align(std::move(maps), boxes, levels, strides, bins, run);
}

Tensors roi_align_backward_cuda(Tensor grad_output, Tensor boxes, Tensor levels,
                                std::vector<int64_t> sizes, std::vector<double> strides,
                                int64_t bins) {
  const torch::stable::accelerator::DeviceGuard guard(grad_output.get_device_index());
  void* stream = current_stream(grad_output);
  const auto run = [stream](const dcnv3_regions& call, const void* g, const void* b,
                            const int32_t* l, void* const* into) {
    check(dcnv3_cuda_roi_align_backward(&call, g, b, l, into, stream));
  };
  return roi_align_backward(grad_output, boxes, levels, sizes, strides, bins, run);
}
#endif

std::tuple<Tensor, Tensor> nms_cpu(Tensor boxes, Tensor scores, Tensor classes, double threshold,
                                   int64_t count) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(boxes.dim() == 3 && boxes.size(2) == 4 && scores.dim() == 2 &&
                      classes.dim() == 2 && scores.size(0) == boxes.size(0) &&
                      scores.size(1) == boxes.size(1) && classes.size(0) == boxes.size(0) &&
                      classes.size(1) == boxes.size(1),
                  "`boxes` must have the shape (N, K, 4), `scores` and `classes` (N, K).");
  STD_TORCH_CHECK(scores.scalar_type() == boxes.scalar_type() &&
                      classes.scalar_type() == ScalarType::Int,
                  "`boxes` and `scores` must have one dtype, and `classes` be int32.");
  const dcnv3_dtype dtype = dtype_of(boxes);
  boxes = torch::stable::contiguous(boxes);
  scores = torch::stable::contiguous(scores);
  classes = torch::stable::contiguous(classes);
  const int64_t images = boxes.size(0), number = boxes.size(1);
  Tensor indices = torch::stable::new_empty(classes, {images, count});
  Tensor valid = torch::stable::new_empty(classes, {images, count}, ScalarType::Bool);
  const int64_t bytes = dtype == DCNV3_FLOAT64 ? 8 : 4;
  const char* b = static_cast<const char*>(boxes.const_data_ptr());
  const char* s = static_cast<const char*>(scores.const_data_ptr());
  const int32_t* c = static_cast<const int32_t*>(classes.const_data_ptr());
  int32_t* i = static_cast<int32_t*>(indices.mutable_data_ptr());
  uint8_t* v = static_cast<uint8_t*>(valid.mutable_data_ptr());
  Failure failure;
  torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      failure.note(dcnv3_cpu_nms(dtype, b + 4 * n * number * bytes, s + n * number * bytes,
                                 c + n * number, number, threshold, count, i + n * count,
                                 v + n * count));
  });
  failure.raise();
  return {indices, valid};
}

}  // namespace

#define DCNV3_DEFINE_DETECTION(m)                                                               \
  m.def("roi_align(Tensor[] maps, Tensor boxes, Tensor levels, float[] strides, int bins) -> "  \
        "Tensor");                                                                              \
  m.def("roi_align_backward(Tensor grad_output, Tensor boxes, Tensor levels, int[] sizes, "     \
        "float[] strides, int bins) -> Tensor[]");                                              \
  m.def("nms(Tensor boxes, Tensor scores, Tensor classes, float threshold, int count) -> "      \
        "(Tensor, Tensor)")
#define DCNV3_IMPLEMENT_DETECTION(m)                           \
  m.impl("roi_align", TORCH_BOX(&roi_align_cpu));              \
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward_cpu)); \
  m.impl("nms", TORCH_BOX(&nms_cpu))
#define DCNV3_IMPLEMENT_DETECTION_CUDA(m)          \
  m.impl("roi_align", TORCH_BOX(&roi_align_cuda)); \
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward_cuda))
#endif
