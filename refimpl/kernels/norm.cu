// Layer normalisation, Ba, Kiros & Hinton (arXiv 1607.06450), a row to a block: y = g x̂ + b, x̂ = (x - mean) / √(variance + ε).
//
//   dx = (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂)) / deviation with dx̂ = g dy;  dg = Σ dy x̂, db = Σ dy over rows, a column to a thread

#include "block.cu"

extern "C" __global__ __launch_bounds__(THREADS) void norm_forward(
    const REAL* x, const REAL* gain, const REAL* bias, REAL* y, REAL* normalized, REAL* inverse, long long width,
    double epsilon) {
    __shared__ REAL shared[WARPS];
    long long start = blockIdx.x * width;
    REAL sum = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) sum += x[start + i];
    REAL mean = sum_of_block(sum, shared) / (REAL)width;
    sum = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) sum += (x[start + i] - mean) * (x[start + i] - mean);
    REAL scale = 1 / sqrt(sum_of_block(sum, shared) / (REAL)width + (REAL)epsilon);
    for (int i = threadIdx.x; i < width; i += THREADS) {
        REAL value = (x[start + i] - mean) * scale;
        normalized[start + i] = value;
        y[start + i] = gain[i] * value + bias[i];
    }
    if (threadIdx.x == 0) inverse[blockIdx.x] = scale;
}

extern "C" __global__ __launch_bounds__(THREADS) void norm_backward(
    const REAL* dy, const REAL* normalized, const REAL* inverse, const REAL* gain, REAL* dx, long long width) {
    __shared__ REAL shared[WARPS];
    long long start = blockIdx.x * width;
    REAL sum = 0, product = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        REAL d = gain[i] * dy[start + i];
        sum += d;
        product += d * normalized[start + i];
    }
    REAL mean = sum_of_block(sum, shared) / (REAL)width, projection = sum_of_block(product, shared) / (REAL)width;
    for (int i = threadIdx.x; i < width; i += THREADS)
        dx[start + i] = (gain[i] * dy[start + i] - mean - normalized[start + i] * projection) * inverse[blockIdx.x];
}

// One warp's width of columns to a block of 32 × 8 threads; rows are added up in a fixed order.
extern "C" __global__ __launch_bounds__(THREADS) void norm_weights(
    const REAL* dy, const REAL* normalized, REAL* d_gain, REAL* d_bias, long long rows, long long width) {
    __shared__ REAL gains[8][32], biases[8][32];
    int lane = threadIdx.x, line = threadIdx.y;
    long long column = blockIdx.x * 32ll + lane;
    REAL of_gain = 0, of_bias = 0;
    if (column < width)
        for (long long row = line; row < rows; row += 8) {
            REAL d = dy[row * width + column];
            of_gain += d * normalized[row * width + column];
            of_bias += d;
        }
    gains[line][lane] = of_gain;
    biases[line][lane] = of_bias;
    __syncthreads();
    if (line || column >= width) return;
    for (int i = 1; i < 8; i++) {
        of_gain += gains[i][lane];
        of_bias += biases[i][lane];
    }
    d_gain[column] = of_gain;
    d_bias[column] = of_bias;
}
