// Words in clusters: first … end - 1 are one cluster's. Which rows it has, in their order; its embeddings, 0 for other words.

#define THREADS 256

// One block: rows (count) of the numbers of places that hold a word of the cluster; at (places): where a place stands in
// rows, or -1.
extern "C" __global__ __launch_bounds__(THREADS) void list_rows(
    const long long* words, long long places, long long first, long long end, int* rows, int* at, int* count) {
    __shared__ int found[THREADS];
    long long each = (places + THREADS - 1) / THREADS;
    long long low = min(places, threadIdx.x * each), high = min(places, low + each);
    int own = 0, before = 0;
    for (long long i = low; i < high; i++) own += words[i] >= first && words[i] < end;
    found[threadIdx.x] = own;
    __syncthreads();
    for (int thread = 0; thread < threadIdx.x; thread++) before += found[thread];
    for (long long i = low; i < high; i++) {
        bool inside = words[i] >= first && words[i] < end;
        at[i] = inside ? before : -1;
        if (inside) rows[before++] = (int)i;
    }
    if (threadIdx.x == THREADS - 1) *count = before;
}

// rows (places, width) = table[word - first], table (words, width); size = places width.
extern "C" __global__ __launch_bounds__(THREADS) void embed(
    const long long* tokens, const REAL* table, REAL* rows, long long size, long long first, long long words,
    long long width) {
    long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= size) return;
    long long word = tokens[i / width] - first;
    rows[i] = word >= 0 && word < words ? table[word * width + i % width] : (REAL)0;
}
