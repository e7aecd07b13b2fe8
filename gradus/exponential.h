#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

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
