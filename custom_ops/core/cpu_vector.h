/* Vectors of the width that the file is compiled for, element types, exp and horizontal sums.
 *
 * Every loop over sampling points runs in whole vectors over padded arrays. A point is thus
 * computed by the same instructions wherever it lies in an array, and its bits do not depend on
 * how the work was split. */
#ifndef KERAS_INTERNIMAGE_DCNV3_CPU_VECTOR_H
#define KERAS_INTERNIMAGE_DCNV3_CPU_VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__)
/* g++ 12 warns of its own header's deliberately undefined vectors. */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(__AVX512F__)
#define DCNV3_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define DCNV3_VECTOR_BYTES 32
#else
#define DCNV3_VECTOR_BYTES 16
#endif

namespace dcnv3 {
namespace DCNV3_ISA {

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int count = DCNV3_VECTOR_BYTES / 4;
  typedef float V __attribute__((vector_size(DCNV3_VECTOR_BYTES)));
  typedef int32_t Int;
  typedef int32_t I __attribute__((vector_size(DCNV3_VECTOR_BYTES)));
  typedef uint32_t U __attribute__((vector_size(DCNV3_VECTOR_BYTES)));
  typedef uint16_t Half __attribute__((vector_size(DCNV3_VECTOR_BYTES / 2)));
};

template <>
struct Lanes<double> {
  static constexpr int count = DCNV3_VECTOR_BYTES / 8;
  typedef double V __attribute__((vector_size(DCNV3_VECTOR_BYTES)));
  typedef int64_t Int;
  typedef int64_t I __attribute__((vector_size(DCNV3_VECTOR_BYTES)));
  typedef uint64_t U __attribute__((vector_size(DCNV3_VECTOR_BYTES)));
};

template <class V, class T>
static inline V load(const T* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
static inline void store(T* to, const V& v) {
  memcpy(to, &v, sizeof v);
}

/* ---- element types: Acc is what they are computed in ------------------------------------------ */

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

template <class To, class From>
static inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

/* Vectors of 16-bit integers to 32 bits and back (the upper halves are lost). Of the general form
 * g++ 12 makes single elements. */
template <class T>
static inline Lanes<float>::U widen_integers(const T* from) {
#if defined(__AVX512F__)
  return (Lanes<float>::U)_mm512_cvtepu16_epi32(load<__m256i>(from));
#elif defined(__AVX2__)
  return (Lanes<float>::U)_mm256_cvtepu16_epi32(load<__m128i>(from));
#else
  return __builtin_convertvector(load<Lanes<float>::Half>(from), Lanes<float>::U);
#endif
}

template <class T>
static inline void narrow_integers(T* to, const Lanes<float>::U& v) {
#if defined(__AVX512F__)
  store(to, _mm512_cvtepi32_epi16((__m512i)v));
#else
  store(to, __builtin_convertvector(v, Lanes<float>::Half));
#endif
}

template <class S> struct Element;

template <class A>
struct Same {
  typedef A Acc;
  typedef typename Lanes<A>::V V;
  static inline A widen(A x) { return x; }
  static inline A narrow(A x) { return x; }
  static inline V load_vector(const A* from) { return load<V>(from); }
  static inline void store_vector(A* to, const V& v) { store(to, v); }
};
template <> struct Element<float> : Same<float> {};
template <> struct Element<double> : Same<double> {};

template <>
struct Element<BFloat16> {
  typedef float Acc;
  typedef Lanes<float> L;
  static inline float widen(BFloat16 x) { return bits<float>(uint32_t(x.bits) << 16); }
  static inline BFloat16 narrow(float x) {
    const uint32_t u = bits<uint32_t>(x);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return {uint16_t(x == x ? rounded : (u >> 16) | 0x40u)};
  }
  static inline L::V load_vector(const BFloat16* from) {
    return bits<L::V>(L::U(widen_integers(from) << 16));
  }
  static inline void store_vector(BFloat16* to, const L::V& v) {
    const L::U u = bits<L::U>(v), nan = (u >> 16) | 0x40u;
    const L::U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    narrow_integers(to, v == v ? rounded : nan);
  }
};

template <>
struct Element<Float16> {
  typedef float Acc;
  typedef Lanes<float> L;
  /* No product with a tiny number: threads of some frameworks flush those to zero. */
  template <class F, class U>
  static inline F widen_bits(U h) {
    const U sign = (h & 0x8000u) << 16, magnitude = (h & 0x7fffu) << 13;
    const U exponent = magnitude & 0x0f800000u;
    const F subnormal = bits<F>(U(magnitude + (113u << 23))) - bits<F>(U((h & 0u) + (113u << 23)));
    const U normal = magnitude + (112u << 23);
    const U special = magnitude + (224u << 23);
    U u = exponent == 0x0f800000u ? special : normal;
    u = exponent == 0u ? bits<U>(subnormal) : u;
    return bits<F>(U(u | sign));
  }
  static inline float widen(Float16 x) { return widen_bits<float, uint32_t>(x.bits); }
  static inline Float16 narrow(float x) {
    uint32_t u = bits<uint32_t>(x);
    const uint32_t sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    uint32_t h;
    if (u > 0x7f800000u) {
      h = 0x7e00u;
    } else if (u >= 0x477ff000u) { /* rounds to 65536 or more */
      h = 0x7c00u;
    } else if (u >= (113u << 23)) {
      h = (u - (112u << 23) + 0xfffu + ((u >> 13) & 1u)) >> 13;
    } else { /* the sum's last bit is worth 2^-24, float16's smallest number */
      h = bits<uint32_t>(bits<float>(u) + 0.5f) - bits<uint32_t>(0.5f);
    }
    return {uint16_t(h | sign)};
  }
  static inline L::V load_vector(const Float16* from) {
#if defined(__AVX512F__)
    return (L::V)_mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__F16C__)
    return (L::V)_mm256_cvtph_ps(load<__m128i>(from));
#else
    return widen_bits<L::V, L::U>(widen_integers(from));
#endif
  }
  static inline void store_vector(Float16* to, const L::V& v) {
#if defined(__AVX512F__)
    store(to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
    store(to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    for (int i = 0; i < L::count; ++i) to[i] = narrow(v[i]);
#endif
  }
};

/* ---- arithmetic ------------------------------------------------------------------------------- */

/* exp for arguments that are not positive, to 1 (float) and 2 (double) units in the last place.
 * NaN stays; what is below the smallest normal number becomes zero. */
static inline Lanes<float>::V exp_negative(Lanes<float>::V x) {
  typedef Lanes<float> L;
  const L::V shift = L::V{} + 12582912.0f; /* 1.5 * 2^23: adding it rounds to integers */
  const L::V z = x * 1.44269504f + shift;
  const L::V n = z - shift;
  L::V r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  L::V y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const L::U power = (bits<L::U>(z) - 0x4b400000u + 127u) << 23;
  y = y * bits<L::V>(power);
  return x < -87.0f ? L::V{} : y;
}

static inline Lanes<double>::V exp_negative(Lanes<double>::V x) {
  typedef Lanes<double> L;
  const L::V shift = L::V{} + 6755399441055744.0; /* 1.5 * 2^52 */
  const L::V z = x * 1.4426950408889634 + shift;
  const L::V n = z - shift;
  L::V r = x - n * 6.93145751953125e-1;
  r = r - n * 1.42860682030941723212e-6;
  /* Taylor's series: |r| <= ln(2) / 2, and r^14 / 14! is below 1e-17. */
  L::V y = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  y = y * r + 1.0 / 39916800.0;
  y = y * r + 1.0 / 3628800.0;
  y = y * r + 1.0 / 362880.0;
  y = y * r + 1.0 / 40320.0;
  y = y * r + 1.0 / 5040.0;
  y = y * r + 1.0 / 720.0;
  y = y * r + 1.0 / 120.0;
  y = y * r + 1.0 / 24.0;
  y = y * r + 1.0 / 6.0;
  y = y * r + 0.5;
  y = y * r * r + r + 1.0;
  const L::U power = (bits<L::U>(z) - 0x4338000000000000u + 1023u) << 52;
  y = y * bits<L::V>(power);
  return x < -708.0 ? L::V{} : y;
}

template <class V>
static inline auto sum(const V& v) {
  auto total = v[0];
  for (unsigned i = 1; i < sizeof(V) / sizeof(v[0]); ++i) total += v[i];
  return total;
}

/* Writes the four vectors' horizontal sums side by side. */
static inline void store_sums(double* to, Lanes<double>::V a, Lanes<double>::V b,
                              Lanes<double>::V c, Lanes<double>::V d) {
  to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
}

#if defined(__SSE2__)
static inline __m128 transposed_sum(__m128 a, __m128 b, __m128 c, __m128 d) {
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
  return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}
#endif

static inline void store_sums(float* to, Lanes<float>::V a, Lanes<float>::V b, Lanes<float>::V c,
                              Lanes<float>::V d) {
#if defined(__AVX512F__)
  const __m512 x = (__m512)a, y = (__m512)b, z = (__m512)c, w = (__m512)d;
  const __m512 xy = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
  const __m512 zw = _mm512_add_ps(_mm512_unpacklo_ps(z, w), _mm512_unpackhi_ps(z, w));
  const __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(xy), _mm512_castps_pd(zw));
  const __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(xy), _mm512_castps_pd(zw));
  const __m512 s = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
  const __m256 t = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
#elif defined(__AVX2__)
  const __m256 x = (__m256)a, y = (__m256)b, z = (__m256)c, w = (__m256)d;
  const __m256 xy = _mm256_add_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y));
  const __m256 zw = _mm256_add_ps(_mm256_unpacklo_ps(z, w), _mm256_unpackhi_ps(z, w));
  const __m256d lo = _mm256_unpacklo_pd(_mm256_castps_pd(xy), _mm256_castps_pd(zw));
  const __m256d hi = _mm256_unpackhi_pd(_mm256_castps_pd(xy), _mm256_castps_pd(zw));
  const __m256 s = _mm256_add_ps(_mm256_castpd_ps(lo), _mm256_castpd_ps(hi));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
#elif defined(__SSE2__)
  _mm_storeu_ps(to, transposed_sum((__m128)a, (__m128)b, (__m128)c, (__m128)d));
#else
  to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
#endif
}

}  // namespace DCNV3_ISA
}  // namespace dcnv3
#endif
