// d_table[v] = Σ dx over the places where v stands, added up in their order: a place to a block, and the first place of a word
// adds up all of that word's.

#define THREADS 256

extern "C" __global__ __launch_bounds__(THREADS) void add_rows(
    const long long* tokens, const REAL* dx, REAL* d_table, long long places, long long width) {
    __shared__ bool earlier;
    long long token = tokens[blockIdx.x];
    if (threadIdx.x == 0) earlier = false;
    __syncthreads();
    for (long long place = threadIdx.x; place < blockIdx.x; place += THREADS)
        if (tokens[place] == token) earlier = true;
    __syncthreads();
    if (earlier) return;
    for (long long i = threadIdx.x; i < width; i += THREADS) {
        REAL sum = 0;
        for (long long place = blockIdx.x; place < places; place++)
            if (tokens[place] == token) sum += dx[place * width + i];
        d_table[token * width + i] = sum;
    }
}
