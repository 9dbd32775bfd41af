// One update of the flat parameter vector p by its gradient g, in two launches.
//
//   squares:  n_i = √Σ g² of tensor i, n = √Σ n_i²; factor_i of the clipping; whether loss and n are finite
//   step:     plain SGD p ← p - r g · SGD v ← m v + g, p ← p - r v · Adagrad G ← G + g², p ← p - r g / (√G + 1e-10)
//             Adam m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², p ← p - r (m / (1 - β₁ᵘ)) / (√v / √(1 - β₂ᵘ) + 1e-8)
//
// An update that is not finite is written down in `failed` (update, loss, norm); from then on `step` changes nothing.
// now, where it is given, holds what every update has anew: its number u, the rate r, 1 - β₁ᵘ, √(1 - β₂ᵘ).
// The vector is cut into chunks, each within one tensor: starts (chunks + 1), tensors (chunks), firsts (tensors + 1) in chunks.

#include "block.cu"

extern "C" __global__ __launch_bounds__(THREADS) void squares(
    const REAL* g, const long long* starts, const int* firsts, long long tensors, double clip, long long each,
    const REAL* loss, double update, REAL* partial, REAL* factors, REAL* norm, double* failed, unsigned* done,
    const double* now) {
    __shared__ REAL shared[WARPS];
    __shared__ bool last;
    REAL sum = 0;
    for (long long i = starts[blockIdx.x] + threadIdx.x; i < starts[blockIdx.x + 1]; i += THREADS) sum += g[i] * g[i];
    sum = sum_of_block(sum, shared);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    REAL total = 0;  // the last block adds up what all have written, in a fixed order
    for (long long tensor = threadIdx.x; tensor < tensors; tensor += THREADS) {
        REAL of_tensor = 0;
        for (int chunk = firsts[tensor]; chunk < firsts[tensor + 1]; chunk++) of_tensor += ((volatile REAL*)partial)[chunk];
        total += of_tensor;
        REAL length = sqrt(of_tensor);
        factors[tensor] = each && clip > 0 && length > (REAL)clip ? (REAL)clip / (length + (REAL)1e-10) : (REAL)1;
    }
    total = sqrt(sum_of_block(total, shared));
    if (!each && clip > 0) {
        REAL factor = min((REAL)1, (REAL)clip / (total + (REAL)1e-6));
        for (long long tensor = threadIdx.x; tensor < tensors; tensor += THREADS) factors[tensor] = factor;
    }
    if (threadIdx.x) return;
    *norm = total;
    if (failed[0] == 0 && !(isfinite(*loss) && isfinite(total))) {
        failed[1] = *loss;
        failed[2] = total;
        failed[0] = now ? now[0] : update;
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void step(
    REAL* p, const REAL* g, REAL* first, REAL* second, const long long* starts, const int* tensors,
    const unsigned char* spans, const REAL* factors, const double* failed, long long kind, long long scale_step, double rate,
    double a, double b, double a_correction, double b_correction, const double* now) {
    if (failed[0] != 0) return;
    if (now) rate = now[1], a_correction = now[2], b_correction = now[3];
    int tensor = tensors[blockIdx.x];
    REAL factor = factors[tensor];
    bool span = spans[tensor];
    for (long long i = starts[blockIdx.x] + threadIdx.x; i < starts[blockIdx.x + 1]; i += THREADS) {
        REAL slope = scale_step ? g[i] : g[i] * factor, change = slope;
        if (kind == 1) {
            change = first[i] = first[i] * (REAL)a + slope;
        } else if (kind == 2) {
            REAL sum = first[i] + slope * slope;
            first[i] = sum;
            change = slope / (sqrt(sum) + (REAL)1e-10);
        } else if (kind == 3) {
            REAL mean = first[i] * (REAL)a + slope * (REAL)(1 - a);
            REAL square = second[i] * (REAL)b + slope * slope * (REAL)(1 - b);
            first[i] = mean;
            second[i] = square;
            change = mean / (sqrt(square) / (REAL)b_correction + (REAL)1e-8) / (REAL)a_correction;
        }
        if (scale_step) change *= factor;
        REAL value = p[i] - change * (REAL)rate;
        p[i] = span ? min(max(value, (REAL)0), (REAL)1) : value;
    }
}
