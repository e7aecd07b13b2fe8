// What the .cpp files beside it share.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

// As many floats as one instruction computes with.
#if defined(__AVX512F__)
typedef float floats __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float floats __attribute__((vector_size(32)));
#else
typedef float floats __attribute__((vector_size(16)));
#endif
static const int64_t LANES = sizeof(floats) / sizeof(float);

static inline floats load(const float* x) {
    floats y;
    std::memcpy(&y, x, sizeof y);
    return y;
}

static inline void store(floats x, float* y) {
    std::memcpy(y, &x, sizeof x);
}

// The upper half of a float: what the matrices of a training step are multiplied in, where dtype=bfloat16.
struct bfloat16 {
    uint16_t bits;
};

static inline float widen(float x) {
    return x;
}

static inline float widen(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

static inline void narrow(float x, float* y) {
    *y = x;
}

// To the nearest, halves to the even one; NaN stays NaN.
static inline void narrow(float x, bfloat16* y) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    y->bits = static_cast<uint16_t>((x != x ? bits | 0x400000 : rounded) >> 16);
}

// Call the function with a number of that many bits. Its type is T.
template <typename Function>
static void with_type(int64_t bits, Function function) {
    if (bits == 32)
        function(float());
    else
        function(bfloat16());
}

static inline float dot(const float* a, const float* b, int64_t n) {
    float sum = 0;
    #pragma omp simd reduction(+ : sum)                   // in any order
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

// e^x for x from -87 to 88, where float32 can hold it; beyond, that of the nearer of these two. Unlike std::exp, it can
// be computed for many numbers at once: e^x = 2^n e^r, with a whole n and |r| at most ln(2) / 2, where a polynomial
// gives e^r (Cephes, expf).
static inline float exponential(float x) {
    const float power = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::rint(power * 1.44269504f);
    const float r = power - n * 0.693359375f + n * 2.12194440e-4f;                // ln(2), in two parts
    float e = 1.9875691500e-4f;
    e = e * r + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    e = e * r * r + r + 1;
    const uint32_t exponent = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
    float two_to_n;
    std::memcpy(&two_to_n, &exponent, sizeof two_to_n);
    return e * two_to_n;
}

// Dropout of a row of numbers: number j is multiplied by factor(j), which is 0 with probability p, or else 1 / (1 - p).
// What is dropped depends only on the seed and the number of the row.
struct Dropping {
    float p, kept;
    uint32_t start, threshold;

    Dropping(float p = 0, uint64_t seed = 0, uint64_t number = 0) : p(p), kept(1 / (1 - p)) {
        uint64_t key = (seed + number) * 0x9e3779b97f4a7c15;                      // SplitMix64: Steele et al. 2014
        key = (key ^ key >> 30) * 0xbf58476d1ce4e5b9;
        key = (key ^ key >> 27) * 0x94d049bb133111eb;
        start = key >> 32;
        threshold = p * (1 << 24);
    }

    float factor(int64_t j) const {
        uint32_t bits = start + static_cast<uint32_t>(j) * 0x9e3779b9;            // MurmurHash3's last step
        bits = (bits ^ bits >> 16) * 0x85ebca6b;
        bits = (bits ^ bits >> 13) * 0xc2b2ae35;
        bits = (bits ^ bits >> 16) >> 8;                  // 24 random bits
        return bits < threshold ? 0 : kept;
    }
};
