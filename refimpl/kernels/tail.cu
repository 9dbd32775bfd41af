// A tail of the adaptive softmax, Grave et al. (arXiv 1609.04309), section 4, for the rows whose target is one of its words.
//
//   s_j = x · w_j + b_j;  loss = log Z - s_target, Z = Σ_j e^(s_j);  ds_j = (e^(s_j) / Z - [j is the target]) dloss
//   dx = Σ_j ds_j w_j;  dw_j = Σ ds_j x and db_j = Σ ds_j over rows
//
// x (all rows, width), table (words, width); rows: the numbers of the tail's rows, in order, *count of them, which the host
// does not know. TILE rows beside TILE words are computed at once and never written: backward makes the logits again. What
// sums over words is cut into pieces, of each tile of rows as many as there are blocks for, added up in their order.

#include "block.cu"
#define TILE 64
#define STEP 8
#define EACH 4  // rows, and words, of a thread: 16 apart

// How `count` rows beside `words` words are shared out to `blocks`: piece p of tile t is block p tiles + t.
struct Cut {
    int count, tiles, pieces;
    long long of_words;  // tiles

    __device__ Cut(int n, long long words, long long blocks) : count(n) {
        tiles = (n + TILE - 1) / TILE;
        of_words = (words + TILE - 1) / TILE;
        pieces = tiles ? (int)min(blocks / tiles, of_words) : 0;
    }
};

struct Tail {
    const REAL* x;
    const REAL* table;
    const REAL* bias;
    const long long* targets;
    const int* rows;
    long long width, words, first;
};

struct Tiles {
    REAL left[STEP][TILE + 1], right[STEP][TILE + 1];
};

__device__ int line_of(int i) { return threadIdx.x / 16 + 16 * i; }

__device__ int column_of(int j) { return threadIdx.x % 16 + 16 * j; }

__device__ void multiply(const Tiles& tiles, REAL sums[EACH][EACH]) {
#pragma unroll
    for (int k = 0; k < STEP; k++)
#pragma unroll
        for (int i = 0; i < EACH; i++)
#pragma unroll
            for (int j = 0; j < EACH; j++) sums[i][j] += tiles.left[k][line_of(i)] * tiles.right[k][column_of(j)];
}

// s of the TILE rows from rows[row] on and the words from `word` on; 0 + b, or 0, for what lies beyond them.
__device__ void logits(const Tail& t, int row, int count, long long word, Tiles& tiles, REAL s[EACH][EACH]) {
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++) s[i][j] = 0;
    for (long long start = 0; start < t.width; start += STEP) {
        for (int element = threadIdx.x; element < TILE * STEP; element += THREADS) {
            int line = element / STEP, k = element % STEP;
            bool inside = start + k < t.width;
            tiles.left[k][line] = inside && row + line < count ? t.x[t.rows[row + line] * t.width + start + k] : (REAL)0;
            tiles.right[k][line] =
                inside && word + line < t.words ? t.table[(word + line) * t.width + start + k] : (REAL)0;
        }
        __syncthreads();
        multiply(tiles, s);
        __syncthreads();
    }
    for (int j = 0; j < EACH; j++)
        if (word + column_of(j) < t.words)
            for (int i = 0; i < EACH; i++) s[i][j] += t.bias[word + column_of(j)];
}

// ds of the same, into d; 0 beyond.
__device__ void slopes(const Tail& t, int row, int count, long long word, const REAL* shifts, const REAL* totals,
                       const REAL* d_losses, Tiles& tiles, REAL d[TILE][TILE + 1]) {
    REAL s[EACH][EACH];
    logits(t, row, count, word, tiles, s);
    for (int i = 0; i < EACH; i++) {
        bool exists = row + line_of(i) < count;
        int number = exists ? t.rows[row + line_of(i)] : 0;
        long long target = exists ? t.targets[number] - t.first : -1;
        REAL shift = exists ? shifts[number] : (REAL)0, total = exists ? totals[number] : (REAL)1;
        REAL d_loss = exists ? d_losses[number] : (REAL)0;
        for (int j = 0; j < EACH; j++) {
            long long at = word + column_of(j);
            bool inside = exists && at < t.words;
            d[line_of(i)][column_of(j)] = inside ? (exp(s[i][j] - shift) / total - (REAL)(at == target)) * d_loss : (REAL)0;
        }
    }
    __syncthreads();
}

// most, sums (blocks, TILE): each piece's largest logit and Σ e^(s - largest) of each row; scores (all rows): s_target.
extern "C" __global__ __launch_bounds__(THREADS, 2) void score(
    const REAL* x, const REAL* table, const REAL* bias, const long long* targets, const int* rows, const int* count,
    long long width, long long words, long long first, REAL* most, REAL* sums, REAL* scores) {
    __shared__ Tiles tiles;
    Tail t{x, table, bias, targets, rows, width, words, first};
    Cut cut(*count, words, gridDim.x);
    int piece = cut.tiles ? blockIdx.x / cut.tiles : 0, row = cut.tiles ? blockIdx.x % cut.tiles * TILE : 0;
    if (piece >= cut.pieces) return;
    REAL largest[EACH], total[EACH];
    for (int i = 0; i < EACH; i++) largest[i] = LOWEST, total[i] = 0;
    for (long long tile = cut.of_words * piece / cut.pieces; tile < cut.of_words * (piece + 1) / cut.pieces; tile++) {
        REAL s[EACH][EACH];
        logits(t, row, cut.count, tile * TILE, tiles, s);
        for (int i = 0; i < EACH; i++) {
            int line = row + line_of(i);
            REAL before = largest[i];
            for (int j = 0; j < EACH; j++) {
                long long word = tile * TILE + column_of(j);
                if (word >= words) continue;
                largest[i] = max(largest[i], s[i][j]);
                if (line < cut.count && targets[rows[line]] - first == word) scores[rows[line]] = s[i][j];
            }
            if (before > LOWEST) total[i] *= exp(before - largest[i]);
            for (int j = 0; j < EACH; j++)
                if (tile * TILE + column_of(j) < words) total[i] += exp(s[i][j] - largest[i]);
        }
    }
    for (int i = 0; i < EACH; i++) {
        REAL of_row = largest[i];
        for (int offset = 8; offset; offset >>= 1) of_row = max(of_row, __shfl_xor_sync(ALL, of_row, offset));
        REAL sum = largest[i] > LOWEST ? total[i] * exp(largest[i] - of_row) : total[i];
        for (int offset = 8; offset; offset >>= 1) sum += __shfl_xor_sync(ALL, sum, offset);
        if (threadIdx.x % 16) continue;
        most[blockIdx.x * TILE + line_of(i)] = of_row;
        sums[blockIdx.x * TILE + line_of(i)] = sum;
    }
}

// A row to a thread: shifts and totals (all rows) with Z = total e^shift; losses += log Z - s_target.
extern "C" __global__ __launch_bounds__(THREADS) void add_loss(
    const int* rows, const int* count, long long words, long long blocks, const REAL* most, const REAL* sums,
    const REAL* scores, REAL* shifts, REAL* totals, REAL* losses) {
    Cut cut(*count, words, blocks);
    int line = blockIdx.x * THREADS + threadIdx.x;
    if (line >= cut.count) return;
    REAL shift = LOWEST, total = 0;
    for (int piece = 0; piece < cut.pieces; piece++)
        shift = max(shift, most[(piece * cut.tiles + line / TILE) * TILE + line % TILE]);
    for (int piece = 0; piece < cut.pieces; piece++) {
        int at = (piece * cut.tiles + line / TILE) * TILE + line % TILE;
        total += sums[at] * exp(most[at] - shift);
    }
    int row = rows[line];
    shifts[row] = shift;
    totals[row] = total;
    losses[row] += log(total) - (scores[row] - shift);
}

// parts (blocks, TILE, width): each piece's share of dx.
extern "C" __global__ __launch_bounds__(THREADS, 2) void differentiate_rows(
    const REAL* x, const REAL* table, const REAL* bias, const long long* targets, const int* rows, const int* count,
    long long width, long long words, long long first, const REAL* shifts, const REAL* totals, const REAL* d_losses,
    REAL* parts) {
    __shared__ Tiles tiles;
    __shared__ REAL d[TILE][TILE + 1];
    Tail t{x, table, bias, targets, rows, width, words, first};
    Cut cut(*count, words, gridDim.x);
    int piece = cut.tiles ? blockIdx.x / cut.tiles : 0, row = cut.tiles ? blockIdx.x % cut.tiles * TILE : 0;
    if (piece >= cut.pieces) return;
    long long begin = cut.of_words * piece / cut.pieces, end = cut.of_words * (piece + 1) / cut.pieces;
    REAL* part = parts + (long long)blockIdx.x * TILE * width;
    for (long long tile = begin; tile < end; tile++) {
        slopes(t, row, cut.count, tile * TILE, shifts, totals, d_losses, tiles, d);
        for (long long start = 0; start < width; start += TILE) {
            REAL sum[EACH][EACH] = {};
            for (int step = 0; step < TILE; step += STEP) {
                for (int element = threadIdx.x; element < TILE * STEP; element += THREADS) {
                    int k = element / TILE, column = element % TILE;
                    long long word = tile * TILE + step + k;
                    tiles.left[k][column] = d[column][step + k];
                    tiles.right[k][column] =
                        word < words && start + column < width ? table[word * width + start + column] : (REAL)0;
                }
                __syncthreads();
                multiply(tiles, sum);
                __syncthreads();
            }
            for (int i = 0; i < EACH; i++)
                for (int j = 0; j < EACH; j++) {
                    long long at = line_of(i) * width + start + column_of(j);
                    if (start + column_of(j) < width) part[at] = tile > begin ? part[at] + sum[i][j] : sum[i][j];
                }
        }
    }
}

// d_x (all rows, width): the sum of the pieces, 0 for rows of other words; at (all rows): where a row stands among the
// tail's, or -1; size = all rows · width.
extern "C" __global__ __launch_bounds__(THREADS) void collect(
    const int* at, const int* count, long long words, long long width, long long blocks, const REAL* parts, REAL* d_x,
    long long size) {
    long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= size) return;
    Cut cut(*count, words, blocks);
    int line = at[i / width];
    REAL sum = 0;
    for (int piece = 0; piece < (line < 0 ? 0 : cut.pieces); piece++)
        sum += parts[((long long)(piece * cut.tiles + line / TILE) * TILE + line % TILE) * width + i % width];
    d_x[i] = sum;
}

// d_table and d_bias += the rows' shares, a tile of words to a block, rows in their order.
extern "C" __global__ __launch_bounds__(THREADS, 2) void differentiate_words(
    const REAL* x, const REAL* table, const REAL* bias, const long long* targets, const int* rows, const int* count,
    long long width, long long words, long long first, const REAL* shifts, const REAL* totals, const REAL* d_losses,
    REAL* d_table, REAL* d_bias) {
    __shared__ Tiles tiles;
    __shared__ REAL d[TILE][TILE + 1];
    Tail t{x, table, bias, targets, rows, width, words, first};
    long long word = (long long)blockIdx.x * TILE;
    for (int row = 0; row < *count; row += TILE) {
        slopes(t, row, *count, word, shifts, totals, d_losses, tiles, d);
        if (threadIdx.x < TILE && word + threadIdx.x < words) {
            REAL sum = 0;
            for (int line = 0; line < TILE; line++) sum += d[line][threadIdx.x];
            d_bias[word + threadIdx.x] += sum;
        }
        for (long long start = 0; start < width; start += TILE) {
            REAL sum[EACH][EACH] = {};
            for (int step = 0; step < TILE; step += STEP) {
                for (int element = threadIdx.x; element < TILE * STEP; element += THREADS) {
                    int k = element / TILE, column = element % TILE, line = row + step + k;
                    tiles.left[k][column] = d[step + k][column];
                    tiles.right[k][column] =
                        line < *count && start + column < width ? x[rows[line] * width + start + column] : (REAL)0;
                }
                __syncthreads();
                multiply(tiles, sum);
                __syncthreads();
            }
            for (int i = 0; i < EACH; i++)
                for (int j = 0; j < EACH; j++)
                    if (word + line_of(i) < words && start + column_of(j) < width)
                        d_table[(word + line_of(i)) * width + start + column_of(j)] += sum[i][j];
        }
    }
}
