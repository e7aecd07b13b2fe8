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

// A tile of a product of matrices, ROWS x COLUMNS, is kept in registers, with room for the numbers that are multiplied.
#if defined(__AVX512F__) || defined(__aarch64__)
static const int64_t ROWS = 8;                            // of 32 registers
#else
static const int64_t ROWS = 4;                            // of 16
#endif
static const int64_t COLUMNS = 2 * LANES;

// In backward, a block of P and the same block of its gradient fit in the fastest cache. Multiples of ROWS, and KEYS
// of COLUMNS.
static const int64_t QUERIES = 32, KEYS = 64;

static const float INFINITE = std::numeric_limits<float>::infinity();
static const float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;

// ---------------------------------------------------------------------------- products of matrices

// c = a b, or c += a b: a (ROWS, K), whose a[i, k] is at a + i a_row + k a_column; b (K, V LANES); c (ROWS, V LANES).
template <int V>
static inline void multiply_tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                                 float* c, int64_t c_row, int64_t K, bool add) {
    floats sums[ROWS][V] = {};
    for (int64_t k = 0; k < K; k++) {
        floats row[V];
        #pragma GCC unroll 2
        for (int v = 0; v < V; v++)
            row[v] = load(b + k * b_row + v * LANES);
        #pragma GCC unroll 8
        for (int64_t i = 0; i < ROWS; i++)
            #pragma GCC unroll 2
            for (int v = 0; v < V; v++)
                sums[i][v] += a[i * a_row + k * a_column] * row[v];
    }
    #pragma GCC unroll 8
    for (int64_t i = 0; i < ROWS; i++)
        #pragma GCC unroll 2
        for (int v = 0; v < V; v++) {
            float* place = c + i * c_row + v * LANES;
            store(add ? load(place) + sums[i][v] : sums[i][v], place);
        }
}

// The same for b (K, n) and c (ROWS, n), with n a multiple of LANES.
static void multiply(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                     float* c, int64_t c_row, int64_t K, int64_t n, bool add = false) {
    int64_t j = 0;
    for (; j + COLUMNS <= n; j += COLUMNS)
        multiply_tile<2>(a, a_row, a_column, b + j, b_row, c + j, c_row, K, add);
    if (j < n)
        multiply_tile<1>(a, a_row, a_column, b + j, b_row, c + j, c_row, K, add);
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

// ---------------------------------------------------------------------------- rows of P

// Scores are in units of log2(e), so that P is a power of 2: 2^x for x up to 0, and 0 below -100 (Cephes, exp2f).
static inline float weight(float x) {
    const float power = std::max(x, -100.0f), n = std::rint(power), r = power - n;
    float p = 1.535336188e-4f;
    p = p * r + 1.339887440e-3f;
    p = p * r + 9.618437357e-3f;
    p = p * r + 5.550332471e-2f;
    p = p * r + 2.402264791e-1f;
    p = p * r + 6.931472028e-1f;
    p = p * r + 1;
    uint32_t bits;
    std::memcpy(&bits, &p, sizeof bits);
    bits += static_cast<uint32_t>(static_cast<int32_t>(n)) << 23;                 // times 2^n
    std::memcpy(&p, &bits, sizeof p);
    return x < -100 ? 0 : p;
}

static float largest(const float* row, int64_t n) {       // n: a multiple of LANES
    float most[LANES];
    std::copy(row, row + LANES, most);
    for (int64_t j = LANES; j < n; j += LANES)
        for (int64_t i = 0; i < LANES; i++)
            most[i] = row[j + i] > most[i] ? row[j + i] : most[i];
    return *std::max_element(most, most + LANES);
}

// Turn n scores into weights 2^(score - most), in place, and drop some of them. Returns their sum before that.
static float weights(float* row, int64_t n, float most, const Dropping dropping) {
    float sum = 0;
    if (dropping.p == 0) {
        #pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; j++)
            sum += row[j] = weight(row[j] - most);
    } else {
        #pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; j++) {
            const float x = weight(row[j] - most);
            sum += x;
            row[j] = x * dropping.factor(j);
        }
    }
    return sum;
}

// From scores and dP to P, as it is after dropout, and dS = P (dP - along), for n numbers of a row from column `first`
// on. log_sum: of the whole row of 2^score; along: the sum of dY Y.
static void gradients(float* p, float* ds, int64_t n, int64_t first, float log_sum, float along,
                      const Dropping dropping) {
    if (dropping.p == 0) {
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            p[j] = weight(p[j] - log_sum);
            ds[j] = p[j] * (ds[j] - along);
        }
    } else {
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            const float x = weight(p[j] - log_sum), factor = dropping.factor(first + j);
            p[j] = x * factor;
            ds[j] = x * (ds[j] * factor - along);
        }
    }
}

// ---------------------------------------------------------------------------- one head after the other

// Zeros follow the last token, up to T_up, and the last number of each, up to D_up.
struct Sizes {
    int64_t T, D, T_up, D_up;
    float scale;

    Sizes(int64_t T, int64_t D)
        : T(T), D(D), T_up(round_up(T, KEYS)), D_up(round_up(D, LANES)), scale(1 / std::sqrt(static_cast<float>(D))) {}
};

struct Forward : Sizes {
    std::vector<float> k_t, values, queries, p, result;   // (D, T_up), (T_up, D_up), (ROWS, D), (ROWS, T_up), ...

    Forward(int64_t T, int64_t D)
        : Sizes(T, D), k_t(D * T_up), values(T_up * D_up), queries(ROWS * D), p(ROWS * T_up), result(ROWS * D_up) {}

    // q, k, v (T, D) -> y (T, D) = P V, with P = softmax(Q K^T / sqrt(D) + mask); log_sum (T): P = 2^(score - log_sum).
    // first_row: number of the first row of this P among those of all heads, for dropout.
    void head(const float* q, const float* k, const float* v, float* y, float* log_sum,
              int64_t q_row, int64_t k_row, int64_t v_row, int64_t y_row,
              float dropout, uint64_t seed, uint64_t first_row) {
        transpose(k, k_row, T, D, k_t.data(), T_up);
        copy(v, v_row, T, D, 1, values.data(), D_up);

        for (int64_t t = 0; t < T; t += ROWS) {
            const int64_t rows = std::min(ROWS, T - t);
            const int64_t n = round_up(t + rows, LANES);  // columns of P that some of these rows see
            copy(q + t * q_row, q_row, rows, D, scale * LOG2_E, queries.data(), D);
            multiply(queries.data(), D, 1, k_t.data(), T_up, p.data(), T_up, D, n);

            float sum[ROWS];
            for (int64_t i = 0; i < rows; i++) {
                float* row = &p[i * T_up];
                std::fill(row + t + i + 1, row + n, -INFINITE);
                const float most = largest(row, n);
                sum[i] = weights(row, n, most, Dropping(dropout, seed, first_row + t + i));
                log_sum[t + i] = most + std::log2(sum[i]);
            }

            multiply(p.data(), T_up, 1, values.data(), D_up, result.data(), D_up, t + rows, D_up);
            for (int64_t i = 0; i < rows; i++)
                copy(&result[i * D_up], 0, 1, D, 1 / sum[i], y + (t + i) * y_row, 0);
        }
    }
};

struct Backward : Sizes {
    // Keys and values, which several heads may share, and the sums of these heads' gradients.
    std::vector<float> k, k_t, v_t, dk, dv;               // (T_up, D_up), (D, T_up) twice, (T_up, D_up) twice

    // Of a block of queries: P and dS for a block of keys, and what belongs to each query.
    std::vector<float> p, ds, queries, grads, result, along;
    std::vector<Dropping> dropping;

    Backward(int64_t T, int64_t D)
        : Sizes(T, D), k(T_up * D_up), k_t(D * T_up), v_t(D * T_up), dk(T_up * D_up), dv(T_up * D_up),
          p(QUERIES * KEYS), ds(QUERIES * KEYS), queries(QUERIES * D_up), grads(QUERIES * D_up),
          result(QUERIES * D_up), along(QUERIES), dropping(QUERIES) {}

    void begin(const float* keys, const float* values, int64_t k_row, int64_t v_row) {
        copy(keys, k_row, T, D, 1, k.data(), D_up);
        transpose(keys, k_row, T, D, k_t.data(), T_up);
        transpose(values, v_row, T, D, v_t.data(), T_up);
        std::fill(dk.begin(), dk.end(), 0.0f);
        std::fill(dv.begin(), dv.end(), 0.0f);
    }

    // From the gradient dy (T, D) to dq (T, D); adds those of keys and values. y, dy and dq have the same row.
    //
    //     dV = P^T dY      dP = dY V^T      dS = P (dP - sum of dY Y in each row)      dQ = dS K      dK = dS^T Q
    //
    // With dropout, the first P is what is left of it, and the same weights are dropped from dP.
    void head(const float* q, const float* y, const float* log_sum, const float* dy, float* dq,
              int64_t q_row, int64_t row, float dropout, uint64_t seed, uint64_t first_row) {
        for (int64_t start = 0; start < T; start += QUERIES) {
            const int64_t rows = std::min(QUERIES, T - start);
            copy(q + start * q_row, q_row, rows, D, scale * LOG2_E, queries.data(), D_up);
            copy(dy + start * row, row, rows, D, 1, grads.data(), D_up);
            for (int64_t i = 0; i < rows; i++) {
                along[i] = dot(dy + (start + i) * row, y + (start + i) * row, D);
                dropping[i] = Dropping(dropout, seed, first_row + start + i);
            }

            std::fill(result.begin(), result.end(), 0.0f);
            for (int64_t key = 0; key < start + rows; key += KEYS)
                block(start, rows, key, log_sum + start);
            copy(result.data(), D_up, rows, D, scale, dq + start * row, row);
        }
    }

    // What `rows` queries from `start` on and KEYS keys from `key` on have to do with each other.
    void block(int64_t start, int64_t rows, int64_t key, const float* log_sum) {
        const int64_t first = std::max(int64_t(0), key - start);                  // the first query that sees a key
        for (int64_t i = first; i < rows; i += ROWS) {
            // P and dP of a few queries, then dS, then dQ.
            const int64_t last = std::min(i + ROWS, rows);
            const int64_t n = std::min(KEYS, round_up(start + last - key, LANES));   // keys that some of them see
            float* p_rows = &p[i * KEYS];
            float* ds_rows = &ds[i * KEYS];
            multiply(&queries[i * D_up], D_up, 1, &k_t[key], T_up, p_rows, KEYS, D, n);
            multiply(&grads[i * D_up], D_up, 1, &v_t[key], T_up, ds_rows, KEYS, D, n);
            for (int64_t r = i; r < last; r++) {
                const int64_t seen = std::min(n, start + r + 1 - key);
                std::fill(&p[r * KEYS] + seen, &p[r * KEYS] + n, -INFINITE);
                gradients(&p[r * KEYS], &ds[r * KEYS], n, key, log_sum[r], along[r], dropping[r]);
            }
            multiply(ds_rows, KEYS, 1, &k[key * D_up], D_up, &result[i * D_up], D_up, n, D_up, true);
        }

        // Each key is seen by the queries from its own position on.
        for (int64_t j = 0; j < std::min(KEYS, start + rows - key); j += ROWS) {
            const int64_t i = std::max(int64_t(0), key + j - start);
            multiply(&p[i * KEYS + j], 1, KEYS, &grads[i * D_up], D_up,
                     &dv[(key + j) * D_up], D_up, rows - i, D_up, true);
            multiply(&ds[i * KEYS + j], 1, KEYS, &queries[i * D_up], D_up,
                     &dk[(key + j) * D_up], D_up, rows - i, D_up, true);
        }
    }

    // The gradients of keys and values, (T, D) each. Queries are in units of log2(e).
    void end(float* to_dk, float* to_dv, int64_t row) {
        copy(dk.data(), D_up, T, D, LN_2, to_dk, row);
        copy(dv.data(), D_up, T, D, 1, to_dv, row);
    }
};

// ---------------------------------------------------------------------------- all heads

// q (B, T, H, D), k and v (B, T, G, D) -> y (B, T, H, D) and, for backward, log_sum (B, H, T).
extern "C" void attention(const float* q, const float* k, const float* v, float* y, float* log_sum,
                          int64_t q_row, int64_t k_row, int64_t v_row,
                          int64_t B, int64_t T, int64_t H, int64_t G, int64_t D,
                          float dropout, uint64_t seed) {
    #pragma omp parallel
    {
        Forward forward(T, D);
        #pragma omp for
        for (int64_t i = 0; i < B * H; i++) {
            const int64_t token = i / H * T, h = i % H, g = h / (H / G);
            forward.head(q + token * q_row + h * D, k + token * k_row + g * D, v + token * v_row + g * D,
                         y + (token * H + h) * D, log_sum + i * T, q_row, k_row, v_row, H * D, dropout, seed, i * T);
        }
    }
}

// From the gradient dy (B, T, H, D) to dq (B, T, H, D), dk and dv (B, T, G, D).
extern "C" void attention_backward(const float* q, const float* k, const float* v, const float* y, const float* log_sum,
                                   const float* dy, float* dq, float* dk, float* dv,
                                   int64_t q_row, int64_t k_row, int64_t v_row,
                                   int64_t B, int64_t T, int64_t H, int64_t G, int64_t D,
                                   float dropout, uint64_t seed) {
    #pragma omp parallel
    {
        Backward backward(T, D);
        #pragma omp for
        for (int64_t i = 0; i < B * G; i++) {
            const int64_t b = i / G, g = i % G, token = b * T;
            backward.begin(k + token * k_row + g * D, v + token * v_row + g * D, k_row, v_row);
            for (int64_t h = g * (H / G); h < (g + 1) * (H / G); h++) {
                const int64_t head = (token * H + h) * D, first_row = (b * H + h) * T;
                backward.head(q + token * q_row + h * D, y + head, log_sum + first_row, dy + head, dq + head,
                              q_row, H * D, dropout, seed, first_row);
            }
            backward.end(dk + (token * G + g) * D, dv + (token * G + g) * D, G * D);
        }
    }
}
