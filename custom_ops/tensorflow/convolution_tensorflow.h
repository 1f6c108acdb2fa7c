/* Convolutions as a TensorFlow operation; included by dcnv3_tensorflow.cc. */
#ifndef KERAS_INTERNIMAGE_CONVOLUTION_TENSORFLOW_H
#define KERAS_INTERNIMAGE_CONVOLUTION_TENSORFLOW_H

namespace {

class ConvolutionCpu final : public OpKernel {
 public:
  explicit ConvolutionCpu(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("relu", &relu_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &inputs = context->input(0), &kernel = context->input(1);
    const Tensor& bias = context->input(2);
    dcnv3_convolution call;
    const std::string message = dcnv3::prepare_convolution(
        &call, shape_of(inputs), shape_of(kernel), shape_of(bias), relu_);
    OP_REQUIRES(context, message.empty(), tf::errors::InvalidArgument(message));
    Tensor *output, workspace;
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       0, TensorShape({call.batch, call.height, call.width, call.filters}),
                       &output));
    if (output->NumElements() == 0) return;
    OP_REQUIRES_OK(context, context->allocate_temp(
                                tf::DT_FLOAT,
                                TensorShape({dcnv3_cpu_convolution_workspace(&call)}),
                                &workspace));
    const float *x = static_cast<const float*>(data(inputs)),
                *w = static_cast<const float*>(data(kernel)),
                *b = static_cast<const float*>(data(bias));
    float *u = static_cast<float*>(data(&workspace)), *y = static_cast<float*>(data(output));
    Failure failure;
    pool(context)->ParallelFor(
        dcnv3_cpu_convolution_kernel_tasks(&call), dcnv3::cost_of_kernel_task(call),
        [&](tf::int64 begin, tf::int64 end) {
          failure.note(dcnv3_cpu_convolution_kernel(&call, w, u, begin, end));
        });
    pool(context)->ParallelFor(
        dcnv3_cpu_convolution_tasks(&call), dcnv3::cost_of_convolution_task(call),
        [&](tf::int64 begin, tf::int64 end) {
          failure.note(dcnv3_cpu_convolution(&call, x, u, b, y, begin, end));
        });
    OP_REQUIRES_OK(context, failure.status());
  }

 private:
  bool relu_;
};

tf::Status infer_convolution(InferenceContext* context) {
  ShapeHandle inputs, kernel;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 4, &inputs));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 4, &kernel));
  context->set_output(
      0, context->MakeShape({context->Dim(inputs, 0), context->Dim(inputs, 1),
                             context->Dim(inputs, 2), context->Dim(kernel, 3)}));
  return tf::Status();
}

}  // namespace

REGISTER_OP("KerasInternimageConvolution")
    .Input("inputs: float")
    .Input("kernel: float")
    .Input("bias: float")
    .Output("output: float")
    .Attr("relu: bool")
    .SetShapeFn(infer_convolution);

REGISTER_KERNEL_BUILDER(Name("KerasInternimageConvolution").Device(tf::DEVICE_CPU),
                        ConvolutionCpu);
#endif
