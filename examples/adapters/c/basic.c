/* Functions of one layer: each output y, then the gradient of each input for the cotangent d_y. */

#include "example.h"

#include <math.h>

/* How many rows a tensor has, its last axis being one. */
static size_t rows_of(const Tensor *tensor, size_t *width) {
    if (tensor->rank == 0) refuse("expected at least one axis of", tensor->name);
    *width = tensor->shape[tensor->rank - 1];
    return *width ? tensor->count / *width : 0;
}

/* y = x Wᵀ + b;  dx = dy W,  dW = dyᵀ x,  db = Σ dy. */
void linear(Case *c) {
    const Tensor *weight = input(c, "weight", 2), *bias = input(c, "bias", 1), *x = input_or_null(c, "x");
    size_t out = weight->shape[0], in = weight->shape[1], width, shape[LARGEST_RANK];
    if (!x) refuse("expected the input", "x");
    size_t rows = rows_of(x, &width);
    if (width != in) refuse("expected weight (O, I) for the last axis I of", "x");
    expect(bias, 1, &out);
    for (size_t i = 0; i < x->rank; i++) shape[i] = i + 1 < x->rank ? x->shape[i] : out;
    const Tensor *d_y = input(c, "d_y", x->rank);
    expect(d_y, x->rank, shape);
    double *y = result(c, "y", x->rank, shape), *d_x = result_like(c, "d_x", x);
    double *d_weight = result_like(c, "d_weight", weight), *d_bias = result_like(c, "d_bias", bias);
    for (size_t row = 0; row < rows; row++)
        for (size_t o = 0; o < out; o++) {
            double sum = 0, d = d_y->values[row * out + o];
            for (size_t i = 0; i < in; i++) {
                sum += x->values[row * in + i] * weight->values[o * in + i];
                d_x[row * in + i] += d * weight->values[o * in + i];
                d_weight[o * in + i] += d * x->values[row * in + i];
            }
            y[row * out + o] = sum + bias->values[o];
            d_bias[o] += d;
        }
}

/* y = g x̂ + b, x̂ = (x - mean) / √(variance + ε);  dx = (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂)) / deviation, dx̂ = g dy. */
static void layer_norm_row(const double *x, const double *gain, const double *bias, const double *dy, size_t width,
                           double epsilon, double *normalized, double *y, double *dx) {
    double mean = 0, variance = 0, d_mean = 0, projection = 0;
    for (size_t i = 0; i < width; i++) mean += x[i] / (double)width;
    for (size_t i = 0; i < width; i++) variance += (x[i] - mean) * (x[i] - mean) / (double)width;
    double deviation = sqrt(variance + epsilon);
    for (size_t i = 0; i < width; i++) {
        normalized[i] = (x[i] - mean) / deviation;
        y[i] = gain[i] * normalized[i] + bias[i];
        d_mean += gain[i] * dy[i] / (double)width;
        projection += gain[i] * dy[i] * normalized[i] / (double)width;
    }
    for (size_t i = 0; i < width; i++) dx[i] = (gain[i] * dy[i] - d_mean - normalized[i] * projection) / deviation;
}

void layer_norm(Case *c) {
    const Tensor *x = input_or_null(c, "x"), *gain = input(c, "gain", 1), *bias = input(c, "bias", 1);
    size_t width;
    if (!x) refuse("expected the input", "x");
    size_t rows = rows_of(x, &width);
    const Tensor *d_y = input(c, "d_y", x->rank);
    expect(gain, 1, &width), expect(bias, 1, &width), expect(d_y, x->rank, x->shape);
    double *y = result_like(c, "y", x), *d_x = result_like(c, "d_x", x), *normalized = allocate(width, sizeof *normalized);
    double *d_gain = result_like(c, "d_gain", gain), *d_bias = result_like(c, "d_bias", bias);
    double epsilon = setting(c, "epsilon");
    for (size_t at = 0; at < rows * width; at += width) {
        layer_norm_row(x->values + at, gain->values, bias->values, d_y->values + at, width, epsilon, normalized, y + at,
                       d_x + at);
        for (size_t i = 0; i < width; i++) {
            d_gain[i] += d_y->values[at + i] * normalized[i];
            d_bias[i] += d_y->values[at + i];
        }
    }
}

static double largest_of(const double *logits, size_t width) {
    double largest = -INFINITY;
    for (size_t i = 0; i < width; i++) largest = fmax(largest, logits[i]);
    return largest;
}

/* a = exp(s - largest) / Σ exp(s - largest), stable for any finite s; the logarithm of the sum is returned. */
static double softmax_row(const double *logits, size_t width, double *a) {
    double largest = largest_of(logits, width), sum = 0;
    for (size_t i = 0; i < width; i++) sum += a[i] = exp(logits[i] - largest);
    for (size_t i = 0; i < width; i++) a[i] /= sum;
    return log(sum);
}

/* ds_j = a_j (da_j - Σ_i a_i da_i). */
void softmax(Case *c) {
    const Tensor *logits = input_or_null(c, "logits");
    size_t width;
    if (!logits) refuse("expected the input", "logits");
    size_t rows = rows_of(logits, &width);
    const Tensor *d_attention = input(c, "d_attention", logits->rank);
    expect(d_attention, logits->rank, logits->shape);
    double *attention = result_like(c, "attention", logits), *d_logits = result_like(c, "d_logits", logits);
    for (size_t at = 0; at < rows * width; at += width) {
        const double *a = attention + at, *da = d_attention->values + at;
        double mean = 0;
        softmax_row(logits->values + at, width, attention + at);
        for (size_t i = 0; i < width; i++) mean += a[i] * da[i];
        for (size_t i = 0; i < width; i++) d_logits[at + i] = a[i] * (da[i] - mean);
    }
}

/* loss = log Σ exp(s - largest) - (s_target - largest);  ds = (p - [is the target]) d_loss. */
void softmax_loss(Case *c) {
    const Tensor *logits = input_or_null(c, "logits");
    size_t width;
    if (!logits) refuse("expected the input", "logits");
    size_t rows = rows_of(logits, &width);
    const Tensor *targets = input(c, "targets", logits->rank - 1), *d_loss = input(c, "d_loss", logits->rank - 1);
    expect(targets, logits->rank - 1, logits->shape), expect(d_loss, logits->rank - 1, logits->shape);
    double *loss = result_like(c, "loss", targets), *d_logits = result_like(c, "d_logits", logits);
    for (size_t row = 0; row < rows; row++) {
        const double *s = logits->values + row * width, word = targets->values[row];
        if (!(word >= 0 && word < (double)width)) refuse("expected words of the row in", "targets");
        double *d = d_logits + row * width;
        size_t target = (size_t)word;
        loss[row] = softmax_row(s, width, d) - (s[target] - largest_of(s, width));
        d[target] -= 1;
        for (size_t i = 0; i < width; i++) d[i] *= d_loss->values[row];
    }
}

double span_weight(double rho, size_t x, size_t size, double ramp, double *slope) {
    double fraction = (ramp + (double)size * rho - (double)x) / ramp;
    *slope = fraction >= 0 && fraction <= 1 ? (double)size / ramp : 0;
    return fmin(fmax(fraction, 0), 1);
}

/* The size of a span, or of anything that settings name. */
static size_t whole(const Case *c, const char *name) {
    double value = setting(c, name);
    if (!(value >= 1 && value <= LARGEST_FILE) || value != floor(value)) refuse("expected a whole number for", name);
    return (size_t)value;
}

void span_mask(Case *c) {
    const Tensor *rho = input(c, "rho", 1), *d_mask = input(c, "d_mask", 2);
    size_t shape[] = {rho->shape[0], whole(c, "size")};
    expect(d_mask, 2, shape);
    double *mask = result(c, "mask", 2, shape), *d_rho = result_like(c, "d_rho", rho), slope;
    for (size_t i = 0; i < d_mask->count; i++) {
        size_t head = i / shape[1];
        mask[i] = span_weight(rho->values[head], i % shape[1], shape[1], setting(c, "ramp"), &slope);
        d_rho[head] += d_mask->values[i] * slope;
    }
}

/* λ S mean(ρ). */
void span_penalty(Case *c) {
    const Tensor *rho = input(c, "rho", 1), *d_penalty = input(c, "d_penalty", 0);
    double *penalty = result_like(c, "penalty", d_penalty), *d_rho = result_like(c, "d_rho", rho);
    double each = setting(c, "weight") * setting(c, "size") / (double)rho->count;
    for (size_t head = 0; head < rho->count; head++) {
        *penalty += each * rho->values[head];
        d_rho[head] = each * d_penalty->values[0];
    }
}
