/* Where the sampling points of a block of output pixels lie, and what their corners weigh.
 *
 * A block is a run of (output pixel, group) pairs, in short "sites", each with P samples. The four
 * corners of a sample are always those of a 2 x 2 cell inside the image: the cell is moved inside,
 * and the weights of its columns and rows say which of them the sample has. So one index is enough,
 * every load is in bounds, and corners outside the image weigh nothing. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CPU_SAMPLES_H
#define KERAS_INTERNIMAGE_DCNV3_CPU_SAMPLES_H

#include <stdlib.h>

#include "cpu.h"
#include "cpu_vector.h"

namespace dcnv3 {
namespace DCNV3_ISA {

/* Samples of a block: its arrays stay in the first level of the cache. */
constexpr int64_t kBlockSamples = 256;

/* P: the number of points where it is known, else 0. */
template <class S, int P>
class Samples {
 public:
  typedef typename Element<S>::Acc A;
  typedef Lanes<A> L;
  typedef typename L::V V;
  typedef typename L::I I;
  typedef typename L::Int Int;

  /* Sites are those of the groups [first_group, first_group + groups), pixel after pixel. */
  Samples(const dcnv3_call& call, const S* offset_mask, int64_t first_group, int64_t groups)
      : call_(call),
        offset_mask_(offset_mask),
        first_group_(first_group),
        groups_(groups),
        points_(call.points) {
    block_ = points() < kBlockSamples ? kBlockSamples / points() : 1;
    size_ = ceil_div(block_ * points(), L::count) * L::count;
    const int64_t run = groups_ * points();
    const int64_t site = ceil_div(block_, L::count) * L::count;
    const size_t bytes =
        (kArrays * size_ + 4 * size_ + site) * sizeof(A) + 2 * run * sizeof(Int) + 64;
    memory_ = malloc(bytes + 64);
    if (memory_ == nullptr) return;
    A* next = reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(memory_) + 63) & ~uintptr_t(63));
    memset(next, 0, bytes);
    A** arrays[] = {&x_, &y_, &mask, &weight[0], &weight[1], &weight[2], &weight[3], &left,
                    &right, &top, &bottom, &fraction_x_, &fraction_y_};
    for (A** array : arrays) *array = next, next += size_;
    Int** integers[] = {&index, &column, &row};
    for (Int** array : integers) *array = reinterpret_cast<Int*>(next), next += size_;
    dots = next, next += 4 * size_;
    scale = next, next += site;
    grid_x_ = reinterpret_cast<Int*>(next);
    grid_y_ = grid_x_ + run;
    fill_grid();
  }
  ~Samples() { free(memory_); }
  Samples(const Samples&) = delete;
  Samples& operator=(const Samples&) = delete;

  int64_t points() const { return P ? P : points_; }

  bool allocated() const { return memory_ != nullptr; }

  /* Sites of a whole block. */
  int64_t block() const { return block_; }

  /* Positions and weights of the sites [begin, end), counted from the first pixel of the batch.
   * `normalize`: divide softmax masks by their sum; otherwise `scale` holds 1 / sum. */
  void locate(int64_t begin, int64_t end, bool normalize) {
    read(begin, end);
    const int64_t sites = end - begin;
    const int64_t count = ceil_div(sites * points(), L::count) * L::count;
    if (call_.softmax) softmax(sites, count, normalize);
    const A s = A(call_.offset_scale);
    const Int height = Int(call_.height), width = Int(call_.width);
    for (int64_t i = 0; i < count; i += L::count) {
      V u, v, l, r, t, b;
      const I x0 = split(s * load<V>(x_ + i) + load<V>(fraction_x_ + i), load<I>(column + i), &u);
      const I y0 = split(s * load<V>(y_ + i) + load<V>(fraction_y_ + i), load<I>(row + i), &v);
      const I x = inside(x0, width, u, &l, &r), y = inside(y0, height, v, &t, &b);
      store(index + i, I(y * width + x));
      store(column + i, I(x0 - x));
      store(row + i, I(y0 - y));
      store(left + i, l), store(right + i, r), store(top + i, t), store(bottom + i, b);
      const V m = load<V>(mask + i), upper = t * m, lower = b * m;
      store(weight[0] + i, V(upper * l)), store(weight[1] + i, V(upper * r));
      store(weight[2] + i, V(lower * l)), store(weight[3] + i, V(lower * r));
    }
  }

  /* Asks for what `locate` will read of the site `block()` further on. */
  void prefetch(int64_t pixel, int64_t group) const {
    const int64_t next = group + block_;
    const S* from = offset_mask_ + (pixel + next / groups_) * stride();
    const int64_t g = first_group_ + next % groups_;
    const S* offset = from + 2 * g * points();
    __builtin_prefetch(offset);
    __builtin_prefetch(offset + 2 * points());
    __builtin_prefetch(from + (2 * call_.groups + g) * points());
  }

  /* From `dots`, four products with the upstream gradient for each sample, the gradients of
   * offsets and masks of the sites last located (with `normalize`), written where they belong. */
  void gradients(int64_t begin, int64_t end, S* grad_offset_mask) {
    const int64_t sites = end - begin;
    const int64_t count = ceil_div(sites * points(), L::count) * L::count;
    for (int k = 0; k < 4; ++k)
      for (int64_t i = 0; i < count; ++i) weight[k][i] = dots[4 * i + k];
    const A s = A(call_.offset_scale);
    for (int64_t i = 0; i < count; i += L::count) {
      const I kx = load<I>(column + i), ky = load<I>(row + i);
      const V l = load<V>(left + i), r = load<V>(right + i);
      const V t = load<V>(top + i), b = load<V>(bottom + i), m = load<V>(mask + i);
      const I has_l = (kx == 0) | (kx == -1), has_t = (ky == 0) | (ky == -1);
      const I has_r = has_second(kx, call_.width), has_b = has_second(ky, call_.height);
      const V zero = {};
      const V a00 = has_t & has_l ? load<V>(weight[0] + i) : zero;
      const V a01 = has_t & has_r ? load<V>(weight[1] + i) : zero;
      const V a10 = has_b & has_l ? load<V>(weight[2] + i) : zero;
      const V a11 = has_b & has_r ? load<V>(weight[3] + i) : zero;
      const V upper = l * a00 + r * a01, lower = l * a10 + r * a11;
      const V slope_top = slope(kx, has_l, has_r, a00, a01);
      const V slope_bottom = slope(kx, has_l, has_r, a10, a11);
      const V factor = m * s;
      store(x_ + i, V(factor * (t * slope_top + b * slope_bottom)));
      store(y_ + i, V(factor * slope(ky, has_t, has_b, upper, lower)));
      store(weight[0] + i, V(t * upper + b * lower));
    }
    A* d_mask = weight[0];
    if (call_.softmax) {
      for (int64_t q = 0; q < sites; ++q) {
        const A* m = mask + q * points();
        A* d = d_mask + q * points();
        A total = 0;
        for (int64_t p = 0; p < points(); ++p) total += m[p] * d[p];
        for (int64_t p = 0; p < points(); ++p) d[p] = m[p] * (d[p] - total);
      }
    }
    for_runs(begin, end, [&](int64_t pixel, int64_t group, int64_t i, int64_t n) {
      S* offset = grad_offset_mask + pixel * stride() + 2 * group * points();
      S* to = grad_offset_mask + pixel * stride() + (2 * call_.groups + group) * points();
      for (int64_t j = 0; j < n; ++j) {
        offset[2 * j] = Element<S>::narrow(x_[i + j]);
        offset[2 * j + 1] = Element<S>::narrow(y_[i + j]);
        to[j] = Element<S>::narrow(d_mask[i + j]);
      }
    });
  }

  /* Whether the image has the cell's pixel `corner` = 2 * row + column as one of the sample's. */
  bool has_pixel(int64_t i, int corner) const {
    const Int x = column[i], y = row[i];
    const bool has_x = corner & 1 ? call_.width > 1 && (x == 0 || x == 1) : x == 0 || x == -1;
    const bool has_y = corner & 2 ? call_.height > 1 && (y == 0 || y == 1) : y == 0 || y == -1;
    return has_x && has_y;
  }

  /* Of a sample: the pixel `y * W + x` of its cell's upper left corner, the masked weights of the
   * cell's four pixels, and how many columns and rows the cell was moved against the sample. */
  Int* index;
  A* weight[4];
  Int *column, *row;
  A *left, *right, *top, *bottom, *mask;
  A* scale; /* of a site */
  A* dots;

 private:
  static constexpr int64_t kArrays = 16;

  int64_t stride() const { return 3 * call_.groups * points(); }

  void fill_grid() {
    const int64_t rows = call_.kernel_h, all = call_.kernel_h * call_.kernel_w;
    int64_t p = 0;
    for (int64_t k = 0; k < all; ++k) {
      if (call_.remove_center && k == all / 2) continue;
      const int64_t center_x = call_.dilation_w * (call_.kernel_w - 1) / 2;
      const int64_t center_y = call_.dilation_h * (call_.kernel_h - 1) / 2;
      const double x = call_.offset_scale * double(k / rows * call_.dilation_w - center_x);
      const double y = call_.offset_scale * double(k % rows * call_.dilation_h - center_y);
      const double floor_x = __builtin_floor(x), floor_y = __builtin_floor(y);
      for (int64_t g = 0; g < groups_; ++g) {
        grid_x_[g * points() + p] = Int(floor_x);
        grid_y_[g * points() + p] = Int(floor_y);
      }
      for (int64_t q = 0; q < block_; ++q) {
        fraction_x_[q * points() + p] = A(x - floor_x);
        fraction_y_[q * points() + p] = A(y - floor_y);
      }
      ++p;
    }
  }

  /* Calls function(pixel, group, first sample, samples) for each pixel's part of the sites. */
  template <class Function>
  void for_runs(int64_t begin, int64_t end, const Function& function) {
    int64_t pixel = begin / groups_, group = begin % groups_;
    for (int64_t q = begin; q < end;) {
      const int64_t left_in_pixel = groups_ - group, wanted = end - q;
      const int64_t n = wanted < left_in_pixel ? wanted : left_in_pixel;
      function(pixel, first_group_ + group, (q - begin) * points(), n * points());
      q += n, group = 0, ++pixel;
    }
  }

  /* Offsets and masks as numbers, apart, and the integer part of each sample's origin. */
  void read(int64_t begin, int64_t end) {
    const int64_t start_x = call_.dilation_w * (call_.kernel_w - 1) / 2 - call_.pad_w;
    const int64_t start_y = call_.dilation_h * (call_.kernel_h - 1) / 2 - call_.pad_h;
    for_runs(begin, end, [&](int64_t pixel, int64_t group, int64_t i, int64_t n) {
      const S* offset = offset_mask_ + pixel * stride() + 2 * group * points();
      const S* from = offset_mask_ + pixel * stride() + (2 * call_.groups + group) * points();
      const int64_t w = pixel % call_.out_width, h = pixel / call_.out_width % call_.out_height;
      const Int x = Int(w * call_.stride_w + start_x), y = Int(h * call_.stride_h + start_y);
      A *to_x = x_ + i, *to_y = y_ + i, *to = mask + i;
      Int *to_column = column + i, *to_row = row + i;
      for (int64_t j = 0; j < n; ++j) {
        to_x[j] = Element<S>::widen(offset[2 * j]);
        to_y[j] = Element<S>::widen(offset[2 * j + 1]);
      }
      for (int64_t j = 0; j < n; ++j) to[j] = Element<S>::widen(from[j]);
      for (int64_t j = 0; j < n; ++j) {
        to_column[j] = x + grid_x_[j];
        to_row[j] = y + grid_y_[j];
      }
    });
  }

  void softmax(int64_t sites, int64_t count, bool normalize) {
    for (int64_t q = 0; q < sites; ++q) {
      A* m = mask + q * points();
      A top = m[0];
      for (int64_t p = 1; p < points(); ++p) top = m[p] > top ? m[p] : top;
      for (int64_t p = 0; p < points(); ++p) m[p] -= top;
    }
    for (int64_t i = 0; i < count; i += L::count)
      store(mask + i, exp_negative(load<V>(mask + i)));
    for (int64_t q = 0; q < sites; ++q) {
      A* m = mask + q * points();
      A total = 0;
      for (int64_t p = 0; p < points(); ++p) total += m[p];
      scale[q] = 1 / total;
      if (normalize)
        for (int64_t p = 0; p < points(); ++p) m[p] *= scale[q];
    }
  }

  /* Pixel left of (above) `t` + origin and the fraction beyond it. NaN compares false. */
  static inline I split(V t, I origin, V* fraction) {
    const V far = V{} + A(kFar);
    t = ((t < far) & (t > -far)) ? t : -far;
    I cell = __builtin_convertvector(t, I);
    cell += __builtin_convertvector(cell, V) > t; /* true is -1: from truncation to floor */
    *fraction = t - __builtin_convertvector(cell, V);
    return cell + origin;
  }

  /* The cell's first column (row) inside an image of `size`, and both columns' weights. */
  static inline I inside(I x0, Int size, V u, V* first, V* second) {
    const I last = I{} + (size > 1 ? size - 2 : 0);
    I x = x0 < 0 ? I{} : x0;
    x = x > last ? last : x;
    const I moved = x0 - x;
    const V zero = {}, rest = A(1) - u;
    *first = moved == 0 ? rest : moved == -1 ? u : zero;
    *second = moved == 0 ? u : moved == 1 ? rest : zero;
    if (size == 1) *second = zero;
    return x;
  }

  static inline I has_second(I moved, int64_t size) {
    const I has = (moved == 0) | (moved == 1);
    return size == 1 ? I{} : has;
  }

  /* The derivative by the position of first * a + second * b. */
  static inline V slope(I moved, I has_first, I has_second, V a, V b) {
    const V zero = {};
    const V from_first = has_first ? (moved == 0 ? -a : a) : zero;
    const V from_second = has_second ? (moved == 0 ? b : -b) : zero;
    return from_first + from_second;
  }

  const dcnv3_call& call_;
  const S* offset_mask_;
  int64_t first_group_, groups_, points_, block_, size_;
  void* memory_;
  A *x_, *y_, *fraction_x_, *fraction_y_;
  Int *grid_x_, *grid_y_;
};

}  // namespace DCNV3_ISA
}  // namespace dcnv3
#endif
