// y = x W^T + b in float32, for a few rows x: one more token of each of a few texts. PyTorch's products of matrices are
// made for many rows.

#include <algorithm>
#include <cstdint>

#include "vector.h"

// W lies in memory as it is read: for 16 numbers of y at a time, what x[0] is multiplied by, then x[1], and so on.
static const int64_t COLUMNS = 16, VECTORS = COLUMNS / LANES;
static const int64_t ROWS = 6;                            // of x at a time: as many sums as there are registers

// For fewer products than this, starting the other cores costs more time than they save.
static const int64_t PARALLEL = 100000;

// y (N, COLUMNS) = x (N, n_in) w, where w (n_in, COLUMNS).
template <int N>
static void multiply(const float* x, const float* w, float* y, int64_t n_in) {
    floats sum[N][VECTORS] = {};
    for (int64_t k = 0; k < n_in; k++) {
        floats row[VECTORS];
        #pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; v++)
            row[v] = load(w + k * COLUMNS + v * LANES);
        #pragma GCC unroll 8
        for (int64_t i = 0; i < N; i++)
            #pragma GCC unroll 4
            for (int64_t v = 0; v < VECTORS; v++)
                sum[i][v] += x[i * n_in + k] * row[v];
    }
    #pragma GCC unroll 8
    for (int64_t i = 0; i < N; i++)
        #pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; v++)
            store(sum[i][v], y + i * COLUMNS + v * LANES);
}

// x (n, n_in), w (n_out / 16, n_in, 16) with n_out rounded up, bias (n_out) or null -> y (n, n_out).
extern "C" void linear(const float* x, const float* w, const float* bias, float* y,
                       int64_t n, int64_t n_in, int64_t n_out) {
    static void (*const functions[])(const float*, const float*, float*, int64_t) = {
        multiply<1>, multiply<2>, multiply<3>, multiply<4>, multiply<5>, multiply<6>};
    const int64_t groups = (n + ROWS - 1) / ROWS;         // of about the same size

    #pragma omp parallel for if (n * n_in * n_out > PARALLEL)
    for (int64_t j = 0; j < n_out; j += COLUMNS) {
        const int64_t width = std::min(COLUMNS, n_out - j);
        for (int64_t g = 0; g < groups; g++) {
            const int64_t first = n * g / groups, size = n * (g + 1) / groups - first;
            float sum[ROWS * COLUMNS];
            functions[size - 1](x + first * n_in, w + j * n_in, sum, n_in);
            for (int64_t i = 0; i < size; i++)
                for (int64_t c = 0; c < width; c++)
                    y[(first + i) * n_out + j + c] = sum[i * COLUMNS + c] + (bias ? bias[j + c] : 0);
        }
    }
}
