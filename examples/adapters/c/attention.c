/* All-attention, forward and backward, one query of one head at a time:

   s_x = ((q + u) · k_c + (q + v) · p_x) / √E    the x-th nearest position c, of weight w = m_z(x)
   s_n = q · √E μ_n / √E                         a persistent vector, of weight 1
   a   = w e^s / Σ (w + ε) e^s,   y = Σ a · value, values √N ν_n of persistent vectors

   ds = (e^s / Z) (w da - (w + ε) r),  dw = (e^s / Z) (da - r),  r = Σ a da */

#include "example.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

/* An argument and its gradient, both NULL if it is absent. */
typedef struct {
    const double *at;
    double *d;
} Pair;

typedef struct {
    size_t batch, block, heads, width, length, size, slots;
    bool attend_self, positions_by_head;
    double ramp, epsilon, kept_scale;
    Pair queries, keys, values, positions, memory_keys, memory_values, rho, content_bias, position_bias;
    const double *keep, *keep_memory, *d_y;
    double *y;
} Attention;

/* One slot of a query: where its position lies, or that it is absent; the logit and the factors of the equations. */
typedef struct {
    bool present;
    size_t row; /* of keys and values, or of persistent vectors */
    double logit, weight, slope, counted, share, attention, kept, d_logit;
} Slot;

static Pair pair(Case *c, const char *name, size_t rank, const size_t *shape) {
    const Tensor *tensor = input_or_null(c, name);
    char gradient[32] = "d_";
    expect(tensor, rank, shape);
    strcat(gradient, name); /* names are those below */
    return (Pair){tensor ? tensor->values : NULL, result_like(c, gradient, tensor)};
}

static const double *values_of(const Case *c, const char *name, const size_t *shape) {
    const Tensor *tensor = input_or_null(c, name);
    expect(tensor, 4, shape);
    return tensor ? tensor->values : NULL;
}

static Attention arguments(Case *c) {
    const Tensor *queries = input(c, "queries", 4), *keys = input(c, "keys", 4);
    const Tensor *positions = input_or_null(c, "positions"), *memory = input_or_null(c, "memory_keys");
    const size_t *q = queries->shape;
    double size = setting(c, "span");
    if (!(size >= 1 && size <= LARGEST_FILE)) refuse("expected a whole number for", "span");
    Attention a = {.batch = q[0], .block = q[1], .heads = q[2], .width = q[3], .length = keys->shape[1],
                   .size = (size_t)size, .slots = memory && memory->rank == 3 ? memory->shape[1] : 0,
                   .attend_self = setting(c, "attend_self") != 0, .positions_by_head = positions && positions->rank == 3,
                   .ramp = setting(c, "ramp"), .epsilon = setting(c, "normalizer_epsilon"),
                   .kept_scale = 1 / (1 - setting_or(c, "dropout", 0))};
    const size_t in_keys[] = {a.batch, a.length, a.heads, a.width}, in_memory[] = {a.heads, a.slots, a.width};
    const size_t in_table[] = {a.heads, a.size, a.width}, in_bias[] = {a.heads, a.width};
    const size_t in_keep[] = {a.batch, a.heads, a.block, a.size}, in_keep_memory[] = {a.batch, a.heads, a.block, a.slots};
    a.queries = pair(c, "queries", 4, q);
    a.keys = pair(c, "keys", 4, in_keys);
    a.values = pair(c, "values", 4, in_keys);
    a.positions = a.positions_by_head ? pair(c, "positions", 3, in_table) : pair(c, "positions", 2, in_table + 1);
    a.memory_keys = pair(c, "memory_keys", 3, in_memory);
    a.memory_values = pair(c, "memory_values", 3, in_memory);
    a.rho = pair(c, "rho", 1, in_bias);
    a.content_bias = pair(c, "content_bias", 2, in_bias);
    a.position_bias = pair(c, "position_bias", 2, in_bias);
    a.keep = values_of(c, "keep", in_keep);
    a.keep_memory = values_of(c, "keep_memory", in_keep_memory);
    a.d_y = values_of(c, "d_y", q);
    if (!a.values.at || !a.d_y) refuse("expected the inputs", "values and d_y");
    if (!a.memory_keys.at != !a.memory_values.at || (a.keep && a.slots && !a.keep_memory))
        refuse("expected both or neither of", "memory_keys and memory_values, keep and keep_memory");
    if (a.length < a.block || (a.length == a.block && !a.slots && !a.attend_self))
        refuse("expected a past, persistent vectors or attend_self, so that the first query sees something, in", "keys");
    a.y = result_like(c, "y", queries);
    return a;
}

/* Where the vectors of a slot begin: of this head, or of all. */
static size_t in_table(const Attention *a, size_t head, size_t x) {
    return ((a->positions_by_head ? head * a->size : 0) + x) * a->width;
}
static size_t in_memory(const Attention *a, size_t head, size_t n) { return (head * a->slots + n) * a->width; }
static size_t in_rows(const Attention *a, size_t text, size_t row, size_t head) {
    return ((text * a->length + row) * a->heads + head) * a->width;
}

static double plus(Pair bias, size_t at) { return bias.at ? bias.at[at] : 0; }

static void score(const Attention *a, size_t text, size_t token, size_t head, Slot *slots) {
    const double *q = a->queries.at + ((text * a->block + token) * a->heads + head) * a->width;
    double root = sqrt((double)a->width);
    for (size_t x = 0; x < a->size + a->slots; x++) {
        size_t after = a->length - a->block + token + a->attend_self; /* how many positions the query may see */
        bool memory = x >= a->size;
        Slot *s = &slots[x];
        *s = (Slot){.present = memory || x < after, .weight = 1};
        if (!s->present) continue;
        s->row = memory ? in_memory(a, head, x - a->size) : in_rows(a, text, after - 1 - x, head);
        for (size_t e = 0; e < a->width; e++) {
            if (memory) {
                s->logit += q[e] * a->memory_keys.at[s->row + e];
                continue;
            }
            size_t in_bias = head * a->width + e;
            s->logit += (q[e] + plus(a->content_bias, in_bias)) * a->keys.at[s->row + e] / root;
            if (!a->positions.at) continue;
            s->logit += (q[e] + plus(a->position_bias, in_bias)) * a->positions.at[in_table(a, head, x) + e] / root;
        }
        if (!memory && a->rho.at) s->weight = span_weight(a->rho.at[head], x, a->size, a->ramp, &s->slope);
        s->counted = s->weight + a->epsilon;
    }
}

/* A slot of weight 0 may lie above the largest that counts; its exponential, needed for dw, is held finite. */
static void normalize(size_t count, Slot *slots) {
    double largest = -INFINITY, total = 0;
    for (size_t j = 0; j < count; j++)
        if (slots[j].counted > 0) largest = fmax(largest, slots[j].logit);
    if (largest == -INFINITY) return; /* nothing counts: all weights stay 0 */
    for (size_t j = 0; j < count; j++)
        if (slots[j].present) total += slots[j].counted * (slots[j].share = exp(fmin(slots[j].logit - largest, 500)));
    for (size_t j = 0; j < count; j++) {
        slots[j].share /= total;
        slots[j].attention = slots[j].weight * slots[j].share;
    }
}

/* y, and the gradients of everything but the logits' factors; d_logit of each slot. */
static void mix(const Attention *a, size_t text, size_t token, size_t head, Slot *slots) {
    size_t out = ((text * a->block + token) * a->heads + head) * a->width;
    size_t row = (text * a->heads + head) * a->block + token; /* of the keep-masks */
    double mean = 0, root = sqrt((double)a->slots);
    for (size_t x = 0; x < a->size + a->slots; x++) {
        bool memory = x >= a->size;
        Slot *s = &slots[x];
        Pair values = memory ? a->memory_values : a->values;
        double scale = memory ? root : 1, d_kept = 0, keep = 1;
        if (a->keep)
            keep = a->kept_scale * (memory ? a->keep_memory[row * a->slots + x - a->size] : a->keep[row * a->size + x]);
        if (!s->present) continue;
        s->kept = s->attention * keep;
        for (size_t e = 0; e < a->width; e++) {
            a->y[out + e] += s->kept * scale * values.at[s->row + e];
            d_kept += a->d_y[out + e] * scale * values.at[s->row + e];
            values.d[s->row + e] += s->kept * scale * a->d_y[out + e];
        }
        s->d_logit = d_kept * keep; /* da, until the mean is known */
        mean += s->attention * s->d_logit;
    }
    for (size_t j = 0; j < a->size + a->slots; j++) {
        Slot *s = &slots[j];
        if (a->rho.at) a->rho.d[head] += s->share * (s->d_logit - mean) * s->slope;
        s->d_logit = s->share * (s->weight * s->d_logit - s->counted * mean);
    }
}

static void add(Pair bias, size_t at, double d) {
    if (bias.at) bias.d[at] += d;
}

static void score_backward(const Attention *a, size_t text, size_t token, size_t head, const Slot *slots) {
    size_t from = ((text * a->block + token) * a->heads + head) * a->width;
    const double *q = a->queries.at + from, root = sqrt((double)a->width);
    for (size_t x = 0; x < a->size + a->slots; x++) {
        const Slot *s = &slots[x];
        for (size_t e = 0; s->present && e < a->width; e++) {
            size_t in_bias = head * a->width + e, at = in_table(a, head, x) + e;
            if (x >= a->size) {
                a->queries.d[from + e] += s->d_logit * a->memory_keys.at[s->row + e];
                a->memory_keys.d[s->row + e] += s->d_logit * q[e];
                continue;
            }
            double d = s->d_logit / root, of_content = d * a->keys.at[s->row + e];
            a->queries.d[from + e] += of_content;
            add(a->content_bias, in_bias, of_content);
            a->keys.d[s->row + e] += d * (q[e] + plus(a->content_bias, in_bias));
            if (!a->positions.at) continue;
            double of_position = d * a->positions.at[at];
            a->queries.d[from + e] += of_position;
            add(a->position_bias, in_bias, of_position);
            a->positions.d[at] += d * (q[e] + plus(a->position_bias, in_bias));
        }
    }
}

void all_attention(Case *c) {
    Attention a = arguments(c);
    Slot *slots = allocate(a.size + a.slots, sizeof *slots);
    for (size_t text = 0; text < a.batch; text++)
        for (size_t token = 0; token < a.block; token++)
            for (size_t head = 0; head < a.heads; head++) {
                score(&a, text, token, head, slots);
                normalize(a.size + a.slots, slots);
                mix(&a, text, token, head, slots);
                score_backward(&a, text, token, head, slots);
            }
}
