// Causal self-attention of whole texts, forward and backward, for training on a CPU: what attention_weights of model.py
// computes, times V, and the gradients of Q, K and V. No T x T matrix is stored; a few rows of one are computed, used
// and forgotten, and computed again for backward (FlashAttention: Dao et al. 2022). So are the random numbers of
// dropout: they depend only on a seed and on the place in that matrix.
//
// The numbers q[b, t, h, d] of a head are found at q + ((b T + t) row + h D + d): `row` numbers from token to token, so
// that Q, K and V may lie side by side. Shapes are in brackets.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "vector.h"

// A tile of a product of matrices is kept in registers, with room for the numbers that are multiplied.
static const int64_t ROWS = 6, COLUMNS = 2 * LANES;

static const int64_t BLOCK = 8 * ROWS;                    // of queries, in backward: their rows of P fit in the cache

static const float INFINITE = std::numeric_limits<float>::infinity();

// ---------------------------------------------------------------------------- products of matrices

// c = a b, or c += a b: a (ROWS, K), whose a[i, k] is at a + i a_row + k a_column; b (K, COLUMNS); c (ROWS, COLUMNS).
static void multiply_tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                          float* c, int64_t c_row, int64_t K, bool add) {
    floats left[ROWS] = {}, right[ROWS] = {};
    for (int64_t k = 0; k < K; k++) {
        const floats b_left = load(b + k * b_row), b_right = load(b + k * b_row + LANES);
        #pragma GCC unroll 8
        for (int64_t i = 0; i < ROWS; i++) {
            const float x = a[i * a_row + k * a_column];
            left[i] += x * b_left;
            right[i] += x * b_right;
        }
    }
    #pragma GCC unroll 8
    for (int64_t i = 0; i < ROWS; i++) {
        float* row = c + i * c_row;
        store(add ? load(row) + left[i] : left[i], row);
        store(add ? load(row + LANES) + right[i] : right[i], row + LANES);
    }
}

// The same for b (K, n) and c (ROWS, n), with n a multiple of COLUMNS.
static void multiply(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                     float* c, int64_t c_row, int64_t K, int64_t n, bool add = false) {
    for (int64_t j = 0; j < n; j += COLUMNS)
        multiply_tile(a, a_row, a_column, b + j, b_row, c + j, c_row, K, add);
}

static int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

// y (n, width) = scale x (n, D); the other columns of y stay as they are.
static void copy(const float* x, int64_t row, int64_t n, int64_t D, float scale, float* y, int64_t width) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < D; d++)
            y[i * width + d] = scale * x[i * row + d];
}

// y (D, width) = x (n, D), transposed: a few rows at a time, which stay in the cache until all columns are read.
static void transpose(const float* x, int64_t row, int64_t n, int64_t D, float* y, int64_t width) {
    for (int64_t start = 0; start < n; start += 16)
        for (int64_t d = 0; d < D; d++)
            for (int64_t i = start; i < std::min(start + 16, n); i++)
                y[d * width + i] = x[i * row + d];
}

// ---------------------------------------------------------------------------- one head

// e^x, and 0 for minus infinity.
static inline float weight(float x) {
    return x < -87 ? 0 : exponential(x);
}

// Turn a row of n scores, of which the first `seen` count, into e^(score - largest), in place. Returns their sum.
static float exponentials(float* row, int64_t seen, int64_t n, float* largest) {
    std::fill(row + seen, row + n, -INFINITE);
    float most = -INFINITE, sum = 0;
    #pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < n; j++)
        most = std::max(most, row[j]);
    #pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        row[j] = weight(row[j] - most);
        sum += row[j];
    }
    *largest = most;
    return sum;
}

// q, k, v (T, D) -> y (T, D) = P V, with P = softmax(Q K^T / sqrt(D) + mask); log_sum (T): P = e^(score - log_sum).
// first_row: number of the first row of this P among those of all heads, for dropout.
static void head_forward(const float* q, const float* k, const float* v, float* y, float* log_sum,
                         int64_t T, int64_t D, int64_t q_row, int64_t k_row, int64_t v_row, int64_t y_row,
                         float dropout, uint64_t seed, uint64_t first_row) {
    // Tiles reach beyond the last row and column, where zeros are.
    const int64_t T_up = round_up(T + ROWS, COLUMNS), D_up = round_up(D, COLUMNS);
    const float scale = 1 / std::sqrt(static_cast<float>(D));
    std::vector<float> k_t(D * T_up), values(T_up * D_up), p(ROWS * T_up), queries(ROWS * D), result(ROWS * D_up);
    transpose(k, k_row, T, D, k_t.data(), T_up);
    copy(v, v_row, T, D, 1, values.data(), D_up);

    for (int64_t t = 0; t < T; t += ROWS) {
        const int64_t rows = std::min(ROWS, T - t);
        const int64_t n = round_up(t + ROWS, COLUMNS);    // columns of P that some of these rows see
        copy(q + t * q_row, q_row, rows, D, scale, queries.data(), D);
        multiply(queries.data(), D, 1, k_t.data(), T_up, p.data(), T_up, D, n);

        float sum[ROWS];
        for (int64_t i = 0; i < rows; i++) {
            float largest;
            float* row = &p[i * T_up];
            sum[i] = exponentials(row, t + i + 1, n, &largest);
            log_sum[t + i] = largest + std::log(sum[i]);
            drop(row, n, dropout, seed, first_row + t + i);
        }

        multiply(p.data(), T_up, 1, values.data(), D_up, result.data(), D_up, t + rows, D_up);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t d = 0; d < D; d++)
                y[(t + i) * y_row + d] = result[i * D_up + d] / sum[i];
    }
}

// What backward needs of the keys and values of one group, which H / G heads share.
struct Group {
    int64_t T, D, T_up, D_up;
    std::vector<float> k, k_t, v_t;                       // (T_up, D_up), (D, T_up), (D, T_up)
    std::vector<float> dk, dv;                            // (T_up, D_up): sums over the heads

    Group(const float* keys, const float* values, int64_t T, int64_t D, int64_t k_row, int64_t v_row)
        : T(T), D(D), T_up(round_up(T + ROWS, COLUMNS)), D_up(round_up(D, COLUMNS)), k(T_up * D_up), k_t(D * T_up),
          v_t(D * T_up), dk(T_up * D_up), dv(T_up * D_up) {
        copy(keys, k_row, T, D, 1, k.data(), D_up);
        transpose(keys, k_row, T, D, k_t.data(), T_up);
        transpose(values, v_row, T, D, v_t.data(), T_up);
    }
};

// From the gradient dy (T, D) to dq (T, D); adds those of keys and values to the group's. y, dy, dq have the same row.
//
//     dV = P^T dY      dP = dY V^T      dS = P (dP - sum of dY Y in each row)      dQ = dS K      dK = dS^T Q
//
// With dropout, the first P is what is left of it, and the same weights are dropped from dP.
static void head_backward(Group& group, const float* q, const float* y, const float* log_sum, const float* dy,
                          float* dq, int64_t q_row, int64_t row, float dropout, uint64_t seed, uint64_t first_row) {
    const int64_t T = group.T, D = group.D, T_up = group.T_up, D_up = group.D_up;
    const float scale = 1 / std::sqrt(static_cast<float>(D));
    std::vector<float> p(BLOCK * T_up), ds(BLOCK * T_up), queries(BLOCK * D_up), grads(BLOCK * D_up);
    std::vector<float> result(ROWS * D_up);

    for (int64_t start = 0; start < T; start += BLOCK) {
        const int64_t rows = std::min(BLOCK, T - start);
        copy(q + start * q_row, q_row, rows, D, scale, queries.data(), D_up);
        copy(dy + start * row, row, rows, D, 1, grads.data(), D_up);

        for (int64_t i = 0; i < rows; i += ROWS) {
            // P and dP of a few queries, then dS.
            const int64_t n = round_up(start + i + ROWS, COLUMNS);
            multiply(&queries[i * D_up], D_up, 1, group.k_t.data(), T_up, &p[i * T_up], T_up, D, n);
            multiply(&grads[i * D_up], D_up, 1, group.v_t.data(), T_up, &ds[i * T_up], T_up, D, n);
            const int64_t last = std::min(i + ROWS, rows);
            for (int64_t r = i; r < last; r++) {
                float* p_row = &p[r * T_up];
                float* ds_row = &ds[r * T_up];
                const int64_t t = start + r;
                const float along = dot(dy + t * row, y + t * row, D);
                std::fill(p_row + t + 1, p_row + n, -INFINITE);
                std::fill(ds_row + t + 1, ds_row + n, 0.0f);

                drop(ds_row, n, dropout, seed, first_row + t);
                #pragma omp simd
                for (int64_t j = 0; j < n; j++) {
                    p_row[j] = weight(p_row[j] - log_sum[t]);
                    ds_row[j] = p_row[j] * (ds_row[j] - along);
                }
                drop(p_row, n, dropout, seed, first_row + t);
            }

            multiply(&ds[i * T_up], T_up, 1, group.k.data(), D_up, result.data(), D_up, start + last, D_up);
            for (int64_t r = i; r < last; r++)
                copy(&result[(r - i) * D_up], 0, 1, D, scale, dq + (start + r) * row, 0);
        }

        // Each key is seen by the queries from its own position on.
        for (int64_t j = 0; j < start + rows; j += ROWS) {
            const int64_t i = std::max(int64_t(0), j - start);
            multiply(&p[i * T_up + j], 1, T_up, &grads[i * D_up], D_up,
                     &group.dv[j * D_up], D_up, rows - i, D_up, true);
            multiply(&ds[i * T_up + j], 1, T_up, &queries[i * D_up], D_up,
                     &group.dk[j * D_up], D_up, rows - i, D_up, true);
        }
    }
}

// ---------------------------------------------------------------------------- all heads

// q (B, T, H, D), k and v (B, T, G, D) -> y (B, T, H, D) and, for backward, log_sum (B, H, T).
extern "C" void attention(const float* q, const float* k, const float* v, float* y, float* log_sum,
                          int64_t q_row, int64_t k_row, int64_t v_row,
                          int64_t B, int64_t T, int64_t H, int64_t G, int64_t D,
                          float dropout, uint64_t seed) {
    #pragma omp parallel for
    for (int64_t i = 0; i < B * H; i++) {
        const int64_t token = i / H * T, h = i % H, g = h / (H / G);
        head_forward(q + token * q_row + h * D, k + token * k_row + g * D, v + token * v_row + g * D,
                     y + (token * H + h) * D, log_sum + i * T, T, D, q_row, k_row, v_row, H * D, dropout, seed, i * T);
    }
}

// From the gradient dy (B, T, H, D) to dq (B, T, H, D), dk and dv (B, T, G, D).
extern "C" void attention_backward(const float* q, const float* k, const float* v, const float* y, const float* log_sum,
                                   const float* dy, float* dq, float* dk, float* dv,
                                   int64_t q_row, int64_t k_row, int64_t v_row,
                                   int64_t B, int64_t T, int64_t H, int64_t G, int64_t D,
                                   float dropout, uint64_t seed) {
    #pragma omp parallel for
    for (int64_t i = 0; i < B * G; i++) {
        const int64_t b = i / G, g = i % G, token = b * T;
        Group group(k + token * k_row + g * D, v + token * v_row + g * D, T, D, k_row, v_row);
        for (int64_t h = g * (H / G); h < (g + 1) * (H / G); h++) {
            const int64_t head = (token * H + h) * D, first_row = (b * H + h) * T;
            head_backward(group, q + token * q_row + h * D, y + head, log_sum + first_row, dy + head, dq + head,
                          q_row, H * D, dropout, seed, first_row);
        }
        for (int64_t t = 0; t < T; t++) {
            copy(&group.dk[t * group.D_up], 0, 1, D, 1, dk + ((token + t) * G + g) * D, 0);
            copy(&group.dv[t * group.D_up], 0, 1, D, 1, dv + ((token + t) * G + g) * D, 0);
        }
    }
}
