/* The plain C interface to detection's functions: checks, and non-maximum suppression. */
#include <math.h>
#include <string.h>

#include <algorithm>
#include <new>
#include <unordered_map>
#include <vector>

#include "cpu.h"

namespace {

using dcnv3::error;

/* Boxes that remain, of one class. */
template <class A>
struct Kept {
  std::vector<A> left, top, right, bottom, area;

  void add(const A* box) {
    left.push_back(box[0]), top.push_back(box[1]);
    right.push_back(box[2]), bottom.push_back(box[3]);
    area.push_back((box[2] - box[0]) * (box[3] - box[1]));
  }

  /* Whether a box overlaps with one of them by more than the threshold. */
  bool covers(const A* box, A threshold) const {
    constexpr size_t kBlock = 64; /* compared without a branch */
    const A own = (box[2] - box[0]) * (box[3] - box[1]);
    for (size_t begin = 0; begin < area.size(); begin += kBlock) {
      const size_t end = std::min(area.size(), begin + kBlock);
      int found = 0;
      for (size_t i = begin; i < end; ++i) {
        const A l = left[i] > box[0] ? left[i] : box[0], t = top[i] > box[1] ? top[i] : box[1];
        const A r = right[i] < box[2] ? right[i] : box[2];
        const A b = bottom[i] < box[3] ? bottom[i] : box[3];
        const A w = r - l, h = b - t;
        const A shared = (w > 0 ? w : 0) * (h > 0 ? h : 0);
        const A whole = area[i] + own - shared;
        found |= (whole > 0) & (shared / whole > threshold);
      }
      if (found) return true;
    }
    return false;
  }
};

template <class A>
void nms(const A* boxes, const A* scores, const int32_t* classes, int64_t number, A threshold,
         int64_t count, int32_t* indices, uint8_t* valid) {
  std::vector<int32_t> heap;
  for (int64_t i = 0; i < number; ++i)
    if (scores[i] > -A(INFINITY)) heap.push_back(int32_t(i));
  /* Sorted as far as it is asked for: mostly the best few of many are. */
  const auto worse = [scores](int32_t i, int32_t k) {
    return scores[i] < scores[k] || (scores[i] == scores[k] && i > k);
  };
  std::make_heap(heap.begin(), heap.end(), worse);
  std::unordered_map<int32_t, Kept<A>> kept;
  int64_t found = 0;
  while (found < count && !heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), worse);
    const int32_t best = heap.back();
    heap.pop_back();
    Kept<A>& others = kept[classes[best]];
    const A* const box = boxes + 4 * int64_t(best);
    if (others.covers(box, threshold)) continue;
    others.add(box);
    indices[found] = best, valid[found] = 1;
    ++found;
  }
  for (; found < count; ++found) indices[found] = 0, valid[found] = 0;
}

}  // namespace

extern "C" {

dcnv3_status dcnv3_roi_align_prepare(const dcnv3_regions* call) {
  const dcnv3_regions& c = *call;
  if (c.dtype < DCNV3_FLOAT32 || c.dtype > DCNV3_FLOAT16)
    return error("`dtype` must be a dcnv3_dtype. Received: dtype=%d", c.dtype);
  if (c.levels < 1 || c.levels > DCNV3_MAX_LEVELS)
    return error("There must be 1 to %d maps. Received: %d", DCNV3_MAX_LEVELS, c.levels);
  if (c.bins < 1 || c.bins > dcnv3::kMaxSize)
    return error("`output_size` must be positive. Received: output_size=%lld", (long long)c.bins);
  if (c.batch < 0 || c.regions < 0 || c.channels < 1)
    return error("There must be channels. Received: %lld images, %lld regions, %lld channels",
                 (long long)c.batch, (long long)c.regions, (long long)c.channels);
  for (int l = 0; l < c.levels; ++l) {
    const int64_t height = c.heights[l], width = c.widths[l];
    if (height < 1 || width < 1 || height > dcnv3::kMaxSize || width > dcnv3::kMaxSize ||
        height * width >= (int64_t(1) << 31))
      return error("Maps must have 1 to 2^31 - 1 pixels. Received: height=%lld, width=%lld",
                   (long long)height, (long long)width);
    if (!(c.strides[l] > 0 && c.strides[l] < dcnv3::kFar))
      return error("Strides must be positive. Received: %g", c.strides[l]);
  }
  return dcnv3::ok();
}

dcnv3_status dcnv3_cpu_roi_align(const dcnv3_regions* call, const void* const* maps,
                                 const void* boxes, const int32_t* levels, void* output,
                                 int64_t begin, int64_t end) {
  return dcnv3::chosen().roi_align(*call, maps, boxes, levels, output, begin, end)
             ? dcnv3::ok() : dcnv3::out_of_memory();
}

int64_t dcnv3_cpu_roi_align_backward_tasks(const dcnv3_regions* call) {
  return call->batch * dcnv3::ceil_div(call->channels, dcnv3::kTaskChannels);
}

dcnv3_status dcnv3_cpu_roi_align_backward(const dcnv3_regions* call, const void* grad_output,
                                          const void* boxes, const int32_t* levels,
                                          void* const* grad_maps, int64_t begin, int64_t end) {
  return dcnv3::chosen().roi_align_backward(*call, grad_output, boxes, levels, grad_maps, begin,
                                            end)
             ? dcnv3::ok() : dcnv3::out_of_memory();
}

dcnv3_status dcnv3_cpu_nms(int32_t dtype, const void* boxes, const void* scores,
                           const int32_t* classes, int64_t number, double threshold, int64_t count,
                           int32_t* indices, uint8_t* valid) {
  if (number < 0 || number >= (int64_t(1) << 31) || count < 0)
    return error("There must be less than 2^31 boxes. Received: %lld, count=%lld",
                 (long long)number, (long long)count);
  try {
    if (dtype == DCNV3_FLOAT32)
      nms(static_cast<const float*>(boxes), static_cast<const float*>(scores), classes, number,
          float(threshold), count, indices, valid);
    else if (dtype == DCNV3_FLOAT64)
      nms(static_cast<const double*>(boxes), static_cast<const double*>(scores), classes, number,
          threshold, count, indices, valid);
    else
      return error("`boxes` must be float32 or float64. Received: dtype=%d", dtype);
  } catch (const std::bad_alloc&) {
    return dcnv3::out_of_memory();
  }
  return dcnv3::ok();
}

}  /* extern "C" */
