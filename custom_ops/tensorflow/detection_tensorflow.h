/* RoIAlign as a TensorFlow operation for processors and GPUs, and non-maximum suppression as one for
 * processors; included by dcnv3_tensorflow.cc. */
#ifndef KERAS_INTERNIMAGE_DETECTION_TENSORFLOW_H
#define KERAS_INTERNIMAGE_DETECTION_TENSORFLOW_H

namespace {

/* TensorFlow's attributes are single precision: a stride is the sum of two parts. */
tf::Status read_strides(OpKernelConstruction* context, std::vector<double>* strides) {
  std::vector<float> parts;
  TF_RETURN_IF_ERROR(context->GetAttr("strides", &parts));
  for (size_t l = 0; l + 1 < parts.size(); l += 2)
    strides->push_back(double(parts[l]) + double(parts[l + 1]));
  return tf::Status();
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int i = 0; i < tensor.dims(); ++i) shape.push_back(tensor.dim_size(i));
  return shape;
}

class RegionKernel : public OpKernel {
 public:
  explicit RegionKernel(OpKernelConstruction* context) : OpKernel(context) {
    tf::int64 bins;
    OP_REQUIRES_OK(context, read_strides(context, &strides_));
    OP_REQUIRES_OK(context, context->GetAttr("bins", &bins));
    bins_ = bins;
  }

 protected:
  template <class Shape>
  tf::Status prepare(dcnv3_regions* call, tf::DataType type, int64_t maps, const Shape& shape,
                     const Tensor& boxes, const Tensor& levels) const {
    const std::string message =
        dcnv3::prepare_regions(call, dtype_of(type), maps, shape, shape_of(boxes),
                               shape_of(levels), strides_, bins_);
    return message.empty() ? tf::Status() : tf::errors::InvalidArgument(message);
  }

  std::vector<double> strides_;
  int64_t bins_;
};

class RoiAlign : public RegionKernel {
 public:
  using RegionKernel::RegionKernel;

  void Compute(OpKernelContext* context) override {
    tf::OpInputList maps;
    OP_REQUIRES_OK(context, context->input_list("maps", &maps));
    const Tensor &boxes = context->input(maps.size()), &levels = context->input(maps.size() + 1);
    dcnv3_regions call;
    OP_REQUIRES_OK(context,
                   prepare(&call, maps[0].dtype(), maps.size(),
                           [&](int64_t l) { return shape_of(maps[l]); }, boxes, levels));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(
                                0, TensorShape({call.batch, call.regions, bins_, bins_,
                                                call.channels}), &output));
    if (output->NumElements() == 0) return;
    std::vector<const void*> from;
    for (int l = 0; l < maps.size(); ++l) from.push_back(data(maps[l]));
    run(context, call, from.data(), data(boxes), static_cast<const int32_t*>(data(levels)),
        data(output));
  }

 private:
  virtual void run(OpKernelContext* context, const dcnv3_regions& call, const void* const* maps,
                   const void* boxes, const int32_t* levels, void* output) = 0;
};

class RoiAlignBackward : public RegionKernel {
 public:
  using RegionKernel::RegionKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &grad_output = context->input(0), &boxes = context->input(1);
    const Tensor& levels = context->input(2);
    tf::OpInputList sizes; /* of each map: its shape */
    OP_REQUIRES_OK(context, context->input_list("shapes", &sizes));
    std::vector<std::vector<int64_t>> shapes;
    for (int l = 0; l < sizes.size(); ++l) {
      const auto values = sizes[l].flat<tf::int32>();
      shapes.push_back(std::vector<int64_t>(values.data(), values.data() + values.size()));
    }
    dcnv3_regions call;
    OP_REQUIRES_OK(context, prepare(&call, grad_output.dtype(), sizes.size(),
                                    [&](int64_t l) { return shapes[l]; }, boxes, levels));
    const std::vector<int64_t> expected{call.batch, call.regions, bins_, bins_, call.channels};
    OP_REQUIRES(context, shape_of(grad_output) == expected,
                tf::errors::InvalidArgument("`grad_output` must have the output's shape."));
    std::vector<void*> into;
    for (int l = 0; l < sizes.size(); ++l) {
      Tensor* grad;
      OP_REQUIRES_OK(context,
                     context->allocate_output(l, TensorShape({call.batch, call.heights[l],
                                                              call.widths[l], call.channels}),
                                              &grad));
      into.push_back(data(grad));
    }
    if (call.batch == 0) return;
    run(context, call, data(grad_output), data(boxes), static_cast<const int32_t*>(data(levels)),
        into.data());
  }

 private:
  virtual void run(OpKernelContext* context, const dcnv3_regions& call, const void* grad_output,
                   const void* boxes, const int32_t* levels, void* const* grads) = 0;
};

class RoiAlignCpu final : public RoiAlign {
 public:
  using RoiAlign::RoiAlign;

 private:
  void run(OpKernelContext* context, const dcnv3_regions& call, const void* const* maps,
           const void* boxes, const int32_t* levels, void* output) override {
    Failure failure;
    pool(context)->ParallelFor(
        call.batch * call.regions, dcnv3::cost_of_region(call),
        [&](tf::int64 begin, tf::int64 end) {
          failure.note(dcnv3_cpu_roi_align(&call, maps, boxes, levels, output, begin, end));
        });
    OP_REQUIRES_OK(context, failure.status());
  }
};

class RoiAlignBackwardCpu final : public RoiAlignBackward {
 public:
  using RoiAlignBackward::RoiAlignBackward;

 private:
  void run(OpKernelContext* context, const dcnv3_regions& call, const void* grad_output,
           const void* boxes, const int32_t* levels, void* const* grads) override {
    Failure failure;
    pool(context)->ParallelFor(
        dcnv3_cpu_roi_align_backward_tasks(&call), dcnv3::cost_of_region_task(call),
        [&](tf::int64 begin, tf::int64 end) {
          failure.note(dcnv3_cpu_roi_align_backward(&call, grad_output, boxes, levels, grads,
                                                    begin, end));
        });
    OP_REQUIRES_OK(context, failure.status());
  }
};

#ifdef DCNV3_CUDA
class RoiAlignCuda final : public RoiAlign {
 public:
  using RoiAlign::RoiAlign;

 private:
  void run(OpKernelContext* context, const dcnv3_regions& call, const void* const* maps,
           const void* boxes, const int32_t* levels, void* output) override {
    OP_REQUIRES_OK(context, status_of(dcnv3_cuda_roi_align(&call, maps, boxes, levels, output,
                                                           stream(context))));
  }
};

class RoiAlignBackwardCuda final : public RoiAlignBackward {
 public:
  using RoiAlignBackward::RoiAlignBackward;

 private:
  void run(OpKernelContext* context, const dcnv3_regions& call, const void* grad_output,
           const void* boxes, const int32_t* levels, void* const* grads) override {
    OP_REQUIRES_OK(context, status_of(dcnv3_cuda_roi_align_backward(
                                &call, grad_output, boxes, levels, grads, stream(context))));
  }
};
#endif

class NmsCpu final : public OpKernel {
 public:
  explicit NmsCpu(OpKernelConstruction* context) : OpKernel(context) {
    std::vector<float> parts;
    OP_REQUIRES_OK(context, context->GetAttr("threshold", &parts));
    for (const float part : parts) threshold_ += double(part);
    OP_REQUIRES_OK(context, context->GetAttr("count", &count_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &boxes = context->input(0), &scores = context->input(1);
    const Tensor& classes = context->input(2);
    const std::vector<int64_t> shape = shape_of(scores);
    OP_REQUIRES(context,
                shape.size() == 2 && shape_of(classes) == shape &&
                    shape_of(boxes) == (std::vector<int64_t>{shape[0], shape[1], 4}),
                tf::errors::InvalidArgument("`boxes` must have the shape (N, K, 4), `scores` and "
                                            "`classes` (N, K)."));
    Tensor *indices, *valid;
    const TensorShape results({shape[0], count_});
    OP_REQUIRES_OK(context, context->allocate_output(0, results, &indices));
    OP_REQUIRES_OK(context, context->allocate_output(1, results, &valid));
    const dcnv3_dtype dtype = dtype_of(boxes.dtype());
    const int64_t number = shape[1], bytes = dtype == DCNV3_FLOAT64 ? 8 : 4;
    const char *b = static_cast<const char*>(data(boxes)),
               *s = static_cast<const char*>(data(scores));
    const int32_t* c = static_cast<const int32_t*>(data(classes));
    int32_t* i = static_cast<int32_t*>(data(indices));
    uint8_t* v = static_cast<uint8_t*>(data(valid));
    Failure failure;
    pool(context)->ParallelFor(
        shape[0], dcnv3::cost_of_suppression(number, count_),
        [&](tf::int64 begin, tf::int64 end) {
          for (int64_t n = begin; n < end; ++n)
            failure.note(dcnv3_cpu_nms(dtype, b + 4 * n * number * bytes, s + n * number * bytes,
                                       c + n * number, number, threshold_, count_, i + n * count_,
                                       v + n * count_));
        });
    OP_REQUIRES_OK(context, failure.status());
  }

 private:
  double threshold_ = 0;
  tf::int64 count_;
};

tf::Status infer_regions(InferenceContext* context) {
  tf::int64 bins;
  TF_RETURN_IF_ERROR(context->GetAttr("bins", &bins));
  const int maps = context->num_inputs() - 2;
  ShapeHandle map, boxes;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 4, &map));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(maps), 3, &boxes));
  context->set_output(0, context->MakeShape({context->Dim(boxes, 0), context->Dim(boxes, 1),
                                             context->MakeDim(bins), context->MakeDim(bins),
                                             context->Dim(map, 3)}));
  return tf::Status();
}

tf::Status infer_region_gradients(InferenceContext* context) {
  for (int l = 0; l < context->num_outputs(); ++l) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(context->MakeShapeFromShapeTensor(3 + l, &shape));
    context->set_output(l, shape);
  }
  return tf::Status();
}

tf::Status infer_suppression(InferenceContext* context) {
  tf::int64 count;
  TF_RETURN_IF_ERROR(context->GetAttr("count", &count));
  ShapeHandle scores;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 2, &scores));
  const ShapeHandle shape =
      context->MakeShape({context->Dim(scores, 0), context->MakeDim(count)});
  context->set_output(0, shape);
  context->set_output(1, shape);
  return tf::Status();
}

}  // namespace

/* `U` is the type of boxes: double for maps of double, else float. */
REGISTER_OP("KerasInternimageRoiAlign")
    .Input("maps: L * T")
    .Input("boxes: U")
    .Input("levels: int32")
    .Output("output: T")
    .Attr("L: int >= 1")
    .Attr("T: {float, double, bfloat16, half}")
    .Attr("U: {float, double}")
    .Attr("strides: list(float)")
    .Attr("bins: int >= 1")
    .SetShapeFn(infer_regions);

REGISTER_OP("KerasInternimageRoiAlignBackward")
    .Input("grad_output: T")
    .Input("boxes: U")
    .Input("levels: int32")
    .Input("shapes: L * int32")
    .Output("grad_maps: L * T")
    .Attr("L: int >= 1")
    .Attr("T: {float, double, bfloat16, half}")
    .Attr("U: {float, double}")
    .Attr("strides: list(float)")
    .Attr("bins: int >= 1")
    .SetShapeFn(infer_region_gradients);

REGISTER_OP("KerasInternimageNms")
    .Input("boxes: U")
    .Input("scores: U")
    .Input("classes: int32")
    .Output("indices: int32")
    .Output("valid: bool")
    .Attr("U: {float, double}")
    .Attr("threshold: list(float)")
    .Attr("count: int >= 0")
    .SetShapeFn(infer_suppression);

#define DCNV3_REGISTER_REGIONS(T_, U_)                                                         \
  REGISTER_KERNEL_BUILDER(Name("KerasInternimageRoiAlign")                                     \
                              .Device(tf::DEVICE_CPU)                                          \
                              .TypeConstraint<T_>("T")                                         \
                              .TypeConstraint<U_>("U"),                                        \
                          RoiAlignCpu);                                                        \
  REGISTER_KERNEL_BUILDER(Name("KerasInternimageRoiAlignBackward")                             \
                              .Device(tf::DEVICE_CPU)                                          \
                              .TypeConstraint<T_>("T")                                         \
                              .TypeConstraint<U_>("U"),                                        \
                          RoiAlignBackwardCpu);
DCNV3_REGISTER_REGIONS(float, float)
DCNV3_REGISTER_REGIONS(double, double)
DCNV3_REGISTER_REGIONS(Eigen::bfloat16, float)
DCNV3_REGISTER_REGIONS(Eigen::half, float)
REGISTER_KERNEL_BUILDER(Name("KerasInternimageNms").Device(tf::DEVICE_CPU), NmsCpu);

#ifdef DCNV3_CUDA
#define DCNV3_REGISTER_REGIONS_CUDA(type)                                  \
  REGISTER_KERNEL_BUILDER(Name("KerasInternimageRoiAlign")                 \
                              .Device(tf::DEVICE_GPU)                      \
                              .TypeConstraint<type>("T")                   \
                              .TypeConstraint<float>("U"),                 \
                          RoiAlignCuda);                                   \
  REGISTER_KERNEL_BUILDER(Name("KerasInternimageRoiAlignBackward")         \
                              .Device(tf::DEVICE_GPU)                      \
                              .TypeConstraint<type>("T")                   \
                              .TypeConstraint<float>("U")                  \
                              .HostMemory("shapes"),                       \
                          RoiAlignBackwardCuda);
DCNV3_REGISTER_REGIONS_CUDA(float)
DCNV3_REGISTER_REGIONS_CUDA(Eigen::half)
DCNV3_REGISTER_REGIONS_CUDA(Eigen::bfloat16)
#endif
#endif
