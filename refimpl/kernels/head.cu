// The head of the adaptive softmax, Grave et al. (arXiv 1609.04309), section 4: the shortlist's words, then a column a tail.
//
//   s_j = logits_j + b_j;  loss = log Σ_j e^(s_j) - s_target;  ds_j = (e^(s_j) / Σ - [j is the target]) dloss;  db = Σ ds

#include "block.cu"

// A row to a block, the first of them row `first` of `rows`: logits (words + tails) become ds, unless d_losses is 0. at
// (tails, rows) is -1 where the target is not one of the tail's. A target without a column makes the loss NaN.
extern "C" __global__ __launch_bounds__(THREADS) void score(
    REAL* logits, const REAL* bias, const REAL* cluster_bias, const long long* targets, const int* at, const REAL* d_losses,
    REAL* losses, long long words, long long tails, long long reversed, long long rows, long long first) {
    __shared__ REAL shared[WARPS], of_target;
    long long row = first + blockIdx.x, target = targets[row], columns = words + tails;
    if (target >= words) target = -1;
    for (long long tail = 0; tail < tails; tail++)
        if (at[tail * rows + row] >= 0) target = words + (reversed ? tails - 1 - tail : tail);
    logits += blockIdx.x * columns;
    if (threadIdx.x == 0) of_target = LOWEST - LOWEST;
    __syncthreads();
    REAL most = LOWEST, sum = 0;
    for (long long j = threadIdx.x; j < columns; j += THREADS) {
        REAL value = logits[j] + (j < words ? bias[j] : cluster_bias[j - words]);
        if (j == target) of_target = value;
        logits[j] = value;
        most = max(most, value);
    }
    most = largest_of_block(most, shared);
    for (long long j = threadIdx.x; j < columns; j += THREADS) {
        REAL value = exp(logits[j] - most);
        sum += value;
        logits[j] = value;
    }
    sum = sum_of_block(sum, shared);
    if (threadIdx.x == 0) losses[row] = log(sum) - (of_target - most);
    if (!d_losses) return;
    REAL d_loss = d_losses[row];
    for (long long j = threadIdx.x; j < columns; j += THREADS)
        logits[j] = (logits[j] / sum - (REAL)(j == target)) * d_loss;
}

// d_bias and d_cluster_bias += Σ over n rows of d (n, words + tails): 32 columns to a block of 32 × 8 threads, rows in a
// fixed order.
extern "C" __global__ __launch_bounds__(THREADS) void add_columns(
    const REAL* d, REAL* d_bias, REAL* d_cluster_bias, long long n, long long words, long long tails) {
    __shared__ REAL sums[8][32];
    int lane = threadIdx.x, line = threadIdx.y;
    long long column = blockIdx.x * 32ll + lane, columns = words + tails;
    REAL sum = 0;
    if (column < columns)
        for (long long row = line; row < n; row += 8) sum += d[row * columns + column];
    sums[line][lane] = sum;
    __syncthreads();
    if (line || column >= columns) return;
    for (int i = 1; i < 8; i++) sum += sums[i][lane];
    REAL* place = column < words ? d_bias + column : d_cluster_bias + (column - words);
    *place += sum;
}
