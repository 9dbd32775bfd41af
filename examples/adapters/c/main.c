/* example --describe | example CASE OUT */

#include "example.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    void (*compute)(Case *);
} FUNCTIONS[] = {
    {"all-attention", all_attention}, {"layer-norm", layer_norm}, {"linear", linear}, {"softmax", softmax},
    {"softmax-loss", softmax_loss}, {"span-mask", span_mask}, {"span-penalty", span_penalty},
};
enum { COUNT = sizeof FUNCTIONS / sizeof *FUNCTIONS };

_Noreturn void refuse(const char *what, const char *name) {
    fprintf(stderr, "%s %s\n", what, name);
    release();
    exit(REFUSED);
}

_Noreturn void not_implemented(const char *what) {
    fprintf(stderr, "not implemented: %s\n", what);
    release();
    exit(NOT_IMPLEMENTED);
}

static void describe(void) {
    printf("{\"functions\": [");
    for (size_t i = 0; i < COUNT; i++) printf("%s\"%s\"", i ? ", " : "", FUNCTIONS[i].name);
    printf("]}\n");
}

int main(int count, char **arguments) {
    if (count == 2 && strcmp(arguments[1], "--describe") == 0) {
        describe();
        return DONE;
    }
    if (count != 3) refuse("expected --describe, or", "CASE OUT");
    Case *c = read_case(arguments[1]);
    size_t i = 0;
    while (i < COUNT && strcmp(FUNCTIONS[i].name, c->function) != 0) i++;
    if (i == COUNT) not_implemented(c->function);
    FUNCTIONS[i].compute(c);
    write_results(c, arguments[2]);
    release();
    return DONE;
}
