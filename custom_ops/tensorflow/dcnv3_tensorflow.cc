/* DCNv3, RoIAlign, suppression and convolutions as TensorFlow operations, loaded with
 * tf.load_op_library. Gradients are registered in Python. There is no XLA kernel: what is compiled by
 * XLA takes the portable implementation. */
#ifdef DCNV3_CUDA
#define EIGEN_USE_GPU
#endif
#include <mutex>
#include <string>
#include <vector>

#include "binding.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace {

namespace tf = tensorflow;
using tf::OpKernel;
using tf::OpKernelConstruction;
using tf::OpKernelContext;
using tf::Tensor;
using tf::TensorShape;
using tf::shape_inference::DimensionHandle;
using tf::shape_inference::InferenceContext;
using tf::shape_inference::ShapeHandle;

using Pair = std::vector<tf::int64>;
using Arguments = dcnv3::Arguments<Pair>;

template <class Context>
tf::Status read(Context* context, Arguments* arguments) {
  std::vector<float> scale;
  TF_RETURN_IF_ERROR(context->GetAttr("kernel_size", &arguments->kernel_size));
  TF_RETURN_IF_ERROR(context->GetAttr("strides", &arguments->strides));
  TF_RETURN_IF_ERROR(context->GetAttr("padding", &arguments->padding));
  TF_RETURN_IF_ERROR(context->GetAttr("dilation_rate", &arguments->dilation_rate));
  tf::int64 groups;
  TF_RETURN_IF_ERROR(context->GetAttr("groups", &groups));
  arguments->groups = groups;
  TF_RETURN_IF_ERROR(context->GetAttr("offset_scale", &scale));
  arguments->offset_scale = 0;
  for (const float part : scale) arguments->offset_scale += double(part);
  TF_RETURN_IF_ERROR(context->GetAttr("remove_center", &arguments->remove_center));
  TF_RETURN_IF_ERROR(context->GetAttr("softmax", &arguments->softmax));
  for (const Pair* pair : {&arguments->kernel_size, &arguments->strides, &arguments->padding,
                           &arguments->dilation_rate})
    if (pair->size() != 2)
      return tf::errors::InvalidArgument(
          "`kernel_size`, `strides`, `padding` and `dilation_rate` must have two elements. "
          "Received: ", pair->size());
  return tf::Status();
}

tf::Status infer_output(InferenceContext* context) {
  Arguments arguments;
  TF_RETURN_IF_ERROR(read(context, &arguments));
  ShapeHandle inputs, offset_mask;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 4, &inputs));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 4, &offset_mask));
  DimensionHandle batch, sizes[2];
  TF_RETURN_IF_ERROR(context->Merge(context->Dim(inputs, 0), context->Dim(offset_mask, 0), &batch));
  for (int axis = 0; axis < 2; ++axis) {
    sizes[axis] = context->Dim(offset_mask, 1 + axis);
    const DimensionHandle size = context->Dim(inputs, 1 + axis);
    if (!context->ValueKnown(size) || arguments.strides[axis] < 1) continue;
    const tf::int64 out =
        (context->Value(size) + 2 * arguments.padding[axis] -
         arguments.dilation_rate[axis] * (arguments.kernel_size[axis] - 1) - 1) /
            arguments.strides[axis] + 1;
    TF_RETURN_IF_ERROR(context->Merge(sizes[axis], context->MakeDim(out), &sizes[axis]));
  }
  context->set_output(
      0, context->MakeShape({batch, sizes[0], sizes[1], context->Dim(inputs, 3)}));
  return tf::Status();
}

tf::Status infer_gradients(InferenceContext* context) {
  context->set_output(0, context->input(1));
  context->set_output(1, context->input(2));
  return tf::Status();
}

dcnv3_dtype dtype_of(tf::DataType type) {
  switch (type) {
    case tf::DT_DOUBLE: return DCNV3_FLOAT64;
    case tf::DT_BFLOAT16: return DCNV3_BFLOAT16;
    case tf::DT_HALF: return DCNV3_FLOAT16;
    default: return DCNV3_FLOAT32; /* the operations' type constraint leaves no other */
  }
}

/* What forward and backward, on any device, do alike. */
class Kernel : public OpKernel {
 public:
  explicit Kernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, read(context, &arguments_));
  }

 protected:
  tf::Status prepare(const Tensor& inputs, const Tensor& offset_mask, dcnv3_call* call) const {
    if (inputs.dims() != 4 || offset_mask.dims() != 4)
      return tf::errors::InvalidArgument(
          "`inputs` and `offset_mask` must have rank 4. Received: inputs of rank ", inputs.dims(),
          ", offset_mask of rank ", offset_mask.dims());
    int64_t shapes[2][4];
    for (int i = 0; i < 4; ++i)
      shapes[0][i] = inputs.dim_size(i), shapes[1][i] = offset_mask.dim_size(i);
    const std::string message =
        dcnv3::prepare(call, dtype_of(inputs.dtype()), arguments_, shapes[0], shapes[1]);
    return message.empty() ? tf::Status() : tf::errors::InvalidArgument(message);
  }

  Arguments arguments_;
};

/* A status that several threads may set. */
class Failure {
 public:
  void note(const dcnv3_status& status) {
    if (status.code == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    message_ = status.message;
  }
  tf::Status status() const {
    return message_.empty() ? tf::Status() : tf::errors::Internal(message_);
  }

 private:
  std::mutex mutex_;
  std::string message_;
};

const void* data(const Tensor& tensor) { return tensor.tensor_data().data(); }
void* data(Tensor* tensor) { return const_cast<char*>(tensor->tensor_data().data()); }

tf::thread::ThreadPool* pool(OpKernelContext* context) {
  return context->device()->tensorflow_cpu_worker_threads()->workers;
}

class Forward : public Kernel {
 public:
  using Kernel::Kernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &inputs = context->input(0), &offset_mask = context->input(1);
    dcnv3_call call;
    OP_REQUIRES_OK(context, prepare(inputs, offset_mask, &call));
    Tensor* output;
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       0, TensorShape({call.batch, call.out_height, call.out_width, call.channels}),
                       &output));
    if (output->NumElements() == 0) return;
    run(context, call, data(inputs), data(offset_mask), data(output));
  }

 private:
  virtual void run(OpKernelContext* context, const dcnv3_call& call, const void* inputs,
                   const void* offset_mask, void* output) = 0;
};

class Backward : public Kernel {
 public:
  explicit Backward(OpKernelConstruction* context) : Kernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("deterministic", &deterministic_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& grad_output = context->input(0);
    const Tensor &inputs = context->input(1), &offset_mask = context->input(2);
    dcnv3_call call;
    OP_REQUIRES_OK(context, prepare(inputs, offset_mask, &call));
    const std::string message =
        dcnv3::check_grad_output(call, grad_output.shape().dim_sizes());
    OP_REQUIRES(context, message.empty(), tf::errors::InvalidArgument(message));
    Tensor *grad_inputs, *grad_offset_mask;
    OP_REQUIRES_OK(context, context->allocate_output(0, inputs.shape(), &grad_inputs));
    OP_REQUIRES_OK(context, context->allocate_output(1, offset_mask.shape(), &grad_offset_mask));
    if (inputs.NumElements() == 0) return;
    run(context, call, data(grad_output), data(inputs), data(offset_mask), data(grad_inputs),
        data(grad_offset_mask));
  }

 protected:
  bool deterministic_;

 private:
  virtual void run(OpKernelContext* context, const dcnv3_call& call, const void* grad_output,
                   const void* inputs, const void* offset_mask, void* grad_inputs,
                   void* grad_offset_mask) = 0;
};

class ForwardCpu final : public Forward {
 public:
  using Forward::Forward;

 private:
  void run(OpKernelContext* context, const dcnv3_call& call, const void* inputs,
           const void* offset_mask, void* output) override {
    Failure failure;
    pool(context)->ParallelFor(dcnv3::output_pixels(call), dcnv3::forward_cost_of_pixel(call),
                               [&](tf::int64 begin, tf::int64 end) {
                                 failure.note(dcnv3_cpu_forward(&call, inputs, offset_mask, output,
                                                                begin, end));
                               });
    OP_REQUIRES_OK(context, failure.status());
  }
};

class BackwardCpu final : public Backward {
 public:
  using Backward::Backward;

 private:
  void run(OpKernelContext* context, const dcnv3_call& call, const void* grad_output,
           const void* inputs, const void* offset_mask, void* grad_inputs,
           void* grad_offset_mask) override {
    Failure failure;
    pool(context)->ParallelFor(
        dcnv3_cpu_backward_tasks(&call), dcnv3::backward_cost_of_task(call),
        [&](tf::int64 begin, tf::int64 end) {
          failure.note(dcnv3_cpu_backward(&call, grad_output, inputs, offset_mask, grad_inputs,
                                          grad_offset_mask, begin, end));
        });
    OP_REQUIRES_OK(context, failure.status());
  }
};

#ifdef DCNV3_CUDA
void* stream(OpKernelContext* context) { return (void*)context->eigen_gpu_device().stream(); }

tf::Status status_of(const dcnv3_status& status) {
  return status.code == 0 ? tf::Status() : tf::errors::Internal(status.message);
}

class ForwardCuda final : public Forward {
 public:
  using Forward::Forward;

 private:
  void run(OpKernelContext* context, const dcnv3_call& call, const void* inputs,
           const void* offset_mask, void* output) override {
    OP_REQUIRES_OK(context, status_of(dcnv3_cuda_forward(&call, inputs, offset_mask, output,
                                                         stream(context))));
  }
};

class BackwardCuda final : public Backward {
 public:
  using Backward::Backward;

 private:
  void run(OpKernelContext* context, const dcnv3_call& call, const void* grad_output,
           const void* inputs, const void* offset_mask, void* grad_inputs,
           void* grad_offset_mask) override {
    const tf::int64 bytes = dcnv3_cuda_backward_workspace(&call, deterministic_);
    Tensor workspace;
    OP_REQUIRES_OK(context, context->allocate_temp(tf::DT_INT8, TensorShape({bytes}), &workspace));
    OP_REQUIRES_OK(context,
                   status_of(dcnv3_cuda_backward(&call, grad_output, inputs, offset_mask,
                                                 grad_inputs, grad_offset_mask, data(&workspace),
                                                 deterministic_, stream(context))));
  }
};
#endif

}  // namespace

#include "detection_tensorflow.h"
#include "convolution_tensorflow.h"

/* TensorFlow's attributes are single precision: offset_scale is a list of parts to add up. */
#define DCNV3_ATTRIBUTES                             \
  .Attr("T: {float, double, bfloat16, half}")        \
      .Attr("kernel_size: list(int) >= 2")           \
      .Attr("strides: list(int) >= 2")               \
      .Attr("padding: list(int) >= 2")               \
      .Attr("dilation_rate: list(int) >= 2")         \
      .Attr("groups: int")                           \
      .Attr("offset_scale: list(float)")             \
      .Attr("remove_center: bool")                   \
      .Attr("softmax: bool")

REGISTER_OP("KerasInternimageDcnv3")
    .Input("inputs: T")
    .Input("offset_mask: T")
    .Output("output: T") DCNV3_ATTRIBUTES.SetShapeFn(infer_output);

REGISTER_OP("KerasInternimageDcnv3Backward")
    .Input("grad_output: T")
    .Input("inputs: T")
    .Input("offset_mask: T")
    .Output("grad_inputs: T")
    .Output("grad_offset_mask: T") DCNV3_ATTRIBUTES.Attr("deterministic: bool")
    .SetShapeFn(infer_gradients);

REGISTER_KERNEL_BUILDER(Name("KerasInternimageDcnv3").Device(tf::DEVICE_CPU), ForwardCpu);
REGISTER_KERNEL_BUILDER(Name("KerasInternimageDcnv3Backward").Device(tf::DEVICE_CPU), BackwardCpu);

#ifdef DCNV3_CUDA
#define DCNV3_REGISTER_CUDA(type)                                                               \
  REGISTER_KERNEL_BUILDER(                                                                      \
      Name("KerasInternimageDcnv3").Device(tf::DEVICE_GPU).TypeConstraint<type>("T"),           \
      ForwardCuda);                                                                             \
  REGISTER_KERNEL_BUILDER(                                                                      \
      Name("KerasInternimageDcnv3Backward").Device(tf::DEVICE_GPU).TypeConstraint<type>("T"),   \
      BackwardCuda);
DCNV3_REGISTER_CUDA(float)
DCNV3_REGISTER_CUDA(Eigen::half)
DCNV3_REGISTER_CUDA(Eigen::bfloat16)
#endif
