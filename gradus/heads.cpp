// Between the matrix that makes queries, keys and values, and attention: CausalSelfAttention.split of model.py, for a
// step of training. kernel.py compiles this file. All arrays are contiguous; T is float or bfloat16, as in kernel.cpp.
//
// A head has few numbers, such as 16 or 32. What takes time is not the arithmetic, but all that surrounds it. So the
// numbers of a token are converted at once, and each head is read once, normalized and rotated in registers, and
// written once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "vector.h"

// For fewer numbers than this, starting the other cores costs more time than they save.
static const int64_t PARALLEL = 50000;

template <typename T>
static void widen_row(const T* __restrict x, float* __restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = widen(x[i]);
}

template <typename T>
static void narrow_row(const float* __restrict x, T* __restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        narrow(x[i], &y[i]);
}

// term(0) + ... + term(n - 1), eight at a time.
template <typename Function>
static inline float sum(int64_t n, Function term) {
    float sums[8] = {};
    for (int64_t i = 0; i + 8 <= n; i += 8)
        for (int64_t j = 0; j < 8; j++)
            sums[j] += term(i + j);
    for (int64_t j = 0; j < n % 8; j++)
        sums[j] += term(n - n % 8 + j);
    for (int64_t half = 4; half; half /= 2)
        for (int64_t j = 0; j < half; j++)
            sums[j] += sums[j + half];
    return sums[0];
}

// The heads of n tokens, in texts of so many tokens each: H queries, G keys, G values, of D numbers, which is even.
// Queries and keys are normalized with q_norm, k_norm (D) and eps, then rotated by cos, sin (tokens, D / 2). What is
// null is replaced by what changes nothing.
struct Heads {
    int64_t n, tokens, H, G, D;
    float eps;
    bool normalized;
    std::vector<float> ones, zeros;
    const float *q_norm, *k_norm, *cos, *sin;

    Heads(const float* q_norm, const float* k_norm, const float* cos, const float* sin,
          int64_t n, int64_t tokens, int64_t H, int64_t G, int64_t D, float eps)
        : n(n), tokens(tokens), H(H), G(G), D(D), eps(eps), normalized(q_norm),
          ones(q_norm && cos ? 0 : std::max(tokens * D / 2, D), 1), zeros(cos ? 0 : tokens * D / 2),
          q_norm(q_norm ? q_norm : ones.data()), k_norm(k_norm ? k_norm : ones.data()),
          cos(cos ? cos : ones.data()), sin(sin ? sin : zeros.data()) {}

    // What a head x (D) is multiplied by. D comes as an argument because the compiler may know it there.
    float scale(const float* x, int64_t D) const {
        return normalized ? 1 / std::sqrt(sum(D, [&](int64_t d) { return x[d] * x[d]; }) / D + eps) : 1;
    }
};

// Call the function with the width D of a head as a constant if it is a common one, which lets the compiler keep a head
// in registers; otherwise with 0.
template <typename Function>
static void with_width(int64_t D, Function function) {
    if (D == 16)
        function(std::integral_constant<int64_t, 16>());
    else if (D == 32)
        function(std::integral_constant<int64_t, 32>());
    else if (D == 64)
        function(std::integral_constant<int64_t, 64>());
    else
        function(std::integral_constant<int64_t, 0>());
}

// y (D) = scale weight x, of which the pairs (y[i], y[i + D/2]) are rotated by an angle.
static inline void split_head(const float* __restrict x, float scale, const float* __restrict weight,
                              const float* __restrict cos, const float* __restrict sin, float* __restrict y,
                              int64_t D) {
    const int64_t half = D / 2;
    #pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float u = x[i] * scale * weight[i], v = x[half + i] * scale * weight[half + i];
        y[i] = u * cos[i] - v * sin[i];
        y[half + i] = u * sin[i] + v * cos[i];
    }
}

// From the gradient dy of y (D) to that of x; what the head adds to the gradient of the weight goes to dweight.
static inline void split_head_backward(const float* __restrict x, float scale, bool normalized,
                                       const float* __restrict weight, const float* __restrict cos,
                                       const float* __restrict sin, const float* __restrict dy, float* __restrict dx,
                                       float* __restrict dweight, int64_t D) {
    const int64_t half = D / 2;
    const float product = sum(half, [&](int64_t i) {
        const float du = dy[i] * cos[i] + dy[half + i] * sin[i], dv = dy[half + i] * cos[i] - dy[i] * sin[i];
        return du * weight[i] * x[i] + dv * weight[half + i] * x[half + i];
    });
    const float along = normalized ? product * scale * scale * scale / D : 0;     // a longer x only changes the scale
    #pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float du = dy[i] * cos[i] + dy[half + i] * sin[i], dv = dy[half + i] * cos[i] - dy[i] * sin[i];
        dweight[i] += du * x[i] * scale;
        dweight[half + i] += dv * x[half + i] * scale;
        dx[i] = du * weight[i] * scale - x[i] * along;
        dx[half + i] = dv * weight[half + i] * scale - x[half + i] * along;
    }
}

// heads (n, H + 2 G, D) -> q (n, H, D), k and v (n, G, D).
template <int64_t WIDTH, typename T>
static void split(const Heads& s, const T* heads, float* q, float* k, float* v) {
    const int64_t H = s.H, G = s.G, D = WIDTH ? WIDTH : s.D;
    #pragma omp parallel if (s.n * H * D > PARALLEL)
    {
        std::vector<float> x((H + G) * D);
        #pragma omp for
        for (int64_t i = 0; i < s.n; i++) {
            const T* row = heads + i * (H + 2 * G) * D;
            const int64_t angle = i % s.tokens * (D / 2);
            widen_row(row, x.data(), (H + G) * D);
            for (int64_t h = 0; h < H + G; h++) {
                const float* head = x.data() + h * D;
                split_head(head, s.scale(head, D), h < H ? s.q_norm : s.k_norm, s.cos + angle, s.sin + angle,
                           h < H ? q + (i * H + h) * D : k + (i * G + h - H) * D, D);
            }
            widen_row(row + (H + G) * D, v + i * G * D, G * D);
        }
    }
}

// From the gradients dq, dk, dv to that of heads; dq_norm and dk_norm (parts, D) are to be summed.
template <int64_t WIDTH, typename T>
static void split_backward(const Heads& s, const T* heads, const float* dq, const float* dk, const float* dv,
                           T* dheads, float* dq_norm, float* dk_norm, int64_t parts) {
    const int64_t H = s.H, G = s.G, D = WIDTH ? WIDTH : s.D;
    #pragma omp parallel for if (s.n * H * D > PARALLEL)
    for (int64_t p = 0; p < parts; p++) {
        std::vector<float> x((H + G) * D), dx((H + G) * D);
        for (int64_t i = s.n * p / parts; i < s.n * (p + 1) / parts; i++) {
            const T* row = heads + i * (H + 2 * G) * D;
            T* drow = dheads + i * (H + 2 * G) * D;
            const int64_t angle = i % s.tokens * (D / 2);
            widen_row(row, x.data(), (H + G) * D);
            for (int64_t h = 0; h < H + G; h++) {
                const float* head = x.data() + h * D;
                split_head_backward(head, s.scale(head, D), s.normalized, h < H ? s.q_norm : s.k_norm,
                                    s.cos + angle, s.sin + angle,
                                    h < H ? dq + (i * H + h) * D : dk + (i * G + h - H) * D, dx.data() + h * D,
                                    (h < H ? dq_norm : dk_norm) + p * D, D);
            }
            narrow_row(dx.data(), drow, (H + G) * D);
            narrow_row(dv + i * G * D, drow + (H + G) * D, G * D);
        }
    }
}

extern "C" void split_heads(const void* heads, const float* q_norm, const float* k_norm, const float* cos,
                            const float* sin, float* q, float* k, float* v, int64_t bits,
                            int64_t n, int64_t tokens, int64_t H, int64_t G, int64_t D, float eps) {
    const Heads s(q_norm, k_norm, cos, sin, n, tokens, H, G, D, eps);
    with_type(bits, [&](auto number) {
        typedef decltype(number) T;
        with_width(D, [&](auto width) { split<width>(s, (const T*)heads, q, k, v); });
    });
}

extern "C" void split_heads_backward(const void* heads, const float* q_norm, const float* k_norm, const float* cos,
                                     const float* sin, const float* dq, const float* dk, const float* dv,
                                     void* dheads, float* dq_norm, float* dk_norm, int64_t bits, int64_t parts,
                                     int64_t n, int64_t tokens, int64_t H, int64_t G, int64_t D, float eps) {
    const Heads s(q_norm, k_norm, cos, sin, n, tokens, H, G, D, eps);
    with_type(bits, [&](auto number) {
        typedef decltype(number) T;
        with_width(D, [&](auto width) {
            split_backward<width>(s, (const T*)heads, dq, dk, dv, (T*)dheads, dq_norm, dk_norm, parts);
        });
    });
}
