// Where PyTorch's own operations on a CPU take longer than they must: a step of training, and one more token of a
// sample. model.py says what these functions mean. kernel.py compiles this file, without PyTorch's headers, and calls
// them.
//
// The loops are plain: the compiler turns them into the widest instructions of the processor. All arrays are
// contiguous; their shapes are in brackets. T is float, or bfloat16 if the matrices of a training step are multiplied
// in that; the arithmetic is float either way.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "vector.h"

// For fewer numbers than this, starting the other cores costs more time than they save.
static const int64_t PARALLEL = 50000;

// Long arrays in parts of this size, shared among the cores.
static const int64_t PART = 4096;

// ---------------------------------------------------------------------------- y = x W^T + b, W in 8 bits

// x as integers from -127 to 127. Newer x86 processors multiply 8-bit integers four at a time, if one is unsigned:
// for them, 128 is added. Others multiply 16-bit integers in pairs.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
typedef uint8_t integer;
static const int32_t OFFSET = 128;
#else
typedef int16_t integer;
static const int32_t OFFSET = 0;
#endif

// Write a row x (n_in) as integers q; return the scale that they are to be multiplied by.
static float quantize(const float* x, integer* __restrict q, int64_t n_in) {
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
        q[k] = static_cast<integer>(static_cast<int32_t>(std::rint(x[k] / scale)) + OFFSET);
    return scale;
}

// The products of ROWS rows q (ROWS, n_in) with one row w (n_in), summed: sum (ROWS).
template <int ROWS>
static void multiply(const integer* q, const int8_t* w, int32_t* sum, int64_t n_in) {
    int32_t total[ROWS] = {};
    for (int64_t k = 0; k < n_in; k++)
        for (int i = 0; i < ROWS; i++)                    // w[k] is read once for all
            total[i] += q[i * n_in + k] * w[k];
    std::copy(total, total + ROWS, sum);
}

// x (n, n_in), w (n_out, n_in), w_scale (n_out) and w_sum (n_out) of its rows, bias (n_out) or null -> y (n, n_out).
// To the last bit what Int8Linear computes.
extern "C" void int8_linear(const float* x, const int8_t* w, const float* w_scale, const int32_t* w_sum,
                            const float* bias, float* y, int64_t n, int64_t n_in, int64_t n_out) {
    static thread_local std::vector<integer> integers;    // kept for the next call
    static thread_local std::vector<float> scales;
    integers.resize(n * n_in);
    scales.resize(n);
    integer* q = integers.data();                         // (n, n_in)
    float* scale = scales.data();                         // (n)
    for (int64_t i = 0; i < n; i++)
        scale[i] = quantize(x + i * n_in, q + i * n_in, n_in);

    // Each core gets its own part of the rows of W, and reads it from front to back, which is how memory is fastest.
    #pragma omp parallel for
    for (int64_t j = 0; j < n_out; j++) {
        for (int64_t i = 0, rows; i < n; i += rows) {
            int32_t sum[4];
            rows = n - i >= 4 ? 4 : 1;
            if (rows == 4)
                multiply<4>(q + i * n_in, w + j * n_in, sum, n_in);
            else
                multiply<1>(q + i * n_in, w + j * n_in, sum, n_in);

            for (int64_t r = 0; r < rows; r++) {
                const float product = static_cast<float>(sum[r] - OFFSET * w_sum[j]) * (scale[i + r] * w_scale[j]);
                y[(i + r) * n_out + j] = bias ? product + bias[j] : product;
            }
        }
    }
}

// ---------------------------------------------------------------------------- RMSNorm

// y = weight x / sqrt(mean of x^2 + eps), for one row x (C); y may be x.
template <typename T>
static void rms_norm_row(const float* x, const float* weight, T* y, int64_t C, float eps) {
    const float scale = 1 / std::sqrt(dot(x, x, C) / C + eps);
    for (int64_t c = 0; c < C; c++)
        narrow(x[c] * scale * weight[c], &y[c]);
}

// The same for each row of x (n, C).
template <typename T>
static void rms_norm_rows(const float* x, const float* weight, T* y, int64_t n, int64_t C, float eps) {
    #pragma omp parallel for if (n * C > PARALLEL)
    for (int64_t i = 0; i < n; i++)
        rms_norm_row(x + i * C, weight, y + i * C, C, eps);
}

extern "C" void rms_norm(const float* x, const float* weight, void* y, int64_t bits, int64_t n, int64_t C, float eps) {
    with_type(bits, [&](auto number) {
        typedef decltype(number) T;
        rms_norm_rows(x, weight, (T*)y, n, C, eps);
    });
}

// From the gradient dy of a row y (C) to that of x; what the row adds to the gradient of the weight goes to dweight.
template <typename T>
static void rms_norm_row_backward(const float* __restrict x, const float* __restrict weight, const T* __restrict dy,
                                  float* __restrict dx, float* __restrict dweight, int64_t C, float eps) {
    const float scale = 1 / std::sqrt(dot(x, x, C) / C + eps);
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < C; c++)
        sum += widen(dy[c]) * weight[c] * x[c];
    const float along = sum * scale * scale * scale / C;  // a longer x only changes the scale
    for (int64_t c = 0; c < C; c++) {
        dweight[c] += widen(dy[c]) * x[c] * scale;
        dx[c] = widen(dy[c]) * weight[c] * scale - x[c] * along;
    }
}

// The same for each row of x (n, C), in as many parts as there are cores: dweight (parts, C) is to be summed.
template <typename T>
static void rms_norm_rows_backward(const float* x, const float* weight, const T* dy, float* dx, float* dweight,
                                   int64_t parts, int64_t n, int64_t C, float eps) {
    #pragma omp parallel for if (n * C > PARALLEL)
    for (int64_t p = 0; p < parts; p++)
        for (int64_t i = n * p / parts; i < n * (p + 1) / parts; i++)
            rms_norm_row_backward(x + i * C, weight, dy + i * C, dx + i * C, dweight + p * C, C, eps);
}

extern "C" void rms_norm_backward(const float* x, const float* weight, const void* dy, float* dx, float* dweight,
                                  int64_t bits, int64_t parts, int64_t n, int64_t C, float eps) {
    with_type(bits, [&](auto number) {
        typedef decltype(number) T;
        rms_norm_rows_backward(x, weight, (const T*)dy, dx, dweight, parts, n, C, eps);
    });
}

// ---------------------------------------------------------------------------- SwiGLU

static float sigmoid(float x) {
    return 1 / (1 + exponential(-x));
}

// y = silu(gate) up, for n numbers; silu(x) = x sigmoid(x).
template <typename T>
static void swiglu_part(const T* __restrict gate, const T* __restrict up, T* __restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const float x = widen(gate[i]);
        narrow(x * sigmoid(x) * widen(up[i]), &y[i]);
    }
}

// From the gradient dy to those of gate and up.
template <typename T>
static void swiglu_part_backward(const T* __restrict gate, const T* __restrict up, const T* __restrict dy,
                                 T* __restrict dgate, T* __restrict dup, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const float x = widen(gate[i]), d = widen(dy[i]), s = sigmoid(x);
        narrow(d * widen(up[i]) * s * (1 + x * (1 - s)), &dgate[i]);
        narrow(d * x * s, &dup[i]);
    }
}

template <typename T>
static void swiglu_all(const T* gate, const T* up, T* y, int64_t n) {
    #pragma omp parallel for if (n > PARALLEL)
    for (int64_t i = 0; i < n; i += PART)
        swiglu_part(gate + i, up + i, y + i, std::min(PART, n - i));
}

template <typename T>
static void swiglu_all_backward(const T* gate, const T* up, const T* dy, T* dgate, T* dup, int64_t n) {
    #pragma omp parallel for if (n > PARALLEL)
    for (int64_t i = 0; i < n; i += PART)
        swiglu_part_backward(gate + i, up + i, dy + i, dgate + i, dup + i, std::min(PART, n - i));
}

extern "C" void swiglu(const void* gate, const void* up, void* y, int64_t bits, int64_t n) {
    with_type(bits, [&](auto number) {
        typedef decltype(number) T;
        swiglu_all((const T*)gate, (const T*)up, (T*)y, n);
    });
}

extern "C" void swiglu_backward(const void* gate, const void* up, const void* dy, void* dgate, void* dup,
                                int64_t bits, int64_t n) {
    with_type(bits, [&](auto number) {
        typedef decltype(number) T;
        swiglu_all_backward((const T*)gate, (const T*)up, (const T*)dy, (T*)dgate, (T*)dup, n);
    });
}

// ---------------------------------------------------------------------------- dropout

// y = x, where each of n numbers is multiplied by 0, with probability p, or else by 1 / (1 - p).
template <typename T>
static void dropout_all(const T* x, T* y, int64_t n, float p, uint64_t seed) {
    #pragma omp parallel for if (n > PARALLEL)
    for (int64_t i = 0; i < n; i += PART) {
        const int64_t size = std::min(PART, n - i);
        const Dropping dropping(p, seed, i);
        for (int64_t j = 0; j < size; j++)
            narrow(widen(x[i + j]) * dropping.factor(j), &y[i + j]);
    }
}

extern "C" void dropout(const void* x, void* y, int64_t bits, int64_t n, float p, uint64_t seed) {
    with_type(bits, [&](auto number) {
        typedef decltype(number) T;
        dropout_all((const T*)x, (T*)y, n, p, seed);
    });
}

// ---------------------------------------------------------------------------- attention of one new token

// y (D) = softmax(q K^T / sqrt(D)) V, for q (D) and the first `length` rows of K and V (S, D).
static void attend_head(const float* q, const float* keys, const float* values, float* y, int64_t length, int64_t D) {
    static thread_local std::vector<float> scores;
    scores.resize(length);
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t s = 0; s < length; s++) {
        scores[s] = dot(q, keys + s * D, D) / std::sqrt(static_cast<float>(D));
        largest = std::max(largest, scores[s]);
    }

    float total = 0;
    std::fill(y, y + D, 0.0f);
    for (int64_t s = 0; s < length; s++) {
        const float weight = std::exp(scores[s] - largest);
        total += weight;
        for (int64_t d = 0; d < D; d++)
            y[d] += weight * values[s * D + d];
    }
    for (int64_t d = 0; d < D; d++)
        y[d] /= total;
}

// Rotate the pairs (x[i], x[i + D/2]) of a row (D) by an angle, in place.
static void rotate(float* x, const float* cos, const float* sin, int64_t D) {
    float* __restrict first = x;
    float* __restrict second = x + D / 2;
    for (int64_t i = 0; i < D / 2; i++) {
        const float u = first[i], v = second[i];
        first[i] = u * cos[i] - v * sin[i];
        second[i] = u * sin[i] + v * cos[i];
    }
}

// One new token in each of B texts: heads (B, H + 2 G, D) are its queries, keys and values. Queries and keys are
// normalized with q_norm, k_norm (D) and eps, then rotated by cos, sin (D / 2), in place, unless those are null. Keys
// and values go to row length - 1 of the cache (B, G, S, D). Each query sees `length` rows: y (B, H, D).
extern "C" void attend(float* heads, const float* q_norm, const float* k_norm, const float* cos, const float* sin,
                       float* keys, float* values, float* y,
                       int64_t B, int64_t H, int64_t G, int64_t D, int64_t S, int64_t length, float eps) {
    for (int64_t b = 0; b < B; b++) {
        float* head = heads + b * (H + 2 * G) * D;
        if (q_norm) {
            rms_norm_rows(head, q_norm, head, H, D, eps);
            rms_norm_rows(head + H * D, k_norm, head + H * D, G, D, eps);
        }
        for (int64_t h = 0; cos && h < H + G; h++)
            rotate(head + h * D, cos, sin, D);
        const int64_t row = (b * G * S + length - 1) * D;
        for (int64_t g = 0; g < G; g++) {
            std::copy_n(head + (H + g) * D, D, keys + row + g * S * D);
            std::copy_n(head + (H + G + g) * D, D, values + row + g * S * D);
        }
    }

    #pragma omp parallel for if (B * H * length * D > PARALLEL)
    for (int64_t i = 0; i < B * H; i++) {
        const int64_t b = i / H, h = i % H;
        const int64_t group = (b * G + h / (H / G)) * S * D;
        attend_head(heads + (b * (H + 2 * G) + h) * D, keys + group, values + group, y + i * D, length, D);
    }
}
