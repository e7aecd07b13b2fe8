// y = x W^T + b with W in 8 bits, for a few rows of x: what Int8Linear in inference.py computes, to the last bit.
//
// A token costs the time to read every weight once. Here each row of W is read from front to back, which is how memory
// is fastest, while its products with the rows of x are summed. The loops are plain: the compiler turns them into the
// widest instructions of the processor. kernel.py compiles this file; it needs none of PyTorch's headers.
//
//     n  rows of x          n_in  numbers in each          n_out  rows of W

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// Write a row of x as integers from -127 to 127, in 16 bits, and return the scale that they are to be multiplied by.
static float quantize(const float* x, int16_t* __restrict q, int64_t n_in) {
    // The largest absolute value. Without their sign, floats are ordered as their bits are; infinity and NaN come last.
    uint32_t largest = 0;
    for (int64_t k = 0; k < n_in; k++) {
        uint32_t bits;
        std::memcpy(&bits, &x[k], sizeof bits);
        largest = std::max(largest, bits & 0x7fffffff);
    }
    float size;
    std::memcpy(&size, &largest, sizeof size);
    if (!std::isfinite(size)) {
        std::fill(q, q + n_in, 0);
        return std::numeric_limits<float>::quiet_NaN();   // which makes the row of y NaN
    }

    // To the nearest integer, halves to the even one.
    const float scale = std::max(size, 1e-30f) / 127;
    for (int64_t k = 0; k < n_in; k++)
        q[k] = static_cast<int16_t>(std::rint(x[k] / scale));
    return scale;
}

// The products of ROWS rows q with one row w, summed: (ROWS, n_in) and (n_in) -> sum (ROWS).
template <int ROWS>
static void multiply(const int16_t* q, const int8_t* w, int32_t* sum, int64_t n_in) {
    int32_t total[ROWS] = {};
    for (int64_t k = 0; k < n_in; k++)
        for (int i = 0; i < ROWS; i++)                    // w[k] is converted once for all
            total[i] += q[i * n_in + k] * w[k];
    std::copy(total, total + ROWS, sum);
}

// x (n, n_in), w (n_out, n_in) and w_scale (n_out) of its rows, bias (n_out) or null -> y (n, n_out). All are
// contiguous; q (n, n_in) and scale (n) are room for x as integers.
extern "C" void int8_linear(const float* x, const int8_t* w, const float* w_scale, const float* bias, int16_t* q,
                            float* scale, float* y, int64_t n, int64_t n_in, int64_t n_out) {
    for (int64_t i = 0; i < n; i++)
        scale[i] = quantize(x + i * n_in, q + i * n_in, n_in);

    #pragma omp parallel for                              // each core gets its own part of the rows of W
    for (int64_t j = 0; j < n_out; j++) {
        for (int64_t i = 0, rows; i < n; i += rows) {
            int32_t sum[4];
            rows = n - i >= 4 ? 4 : 1;
            if (rows == 4)
                multiply<4>(q + i * n_in, w + j * n_in, sum, n_in);
            else
                multiply<1>(q + i * n_in, w + j * n_in, sum, n_in);

            for (int64_t r = 0; r < rows; r++) {
                const float product = static_cast<float>(sum[r]) * (scale[i + r] * w_scale[j]);
                y[(i + r) * n_out + j] = bias ? product + bias[j] : product;
            }
        }
    }
}
