// One thin vector type over the compiler's own vector extension: W floats or integers, and what is done to them.
//
// Included only by the files that are compiled once for each instruction set, inside whose anonymous namespace all of
// this lives: nothing here may be merged with another instruction set's copy by the linker. No standard templates for
// the same reason. Products and sums are fused exactly where `fma` is written (-ffp-contract=off elsewhere), so that
// two kernels with the same order of operations give the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define OCTAVO_INLINE inline __attribute__((always_inline))

namespace {

// OCTAVO_WIDE without AVX-512: 16 lanes as two halves of 8, which lets a machine without AVX-512 test the wide kernels.
#if defined(OCTAVO_WIDE)
constexpr int W = 16;
#else
constexpr int W = 8;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef std::int32_t vi __attribute__((vector_size(4 * W)));
typedef std::uint32_t vu __attribute__((vector_size(4 * W)));
typedef std::uint16_t vh __attribute__((vector_size(2 * W)));

template <class V>
OCTAVO_INLINE V load_as(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

OCTAVO_INLINE vf load(const float* from) { return load_as<vf>(from); }
OCTAVO_INLINE void store(float* to, vf v) { std::memcpy(to, &v, sizeof v); }

OCTAVO_INLINE vf splat(float x) {
    vf v;
#if defined(__AVX512F__) && defined(OCTAVO_WIDE)
    v = (vf)_mm512_set1_ps(x);
#elif defined(__AVX2__) && !defined(OCTAVO_WIDE)
    v = (vf)_mm256_set1_ps(x);
#else
    for (int i = 0; i < W; ++i) v[i] = x;
#endif
    return v;
}

OCTAVO_INLINE vu splat_word(std::uint32_t x) {
    vu v;
    for (int i = 0; i < W; ++i) v[i] = x;
    return v;
}

// a * b + c, rounded once where the machine has the instruction; always the same way on one instruction set.
OCTAVO_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__) && defined(OCTAVO_WIDE)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && !defined(OCTAVO_WIDE)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__)
    struct Halves { __m256 low, high; } x, y, z;
    std::memcpy(&x, &a, sizeof a), std::memcpy(&y, &b, sizeof b), std::memcpy(&z, &c, sizeof c);
    z.low = _mm256_fmadd_ps(x.low, y.low, z.low);
    z.high = _mm256_fmadd_ps(x.high, y.high, z.high);
    std::memcpy(&c, &z, sizeof c);
    return c;
#elif defined(__FP_FAST_FMAF)
    for (int i = 0; i < W; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

OCTAVO_INLINE float fma1(float a, float b, float c) {
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

OCTAVO_INLINE vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }

// The larger of each pair; b where one is NaN.
OCTAVO_INLINE vf max(vf a, vf b) {
#if defined(__AVX512F__) && defined(OCTAVO_WIDE)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__) && !defined(OCTAVO_WIDE)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

OCTAVO_INLINE vf sqrt(vf a) {
#if defined(__AVX512F__) && defined(OCTAVO_WIDE)
    return (vf)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__) && !defined(OCTAVO_WIDE)
    return (vf)_mm256_sqrt_ps((__m256)a);
#else
    for (int i = 0; i < W; ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
#endif
}

typedef float vf4 __attribute__((vector_size(16)));
typedef std::int32_t vi4 __attribute__((vector_size(16)));

template <class V4, class V, class F>
OCTAVO_INLINE auto fold_parts(V v, F f) {
    V4 parts[W / 4];
    std::memcpy(parts, &v, sizeof v);
    for (int width = W / 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) parts[i] = f(parts[i], parts[i + width]);
    V4 low = parts[0];
    low = f(low, __builtin_shufflevector(low, low, 2, 3, 2, 3));
    low = f(low, __builtin_shufflevector(low, low, 1, 1, 1, 1));
    return low[0];
}

template <class F>
OCTAVO_INLINE float fold(vf v, F f) { return fold_parts<vf4>(v, f); }
template <class F>
OCTAVO_INLINE std::int32_t fold(vi v, F f) { return fold_parts<vi4>(v, f); }

// All lanes, always in the same tree: halves onto each other.
OCTAVO_INLINE float sum(vf v) {
    return fold(v, [](vf4 a, vf4 b) { return a + b; });
}

OCTAVO_INLINE float max_lane(vf v) {
    return fold(v, [](vf4 a, vf4 b) { return a > b ? a : b; });
}

OCTAVO_INLINE vi lane_numbers() {
    vi v;
    for (int i = 0; i < W; ++i) v[i] = i;
    return v;
}

// 32-bit words that hold two bfloat16 each: the float32 of the lower, and of the upper.
OCTAVO_INLINE vf lower(vu pair) { return (vf)(pair << 16); }
OCTAVO_INLINE vf upper(vu pair) {
#if defined(__AVX2__) && !defined(OCTAVO_WIDE)
    // Two shifts: a mask would take a register from the sums of a tile, and gcc must not see that it is one.
    vu high;
    __asm__("vpsrld $16, %1, %0" : "=x"(high) : "x"(pair));
    return (vf)(high << 16);
#else
    return (vf)(pair & 0xffff0000u);
#endif
}

// W bfloat16 that lie side by side.
OCTAVO_INLINE vf load(const std::uint16_t* from) {
#if defined(__AVX512F__) && defined(OCTAVO_WIDE)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__) && !defined(OCTAVO_WIDE)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
    return (vf)(__builtin_convertvector(load_as<vh>(from), vu) << 16);
#endif
}

// W signed bytes that lie side by side.
OCTAVO_INLINE vf load(const std::int8_t* from) {
#if defined(__AVX512F__) && defined(OCTAVO_WIDE)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__) && !defined(OCTAVO_WIDE)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
    typedef std::int8_t vb __attribute__((vector_size(W)));
    return __builtin_convertvector(load_as<vb>(from), vf);
#endif
}

// W float16 that lie side by side, none of them an infinity or NaN.
OCTAVO_INLINE vf load_half(const std::uint16_t* from) {
#if defined(__AVX512F__) && defined(OCTAVO_WIDE)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__) && !defined(OCTAVO_WIDE)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    // Exponent and mantissa where float32 has them; the difference of the biases is a factor of 2^112, exact also for
    // subnormal numbers.
    const vu words = __builtin_convertvector(load_as<vh>(from), vu);
    const vf magnitude = (vf)((words & 0x7fffu) << 13) * 0x1p112f;
    return (vf)((vu)magnitude | (words & 0x8000u) << 16);
#endif
}

OCTAVO_INLINE float widen(std::uint16_t word) {
    const std::uint32_t bits = std::uint32_t{word} << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

OCTAVO_INLINE float widen(float x) { return x; }

// To the nearest bfloat16, ties to even; a NaN stays one.
OCTAVO_INLINE std::uint16_t round_to_bf16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// e^x to 2 units in the last place (Cephes' expf: range reduction by ln 2 in two parts, a polynomial of degree 7).
// Exactly 1 at 0; 0 below -87.3, e^88 above 88, NaN for NaN.
OCTAVO_INLINE vf exp(vf x) {
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const vf clamped = max(splat(-88.0f), select(x > 88.0f, splat(88.0f), x));
    const vf shifted = fma(clamped, splat(1.44269504088896341f), magic);
    const vf n = shifted - magic;
    vf r = fma(n, splat(-0.693359375f), clamped);
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    const vf y = fma(p, r * r, r) + 1.0f;
    const vu scale = ((vu)shifted << 23) + 0x3f800000u;  // the low bits of `shifted` are n
    return select(x < -87.3f, splat(0.0f), y * (vf)scale);
}

}  // namespace
