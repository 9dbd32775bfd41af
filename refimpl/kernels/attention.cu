// All-attention, Sukhbaatar et al. (arXiv 1907.01470), section 4, for a tile of queries beside the window that they see.
//
//   s = content + position (context slots), memory (persistent slots);  Z = Σ (w + ε) e^(s - shift);  a = w e^(s - shift) / Z
//   r = Σ a da;  ds = (e / Z) (w da - (w + ε) r);  dw = (e / Z) (da - r);  dρ = Σ dw S / R where the ramp is
//
// One block a row (head, text, query). block (heads, texts, rows, width + slots) holds the products of queries and keys: row
// r's position x, nearest first, is column r + size - 1 - x. at_distance (heads, texts, rows, size), nearest first, holds
// those with the position vectors, or is 0. What lies beside the band becomes 0; so do the rows of queries that don't exist.

#define KEEP_FUNCTIONS_ONLY
#include "keep.cu"
#include "block.cu"

struct Tile {  // in the order in which device/attention.py packs them
    int heads, texts, rows, width, slots, size;            // of the buffers
    int first_head, first_text, all_heads, all_texts;      // where they are cut from
    int first_query, queries, span, ramp, missing, trims;  // columns before `missing` don't exist
    int words, memory_words, first_row, least;             // of dropout's streams; 0 words = no stream
    double epsilon, rate;
};

// Which elements of one dropout's mask a row keeps: of an array, of a stream, or all.
struct Kept {
    const bool* mask;
    bool drawn;
    unsigned least;
    unsigned long long key[2];
    long long start;  // the row's first element

    // Bits of elements 8 group … 8 group + 7 of the whole mask, of which this row has start … start + count - 1.
    __device__ unsigned bits(long long group, int count) const {
        unsigned found = 0;
        if (drawn) {
            unsigned long long x[4];
            philox(group, key, x);
            for (int i = 0; i < 8; i++) found |= (unsigned)((unsigned)(x[i / 2] >> (i % 2 * 32)) >= least) << i;
        } else if (mask) {
            for (int i = 0; i < 8; i++) {
                long long element = 8 * group + i - start;
                if (element >= 0 && element < count) found |= (unsigned)mask[8 * group + i] << i;
            }
        } else {
            found = 255;
        }
        return found;
    }
};

struct Row {
    const Tile& tile;
    int head, text, query, row, r;  // in the model; in the buffers, and in its tile
    bool exists;
    REAL rho;
    int limit;  // positions that count at all where ε > 0

    __device__ Row(const Tile& t, const REAL* spans) : tile(t) {
        row = blockIdx.x;
        r = row % t.rows;
        text = t.first_text + row / t.rows % t.texts;
        head = t.first_head + row / (t.rows * t.texts);
        query = t.first_query + r;
        exists = query < t.queries;
        rho = spans ? spans[head] : (REAL)0;
        limit = t.span;
        if (spans && t.trims) {
            REAL most = 0;
            for (int h = 0; h < t.all_heads; h++) most = max(most, floor((REAL)t.ramp + (REAL)t.span * spans[h]) + 1);
            limit = t.span - (t.span - min((int)most, t.span)) / t.trims * t.trims;
        }
    }

    __device__ Kept of_stream(Words words, int count, const bool* mask, int length, const double* now) const {
        long long in_text = ((long long)head * tile.queries + query) * length;
        Kept found{mask, count > 0, (unsigned)tile.least, {0, 0}, in_text};
        if (count > 0) {
            set_update(words, count, now);
            words.at[count - 1] = (unsigned)(tile.first_row + text);
            key_of(words, count, found.key);
        } else if (mask) {
            found.mask = mask + (long long)text * tile.all_heads * tile.queries * length;
        }
        return found;
    }
};

// A slot's logit, weight w, and what counts in Z: w + ε, or 0 where there is no such slot.
struct Slot {
    REAL logit, weight, counted, share;
    bool on_ramp;
};

__device__ Slot context_slot(const Row& row, const REAL* block, const REAL* at_distance, bool spans, int x) {
    const Tile& t = row.tile;
    int column = row.r + t.size - 1 - x;
    Slot slot{block[column] + (at_distance ? at_distance[x] : (REAL)0), 1, 0, 0, false};
    bool exists = column >= t.missing;
    if (spans) {
        REAL fraction = ((REAL)t.ramp + (REAL)t.span * row.rho - (REAL)x) / (REAL)t.ramp;
        slot.on_ramp = exists && fraction >= 0 && fraction <= 1;
        slot.weight = fraction >= 0 && fraction <= 1 ? fraction : (REAL)(fraction > 1);
    }
    if (!exists) slot.weight = 0;
    slot.counted = exists && x < row.limit ? slot.weight + (REAL)t.epsilon : (REAL)0;
    return slot;
}

__device__ Slot memory_slot(const Row& row, const REAL* block, int n) {
    return Slot{block[row.tile.width + n], 1, 1 + (REAL)row.tile.epsilon, 0, false};
}

// Calls f(element, kept) for each of a row's elements; a warp draws the bits of 256 of them at a time.
template <class F>
__device__ void for_each(int count, const Kept& kept, F f) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int before = kept.start % 8;
    long long first = kept.start / 8;
    for (int chunk = warp; chunk * 256 < before + count; chunk += WARPS) {
        unsigned bits = kept.bits(first + chunk * 32 + lane, count);
#pragma unroll 1
        for (int step = 0; step < 8; step++) {
            unsigned of_group = __shfl_sync(ALL, bits, step * 4 + lane / 8);
            int element = chunk * 256 + step * 32 + lane - before;
            if (element >= 0 && element < count) f(element, of_group >> lane % 8 & 1);
        }
    }
}

__device__ void clear_beside_band(const Row& row, REAL* block) {
    const Tile& t = row.tile;
    for (int column = threadIdx.x; column < t.width; column += THREADS)
        if (column < row.r || column >= row.r + t.size) block[column] = 0;
}

__device__ void clear(REAL* from, int count) {
    for (int i = threadIdx.x; i < count; i += THREADS) from[i] = 0;
}

// The place of a row's shift and total in arrays (all heads, all texts, rows) of this tile's queries.
__device__ long long place_of(const Row& row) {
    return ((long long)row.head * row.tile.all_texts + row.text) * row.tile.rows + row.r;
}

extern "C" __global__ __launch_bounds__(THREADS, 3) void weigh(
    Tile t, REAL* blocks, const REAL* at_distances, const REAL* spans, Words words, Words memory_words, const bool* keep,
    const bool* keep_memory, const double* now, REAL* shifts, REAL* totals) {
    __shared__ REAL shared[WARPS];
    Row row(t, spans);
    REAL* block = blocks + (long long)row.row * (t.width + t.slots);
    const REAL* at_distance = at_distances ? at_distances + (long long)row.row * t.size : nullptr;
    if (!row.exists) {
        clear(block, t.width + t.slots);
        return;
    }
    REAL largest = LOWEST;
    for (int x = threadIdx.x; x < t.size; x += THREADS) {
        Slot slot = context_slot(row, block, at_distance, spans, x);
        if (slot.counted > 0) largest = max(largest, slot.logit);
    }
    for (int n = threadIdx.x; n < t.slots; n += THREADS) largest = max(largest, memory_slot(row, block, n).logit);
    REAL shift = largest_of_block(largest, shared), total = 0;
    bool some = shift > LOWEST;
    if (!some) shift = 0;
    for (int x = threadIdx.x; x < t.size; x += THREADS) {
        Slot slot = context_slot(row, block, at_distance, spans, x);
        if (slot.counted > 0) total += slot.counted * exp(slot.logit - shift);
    }
    for (int n = threadIdx.x; n < t.slots; n += THREADS) {
        Slot slot = memory_slot(row, block, n);
        total += slot.counted * exp(slot.logit - shift);
    }
    total = sum_of_block(total, shared);
    if (!some) total = 1;
    REAL scale = 1 / (1 - (REAL)t.rate);
    // a span that was made larger than the host was told must not pass unseen: the loss will not be finite
    if (spans && t.size < t.span && floor((REAL)t.ramp + (REAL)t.span * row.rho) + 1 > t.size) scale = LOWEST - LOWEST;
    for_each(t.size, row.of_stream(words, t.words, keep, t.span, now), [&](int x, bool stays) {
        Slot slot = context_slot(row, block, at_distance, spans, x);
        bool counts = stays && slot.weight > 0;
        block[row.r + t.size - 1 - x] = counts ? slot.weight * (exp(slot.logit - shift) / total) * scale : (REAL)0;
    });
    for_each(t.slots, row.of_stream(memory_words, t.memory_words, keep_memory, t.slots, now), [&](int n, bool stays) {
        Slot slot = memory_slot(row, block, n);
        block[t.width + n] = stays ? exp(slot.logit - shift) / total * scale : (REAL)0;
    });
    clear_beside_band(row, block);
    if (threadIdx.x) return;
    shifts[place_of(row)] = shift;
    totals[place_of(row)] = total;
}

// blocks: logits, then what values were weighed with; d_blocks (the same form): d of that, then d of logits; at_distances:
// logits, then d of logits once more, nearest first; d_spans: each row's share of dρ.
extern "C" __global__ __launch_bounds__(THREADS, 2) void differentiate(
    Tile t, REAL* blocks, REAL* d_blocks, REAL* at_distances, const REAL* spans, Words words, Words memory_words,
    const bool* keep, const bool* keep_memory, const double* now, const REAL* shifts, const REAL* totals, REAL* d_spans, double most) {
    __shared__ REAL shared[WARPS];
    Row row(t, spans);
    REAL* block = blocks + (long long)row.row * (t.width + t.slots);
    REAL* d_block = d_blocks + (long long)row.row * (t.width + t.slots);
    REAL* at_distance = at_distances ? at_distances + (long long)row.row * t.size : nullptr;
    if (!row.exists) {
        clear(block, t.width + t.slots);
        clear(d_block, t.width + t.slots);
        if (at_distance) clear(at_distance, t.size);
        if (d_spans && threadIdx.x == 0) d_spans[place_of(row)] = 0;
        return;
    }
    REAL shift = shifts[place_of(row)], total = totals[place_of(row)], scale = 1 / (1 - (REAL)t.rate), mean = 0;
    int nearest = row.r + t.size - 1;
    for_each(t.size, row.of_stream(words, t.words, keep, t.span, now), [&](int x, bool stays) {
        Slot slot = context_slot(row, block, at_distance, spans, x);
        if (stays && slot.weight > 0) mean += slot.weight * (exp(slot.logit - shift) / total) * (d_block[nearest - x] * scale);
    });
    for_each(t.slots, row.of_stream(memory_words, t.memory_words, keep_memory, t.slots, now), [&](int n, bool stays) {
        if (stays) mean += exp(memory_slot(row, block, n).logit - shift) / total * (d_block[t.width + n] * scale);
    });
    mean = sum_of_block(mean, shared);
    REAL d_span = 0;
    for_each(t.size, row.of_stream(words, t.words, keep, t.span, now), [&](int x, bool stays) {
        Slot slot = context_slot(row, block, at_distance, spans, x);
        REAL share = exp(min(slot.logit - shift, (REAL)most)) / total, d = stays ? d_block[nearest - x] * scale : (REAL)0;
        bool counts = slot.counted > 0;
        REAL d_logit = counts ? share * (slot.weight * d - slot.counted * mean) : (REAL)0;
        if (slot.on_ramp) d_span += share * (d - mean);
        block[nearest - x] = stays && slot.weight > 0 ? slot.weight * share * scale : (REAL)0;
        d_block[nearest - x] = d_logit;
        if (at_distance) at_distance[x] = d_logit;
    });
    for_each(t.slots, row.of_stream(memory_words, t.memory_words, keep_memory, t.slots, now), [&](int n, bool stays) {
        Slot slot = memory_slot(row, block, n);
        REAL share = exp(slot.logit - shift) / total, d = stays ? d_block[t.width + n] * scale : (REAL)0;
        block[t.width + n] = stays ? share * scale : (REAL)0;
        d_block[t.width + n] = share * (d - slot.counted * mean);
    });
    clear_beside_band(row, block);
    clear_beside_band(row, d_block);
    if (!d_spans) return;
    d_span = sum_of_block(d_span, shared);
    if (threadIdx.x == 0) d_spans[place_of(row)] = d_span * (REAL)t.span / (REAL)t.ramp;
}

// rows (texts, length, heads, width) as tiles (tiles, heads, texts, each, width): row i of the tiles is row first + i, plus
// its head's bias, or 0 where there is none.
extern "C" __global__ __launch_bounds__(THREADS) void arrange(
    REAL* tiles, const REAL* rows, const REAL* bias, long long count, long long heads, long long texts, long long each,
    long long width, long long length, long long first) {
    long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    long long e = i % width, r = i / width % each, text = i / (width * each) % texts;
    long long head = i / (width * each * texts) % heads, tile = i / (width * each * texts * heads);
    long long row = first + tile * each + r;
    bool exists = row >= 0 && row < length;
    REAL value = exists ? rows[((text * length + row) * heads + head) * width + e] : (REAL)0;
    tiles[i] = exists && bias ? value + bias[head * width + e] : value;
}

// The way back: the sum of up to three arrays of tiles; 0 for rows that no tile has.
extern "C" __global__ __launch_bounds__(THREADS) void collect(
    REAL* rows, const REAL* one, const REAL* two, const REAL* three, long long count, long long heads, long long texts,
    long long each, long long width, long long length, long long first, long long tiles) {
    long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    long long e = i % width, head = i / width % heads, row = i / (width * heads) % length;
    long long text = i / (width * heads * length), at = row - first;
    REAL sum = 0;
    if (at >= 0 && at < tiles * each) {
        long long from = (((at / each * heads + head) * texts + text) * each + at % each) * width + e;
        sum = one[from];
        if (two) sum += two[from];
        if (three) sum += three[from];
    }
    rows[i] = sum;
}
