/* The plain C interface to convolutions: checks, and how the work is split. */
#include "cpu.h"

namespace {

using dcnv3::ceil_div;

int64_t kernel_blocks(const dcnv3_convolution& call) {
  return ceil_div(call.filters, dcnv3::chosen().convolution_filters);
}

int64_t all_tiles(const dcnv3_convolution& call) {
  return call.batch * ceil_div(call.height, dcnv3::kTileSize) *
         ceil_div(call.width, dcnv3::kTileSize);
}

/* A task reads the whole transformed kernel, so that it must not be small; but each thread needs
 * some. */
int64_t tiles_of_task(const dcnv3_convolution& call) {
  const int64_t part = ceil_div(all_tiles(call), 64);
  return part < dcnv3::kMostTiles / 2 ? dcnv3::kMostTiles / 2
         : part > dcnv3::kMostTiles   ? dcnv3::kMostTiles
                                      : part;
}

}  // namespace

extern "C" {

dcnv3_status dcnv3_convolution_prepare(const dcnv3_convolution* call) {
  const dcnv3_convolution& c = *call;
  if (c.batch < 0 || c.height < 1 || c.width < 1 || c.height > dcnv3::kMaxSize ||
      c.width > dcnv3::kMaxSize || c.height * c.width >= (int64_t(1) << 31))
    return dcnv3::error("`inputs` must be images of 1 to 2^31 - 1 pixels. Received: batch=%lld, "
                        "height=%lld, width=%lld", (long long)c.batch, (long long)c.height,
                        (long long)c.width);
  if (c.channels < 1 || c.filters < 1 || c.channels > dcnv3::kMaxSize ||
      c.filters > dcnv3::kMaxSize)
    return dcnv3::error("There must be channels and filters. Received: channels=%lld, filters=%lld",
                        (long long)c.channels, (long long)c.filters);
  return dcnv3::ok();
}

int64_t dcnv3_cpu_convolution_workspace(const dcnv3_convolution* call) {
  return kernel_blocks(*call) * dcnv3::chosen().convolution_filters * 36 * call->channels;
}

int64_t dcnv3_cpu_convolution_kernel_tasks(const dcnv3_convolution* call) {
  return kernel_blocks(*call);
}

dcnv3_status dcnv3_cpu_convolution_kernel(const dcnv3_convolution* call, const float* kernel,
                                          float* workspace, int64_t begin, int64_t end) {
  dcnv3::chosen().convolution_kernel(*call, kernel, workspace, begin, end);
  return dcnv3::ok();
}

int64_t dcnv3_cpu_convolution_tasks(const dcnv3_convolution* call) {
  return ceil_div(all_tiles(*call), tiles_of_task(*call));
}

dcnv3_status dcnv3_cpu_convolution(const dcnv3_convolution* call, const float* inputs,
                                   const float* workspace, const float* bias, float* output,
                                   int64_t begin, int64_t end) {
  const int64_t each = tiles_of_task(*call), tiles = all_tiles(*call);
  const int64_t last = end * each < tiles ? end * each : tiles;
  return dcnv3::chosen().convolution(*call, inputs, workspace, bias, output, begin * each, last)
             ? dcnv3::ok() : dcnv3::out_of_memory();
}

}  /* extern "C" */
