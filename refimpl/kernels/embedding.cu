// d_table[v] = Σ dx over the places where v stands, added up in their order: a place to a block, and the first place of a word
// adds up all of that word's. Words below `first`, or `words` above it, are another table's.

#include "block.cu"

extern "C" __global__ __launch_bounds__(THREADS) void add_rows(
    const long long* tokens, const REAL* dx, REAL* d_table, long long places, long long width, long long first,
    long long words) {
    __shared__ unsigned here[WARPS];
    __shared__ bool earlier;
    long long token = tokens[blockIdx.x], word = token - first;
    if (word < 0 || word >= words) return;
    if (threadIdx.x == 0) earlier = false;
    __syncthreads();
    for (long long place = threadIdx.x; place < blockIdx.x; place += THREADS)
        if (tokens[place] == token) earlier = true;
    __syncthreads();
    if (earlier) return;
    for (long long column = threadIdx.x; column - threadIdx.x < width; column += THREADS) {
        REAL sum = 0;
        for (long long start = blockIdx.x / THREADS * THREADS; start < places; start += THREADS) {
            long long place = start + threadIdx.x;
            unsigned found = __ballot_sync(ALL, place < places && tokens[place] == token);
            if (threadIdx.x % 32 == 0) here[threadIdx.x / 32] = found;
            __syncthreads();
            for (int warp = 0; warp < WARPS; warp++)
                for (unsigned left = here[warp]; left; left &= left - 1)
                    if (column < width) sum += dx[(start + warp * 32 + __ffs(left) - 1) * width + column];
            __syncthreads();
        }
        if (column < width) d_table[word * width + column] = sum;
    }
}
