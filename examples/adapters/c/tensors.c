/* Files, tensors, and the case that they make up. The format of a .safetensors file:

   8 bytes      n, little-endian
   n bytes      JSON: {"name": {"dtype": "F64", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
   the rest     the tensors' values, row-major, little-endian, without gaps; offsets count from here */

#include "example.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines"
#endif

typedef struct Block {
    struct Block *next;
    max_align_t content[];
} Block;

static Block *blocks;

void *allocate(size_t count, size_t size) {
    if (count > 8 * (size_t)LARGEST_FILE / size) refuse("expected a small case", "one that is too large");
    Block *block = calloc(1, sizeof *block + count * size);
    if (!block) refuse("expected memory", "none");
    block->next = blocks;
    blocks = block;
    return block->content;
}

void release(void) {
    while (blocks) {
        Block *next = blocks->next;
        free(blocks);
        blocks = next;
    }
}

static FILE *open_in(const char *folder, const char *name, const char *mode) {
    char *path = allocate(strlen(folder) + strlen(name) + 2, 1);
    sprintf(path, "%s/%s", folder, name);
    FILE *file = fopen(path, mode);
    if (!file) refuse("expected a file that can be opened", path);
    return file;
}

char *read_file(const char *folder, const char *name, size_t *size) {
    static char buffer[LARGEST_FILE + 1];
    FILE *file = open_in(folder, name, "rb");
    *size = fread(buffer, 1, sizeof buffer, file);
    bool whole = feof(file) && !ferror(file);
    fclose(file);
    if (!whole) refuse("expected a readable file of at most 16 MiB", name);
    char *data = allocate(*size + 1, 1);
    memcpy(data, buffer, *size);
    return data;
}

static const struct Type {
    const char *name;
    size_t size;
} TYPES[] = {{"F64", 8}, {"F32", 4}, {"I64", 8}, {"BOOL", 1}};

static const struct Type *type_named(const Json *name) {
    for (size_t i = 0; name && name->string && i < sizeof TYPES / sizeof *TYPES; i++)
        if (strcmp(TYPES[i].name, name->string) == 0) return &TYPES[i];
    not_implemented("types of numbers beside F64, F32, I64 and BOOL");
}

static double value_at(const char *data, const char *type) {
    double wide;
    float single;
    int64_t whole;
    switch (type[0] == 'F' ? type[1] : type[0]) {
        case '6': memcpy(&wide, data, sizeof wide); return wide;
        case '3': memcpy(&single, data, sizeof single); return single;
        case 'I': memcpy(&whole, data, sizeof whole); return (double)whole;
        default: return *data != 0;
    }
}

static Tensor *read_tensor(const Json *entry, const char *data, size_t size) {
    const struct Type *type = type_named(json_member(entry, "dtype"));
    const Json *shape = json_member(entry, "shape"), *offsets = json_member(entry, "data_offsets");
    if (!shape || shape->kind != JSON_ARRAY || !offsets || offsets->kind != JSON_ARRAY || !offsets->first)
        refuse("expected dtype, shape and data_offsets of", entry->key);
    Tensor *tensor = allocate(1, sizeof *tensor);
    *tensor = (Tensor){.name = entry->key, .count = 1, .real = type->name[0] == 'F'};
    size_t room = LARGEST_FILE; /* also bounds the loops over a tensor in which one axis is 0 */
    for (const Json *axis = shape->first; axis; axis = axis->next) {
        if (tensor->rank == LARGEST_RANK) refuse("expected at most 8 axes of", entry->key);
        size_t length = tensor->shape[tensor->rank++] = json_size(axis);
        if (length > room) refuse("expected fewer elements of", entry->key);
        room /= length ? length : 1;
        tensor->count *= length;
    }
    size_t begin = json_size(offsets->first), end = json_size(offsets->first->next);
    if (begin > end || end > size || end - begin != tensor->count * type->size)
        refuse("expected other offsets of", entry->key);
    tensor->values = allocate(tensor->count, sizeof *tensor->values);
    for (size_t i = 0; i < tensor->count; i++) tensor->values[i] = value_at(data + begin + i * type->size, type->name);
    return tensor;
}

static Tensor *read_tensors(const char *folder) {
    size_t size;
    uint64_t length;
    char *data = read_file(folder, "inputs.safetensors", &size);
    if (size < sizeof length) refuse("expected a safetensors file", "one of less than 8 bytes");
    memcpy(&length, data, sizeof length);
    data += sizeof length, size -= sizeof length;
    if (length > size) refuse("expected a safetensors file", "one with a longer header than it has bytes");
    char *header = allocate(length + 1, 1);
    memcpy(header, data, length);
    Tensor *tensors = NULL;
    const Json *parsed = json_parse(header);
    if (parsed->kind != JSON_OBJECT) refuse("expected a safetensors file", "a header that is no object");
    for (const Json *entry = parsed->first; entry; entry = entry->next) {
        if (strcmp(entry->key, "__metadata__") == 0) continue;
        Tensor *tensor = read_tensor(entry, data + length, size - length);
        tensor->next = tensors;
        tensors = tensor;
    }
    return tensors;
}

Case *read_case(const char *folder) {
    size_t size;
    const Json *told = json_parse(read_file(folder, "case.json", &size));
    const Json *function = json_member(told, "function"), *dtype = json_member(told, "dtype");
    if (!function || !function->string || !dtype || !dtype->string) refuse("expected function and dtype in", "case.json");
    if (strcmp(dtype->string, "float64") != 0 && strcmp(dtype->string, "float32") != 0) not_implemented(dtype->string);
    Case *c = allocate(1, sizeof *c);
    *c = (Case){function->string, strcmp(dtype->string, "float32") == 0, json_member(told, "settings"), NULL, NULL};
    c->inputs = read_tensors(folder);
    return c;
}

double setting_or(const Case *c, const char *name, double absent) {
    const Json *value = json_member(c->settings, name);
    if (!value) return absent;
    if (value->kind != JSON_NUMBER && value->kind != JSON_BOOLEAN) refuse("expected a number for", name);
    return value->number;
}

double setting(const Case *c, const char *name) {
    double value = setting_or(c, name, NAN);
    if (isnan(value)) refuse("expected the setting", name);
    return value;
}

const Tensor *input_or_null(const Case *c, const char *name) {
    for (const Tensor *tensor = c->inputs; tensor; tensor = tensor->next)
        if (strcmp(tensor->name, name) == 0) return tensor;
    return NULL;
}

const Tensor *input(const Case *c, const char *name, size_t rank) {
    const Tensor *tensor = input_or_null(c, name);
    if (!tensor || tensor->rank != rank) refuse("expected the input, with its number of axes,", name);
    return tensor;
}

void expect(const Tensor *tensor, size_t rank, const size_t *shape) {
    if (tensor && (tensor->rank != rank || memcmp(tensor->shape, shape, rank * sizeof *shape) != 0))
        refuse("expected another shape of", tensor->name);
}

double *result(Case *c, const char *name, size_t rank, const size_t *shape) {
    Tensor *tensor = allocate(1, sizeof *tensor);
    *tensor = (Tensor){.name = allocate(strlen(name) + 1, 1), .rank = rank, .count = 1, .next = c->results};
    strcpy(tensor->name, name);
    for (size_t i = 0; i < rank; i++) tensor->count *= tensor->shape[i] = shape[i];
    tensor->values = allocate(tensor->count, sizeof *tensor->values);
    c->results = tensor;
    return tensor->values;
}

double *result_like(Case *c, const char *name, const Tensor *like) {
    return like ? result(c, name, like->rank, like->shape) : NULL;
}

static void write_header(const Case *c, FILE *file, size_t *length) {
    size_t size = c->single ? sizeof(float) : sizeof(double), begin = 0;
    *length = 0;
    *length += (size_t)fprintf(file, "{");
    for (const Tensor *tensor = c->results; tensor; tensor = tensor->next) {
        size_t end = begin + tensor->count * size;
        *length += (size_t)fprintf(file, "\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensor->name, c->single ? "F32" : "F64");
        for (size_t i = 0; i < tensor->rank; i++) *length += (size_t)fprintf(file, "%s%zu", i ? "," : "", tensor->shape[i]);
        *length += (size_t)fprintf(file, "],\"data_offsets\":[%zu,%zu]}%s", begin, end, tensor->next ? "," : "");
        begin = end;
    }
    *length += (size_t)fprintf(file, "}");
}

void write_results(const Case *c, const char *folder) {
    FILE *file = open_in(folder, "results.safetensors", "wb");
    uint64_t header = 0;
    size_t length;
    bool written = fwrite(&header, sizeof header, 1, file) == 1; /* its place, until its length is known */
    write_header(c, file, &length);
    for (const Tensor *tensor = c->results; tensor; tensor = tensor->next)
        for (size_t i = 0; i < tensor->count; i++) {
            float rounded = (float)tensor->values[i];
            const void *value = c->single ? (const void *)&rounded : (const void *)&tensor->values[i];
            written = fwrite(value, c->single ? sizeof rounded : sizeof(double), 1, file) == 1 && written;
        }
    header = length;
    written = fseek(file, 0, SEEK_SET) == 0 && fwrite(&header, sizeof header, 1, file) == 1 && written;
    if (fclose(file) != 0 || !written) refuse("expected to write", "results.safetensors");
}
