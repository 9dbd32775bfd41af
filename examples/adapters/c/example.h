/* A program that answers golden cases, with nothing but the C standard library.

   cc -std=c11 -O2 -Wall -Wextra -Werror -o example *.c -lm
   refimpl golden verify --command ./example

   json.c and tensors.c read a case and write results; basic.c and attention.c compute. All numbers are computed as double
   and rounded once to the type under test. */

#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <stdbool.h>
#include <stddef.h>

enum { LARGEST_FILE = 16 << 20, LARGEST_RANK = 8, DEEPEST = 32 };
enum { DONE = 0, REFUSED = 1, NOT_IMPLEMENTED = 10 }; /* exit codes */

/* Ends the program: the case is refused (it is malformed, or its arguments don't fit), or not implemented. */
_Noreturn void refuse(const char *what, const char *name);
_Noreturn void not_implemented(const char *what);

/* Memory, all 0, that release() gives back; refuses what does not fit into a file. */
void *allocate(size_t count, size_t size);
void release(void);

/* The bytes of a file and, behind them, a 0. */
char *read_file(const char *folder, const char *name, size_t *size);

/* JSON: an object's or array's members are a list; an object's have keys. */
typedef enum { JSON_NULL, JSON_BOOLEAN, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonKind;
typedef struct Json {
    JsonKind kind;
    char *key, *string;
    double number; /* of a boolean: 0 or 1 */
    struct Json *first, *next;
} Json;

Json *json_parse(const char *text);
const Json *json_member(const Json *object, const char *key); /* NULL if there is none */
size_t json_size(const Json *value);                          /* refuses what is no whole number from 0 on */

/* A tensor: row-major, its last axis contiguous. */
typedef struct Tensor {
    char *name;
    size_t rank, shape[LARGEST_RANK], count;
    bool real;
    double *values;
    struct Tensor *next;
} Tensor;

typedef struct {
    const char *function;
    bool single; /* float32, not float64 */
    const Json *settings;
    Tensor *inputs, *results;
} Case;

Case *read_case(const char *folder);
void write_results(const Case *c, const char *folder);

double setting(const Case *c, const char *name);                    /* refuses a case without it */
double setting_or(const Case *c, const char *name, double absent);
const Tensor *input_or_null(const Case *c, const char *name);
const Tensor *input(const Case *c, const char *name, size_t rank);  /* refuses a case without it, or with another rank */
void expect(const Tensor *tensor, size_t rank, const size_t *shape); /* refuses another shape; NULL has every shape */
double *result_like(Case *c, const char *name, const Tensor *like);  /* zeros of that shape; NULL for an absent one */
double *result(Case *c, const char *name, size_t rank, const size_t *shape);

/* The functions: each writes its outputs and gradients. */
void linear(Case *c);
void layer_norm(Case *c);
void softmax(Case *c);
void softmax_loss(Case *c);
void span_mask(Case *c);
void span_penalty(Case *c);
void all_attention(Case *c);

/* m_z(x) = clamp((R + Sρ - x) / R, 0, 1); *slope = dm/dρ, that of the closed interval. */
double span_weight(double rho, size_t x, size_t size, double ramp, double *slope);

#endif
