// Keep-masks of dropout: element i of row b is 1 where number i of the row's stream of Philox is `least` or more.
//
// The bits are NumPy's: Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with the key that
// SeedSequence (O'Neill, "Developing a seed_seq alternative", 2015) makes of the words, the row's number last.

struct Words {
    unsigned at[8];
};

// now[0], where it is given, is the update's number, the word before the row's.
__device__ void set_update(Words& words, int count, const double* now) {
    if (now) words.at[count - 2] = (unsigned)now[0];
}

__device__ unsigned hashed(unsigned value, unsigned& constant) {
    value ^= constant;
    constant *= 0x931e8875u;
    value *= constant;
    return value ^ value >> 16;
}

__device__ unsigned mixed(unsigned x, unsigned y) {
    unsigned result = 0xca01f9ddu * x - 0x4973f715u * y;
    return result ^ result >> 16;
}

__device__ void key_of(const Words& words, int count, unsigned long long key[2]) {
    unsigned pool[4], constant = 0x43b0d7e5u, out[4];
    for (int i = 0; i < 4; i++) pool[i] = hashed(i < count ? words.at[i] : 0, constant);
    for (int from = 0; from < 4; from++)
        for (int to = 0; to < 4; to++)
            if (from != to) pool[to] = mixed(pool[to], hashed(pool[from], constant));
    for (int from = 4; from < count; from++)
        for (int to = 0; to < 4; to++) pool[to] = mixed(pool[to], hashed(words.at[from], constant));
    constant = 0x8b51f9ddu;
    for (int i = 0; i < 4; i++) {
        unsigned value = pool[i] ^ constant;
        constant *= 0x58f38dedu;
        value *= constant;
        out[i] = value ^ value >> 16;
    }
    key[0] = out[0] | (unsigned long long)out[1] << 32;
    key[1] = out[2] | (unsigned long long)out[3] << 32;
}

// Numbers 8 group … 8 group + 7, two to a word.
__device__ void philox(unsigned long long group, const unsigned long long key[2], unsigned long long x[4]) {
    unsigned long long k0 = key[0], k1 = key[1];
    x[0] = group + 1, x[1] = x[2] = x[3] = 0;
#pragma unroll 1  // more at once would take registers from those who call it
    for (int round = 0; round < 10; round++) {
        unsigned long long high0 = __umul64hi(0xD2E7470EE14C6C93ull, x[0]), low0 = 0xD2E7470EE14C6C93ull * x[0];
        unsigned long long high1 = __umul64hi(0xCA5A826395121157ull, x[2]), low1 = 0xCA5A826395121157ull * x[2];
        x[0] = high1 ^ x[1] ^ k0, x[1] = low1, x[2] = high0 ^ x[3] ^ k1, x[3] = low0;
        k0 += 0x9E3779B97F4A7C15ull, k1 += 0xBB67AE8584CAA73Bull;
    }
}

#ifndef KEEP_FUNCTIONS_ONLY
extern "C" __global__ __launch_bounds__(256) void keep(
    bool* out, long long length, Words words, long long count, long long first_row, long long least, const double* now) {
    set_update(words, (int)count, now);
    words.at[count - 1] = (unsigned)(first_row + blockIdx.y);
    unsigned long long key[2], x[4];
    key_of(words, (int)count, key);
    long long group = blockIdx.x * 256ll + threadIdx.x;
    if (group * 8 >= length) return;
    philox(group, key, x);
    out += blockIdx.y * length;
    for (int i = 0; i < 8 && group * 8 + i < length; i++)
        out[group * 8 + i] = (unsigned)(x[i / 2] >> (i % 2 * 32)) >= (unsigned)least;
}
#endif
