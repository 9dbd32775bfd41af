// What the kernels of THREADS threads a block have alike: the sum, and the largest, of a value that each thread has.

#define THREADS 256
#define WARPS (THREADS / 32)
#define ALL 0xffffffffu
#define LOWEST ((REAL)__int_as_float(0xff800000))  // minus infinity

__device__ REAL sum_of_block(REAL value, REAL* shared) {
    for (int offset = 16; offset; offset >>= 1) value += __shfl_xor_sync(ALL, value, offset);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    REAL total = 0;
    for (int warp = 0; warp < WARPS; warp++) total += shared[warp];
    __syncthreads();
    return total;
}

__device__ REAL largest_of_block(REAL value, REAL* shared) {
    for (int offset = 16; offset; offset >>= 1) value = max(value, __shfl_xor_sync(ALL, value, offset));
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    REAL largest = shared[0];
    for (int warp = 1; warp < WARPS; warp++) largest = max(largest, shared[warp]);
    __syncthreads();
    return largest;
}
