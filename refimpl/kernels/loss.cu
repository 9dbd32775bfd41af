// Softmax and the negative log-likelihood of one target, a row to a block: loss = log Σ_j e^(s_j) - s_target.
//
//   log p_j = s_j - log Σ;  ds_j = (p_j - [j is the target]) dloss

#include "block.cu"

extern "C" __global__ __launch_bounds__(THREADS) void loss_forward(
    const REAL* scores, const long long* targets, REAL* loss, REAL* log_p, long long words) {
    __shared__ REAL shared[WARPS];
    const REAL* row = scores + blockIdx.x * words;
    REAL most = row[0], sum = 0;
    for (int j = threadIdx.x; j < words; j += THREADS) most = max(most, row[j]);
    most = largest_of_block(most, shared);
    for (int j = threadIdx.x; j < words; j += THREADS) sum += exp(row[j] - most);
    sum = log(sum_of_block(sum, shared));
    for (int j = threadIdx.x; j < words; j += THREADS) log_p[blockIdx.x * words + j] = row[j] - most - sum;
    if (threadIdx.x == 0) loss[blockIdx.x] = sum - (row[targets[blockIdx.x]] - most);
}

extern "C" __global__ __launch_bounds__(THREADS) void loss_backward(
    const REAL* log_p, const long long* targets, const REAL* d_loss, REAL* d_scores, long long count, long long words) {
    long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    long long row = i / words;
    REAL share = exp(log_p[i]);
    d_scores[i] = (i % words == targets[row] ? share - 1 : share) * d_loss[row];
}
