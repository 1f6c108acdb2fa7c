/* The plain C interface: checks, and the choice of the instruction set at run time. */
#include "cpu.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <atomic>

namespace dcnv3 {

dcnv3_status ok() {
  dcnv3_status status;
  memset(&status, 0, sizeof status);
  return status;
}

dcnv3_status error(const char* format, ...) {
  dcnv3_status status = ok();
  status.code = 1;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(status.message, sizeof status.message, format, arguments);
  va_end(arguments);
  return status;
}

dcnv3_status out_of_memory() { return error("The kernel could not get memory for its scratch."); }

}  // namespace dcnv3

namespace {

bool has_avx2() {
#ifdef DCNV3_X86
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool has_avx512() {
#ifdef DCNV3_X86
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

const dcnv3::Kernels* best() {
#ifdef DCNV3_X86
  __builtin_cpu_init(); /* on some systems nobody else calls it */
  return has_avx512() ? &dcnv3::avx512::kernels
         : has_avx2() ? &dcnv3::avx2::kernels
                      : &dcnv3::sse2::kernels;
#else
  return &dcnv3::generic::kernels;
#endif
}

std::atomic<const dcnv3::Kernels*>& choice() {
  static std::atomic<const dcnv3::Kernels*> kernels{best()};
  return kernels;
}

}  // namespace

const dcnv3::Kernels& dcnv3::chosen() { return *choice().load(); }

using dcnv3::error;
using dcnv3::kMaxSize;
using dcnv3::ok;
using dcnv3::out_of_memory;

extern "C" {

int32_t dcnv3_abi(void) { return DCNV3_ABI; }

dcnv3_status dcnv3_prepare(dcnv3_call* call, const int64_t inputs[4],
                           const int64_t offset_mask[4]) {
  dcnv3_call& c = *call;
  if (c.dtype < DCNV3_FLOAT32 || c.dtype > DCNV3_FLOAT16)
    return error("`dtype` must be a dcnv3_dtype. Received: dtype=%d", c.dtype);
  const int32_t positive[] = {c.kernel_h, c.kernel_w, c.stride_h,
                              c.stride_w, c.dilation_h, c.dilation_w};
  for (int32_t value : positive)
    if (value < 1 || value > kMaxSize)
      return error("`kernel_size`, `strides` and `dilation_rate` must be positive. Received: "
                   "kernel_size=(%d, %d), strides=(%d, %d), dilation_rate=(%d, %d)",
                   c.kernel_h, c.kernel_w, c.stride_h, c.stride_w, c.dilation_h, c.dilation_w);
  if (c.pad_h < 0 || c.pad_w < 0 || c.pad_h > kMaxSize || c.pad_w > kMaxSize)
    return error("`padding` must not be negative. Received: padding=(%d, %d)", c.pad_h, c.pad_w);
  const int64_t kernel = int64_t(c.kernel_h) * c.kernel_w;
  if (c.remove_center && (c.kernel_h % 2 == 0 || c.kernel_w % 2 == 0 || kernel == 1))
    return error("`remove_center=True` needs a kernel with odd sizes and more than one point. "
                 "Received: kernel_size=(%d, %d)", c.kernel_h, c.kernel_w);
  c.points = kernel - (c.remove_center != 0);
  const int64_t span_h = int64_t(c.dilation_h) * (c.kernel_h - 1) + 1;
  const int64_t span_w = int64_t(c.dilation_w) * (c.kernel_w - 1) + 1;
  if (!(c.offset_scale > 0 && c.offset_scale * double(span_h) < dcnv3::kFar &&
        c.offset_scale * double(span_w) < dcnv3::kFar))
    return error("`offset_scale` must be positive, and the scaled kernel less than 2^24 pixels "
                 "wide. Received: offset_scale=%g, kernel_size=(%d, %d), dilation_rate=(%d, %d)",
                 c.offset_scale, c.kernel_h, c.kernel_w, c.dilation_h, c.dilation_w);
  c.batch = inputs[0], c.height = inputs[1], c.width = inputs[2], c.channels = inputs[3];
  if (c.batch < 0 || c.height < 1 || c.width < 1 || c.height > kMaxSize || c.width > kMaxSize ||
      c.height * c.width >= (int64_t(1) << 31))
    return error("`inputs` must be images (batch, height, width, channels) of less than 2^31 "
                 "pixels. Received: inputs.shape=(%lld, %lld, %lld, %lld)",
                 (long long)inputs[0], (long long)inputs[1], (long long)inputs[2],
                 (long long)inputs[3]);
  if (c.groups < 1 || c.channels < 1 || c.channels % c.groups)
    return error("The last size of `inputs` must be a multiple of `groups`. Received: "
                 "inputs.shape=(%lld, %lld, %lld, %lld), groups=%d", (long long)inputs[0],
                 (long long)inputs[1], (long long)inputs[2], (long long)inputs[3], c.groups);
  if (c.height + 2 * c.pad_h < span_h || c.width + 2 * c.pad_w < span_w)
    return error("The padded input must be at least as large as the dilated kernel, (%lld, %lld). "
                 "Received: height=%lld, width=%lld, padding=(%d, %d)", (long long)span_h,
                 (long long)span_w, (long long)c.height, (long long)c.width, c.pad_h, c.pad_w);
  c.out_height = (c.height + 2 * c.pad_h - span_h) / c.stride_h + 1;
  c.out_width = (c.width + 2 * c.pad_w - span_w) / c.stride_w + 1;
  const int64_t samples = 3 * c.groups * c.points;
  if (offset_mask[0] != c.batch || offset_mask[1] != c.out_height ||
      offset_mask[2] != c.out_width || offset_mask[3] != samples)
    return error("`offset_mask` must have the shape (batch, output height, output width, "
                 "groups * points * 3) = (%lld, %lld, %lld, %lld). Received: "
                 "offset_mask.shape=(%lld, %lld, %lld, %lld)", (long long)c.batch,
                 (long long)c.out_height, (long long)c.out_width, (long long)samples,
                 (long long)offset_mask[0], (long long)offset_mask[1], (long long)offset_mask[2],
                 (long long)offset_mask[3]);
  return ok();
}

dcnv3_status dcnv3_cpu_forward(const dcnv3_call* call, const void* inputs, const void* offset_mask,
                               void* output, int64_t begin, int64_t end) {
  return dcnv3::chosen().forward(*call, inputs, offset_mask, output, begin, end)
             ? ok() : out_of_memory();
}

int64_t dcnv3_cpu_backward_tasks(const dcnv3_call* call) {
  return call->batch * dcnv3::ceil_div(call->groups, dcnv3::kTaskGroups);
}

dcnv3_status dcnv3_cpu_backward(const dcnv3_call* call, const void* grad_output,
                                const void* inputs, const void* offset_mask, void* grad_inputs,
                                void* grad_offset_mask, int64_t begin, int64_t end) {
  return dcnv3::chosen().backward(*call, grad_output, inputs, offset_mask, grad_inputs,
                                   grad_offset_mask, begin, end)
             ? ok() : out_of_memory();
}

const char* dcnv3_cpu_isa(void) { return dcnv3::chosen().isa; }

int32_t dcnv3_cpu_set_isa(const char* isa) {
#ifdef DCNV3_X86
  const struct { const dcnv3::Kernels* kernels; bool available; } all[] = {
      {&dcnv3::sse2::kernels, true},
      {&dcnv3::avx2::kernels, has_avx2()},
      {&dcnv3::avx512::kernels, has_avx512()}};
#else
  const struct { const dcnv3::Kernels* kernels; bool available; } all[] = {
      {&dcnv3::generic::kernels, true}};
#endif
  for (const auto& one : all)
    if (one.available && strcmp(one.kernels->isa, isa) == 0) {
      choice().store(one.kernels);
      return 1;
    }
  return 0;
}

}  /* extern "C" */
