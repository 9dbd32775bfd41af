/* JSON, as much of it as cases and safetensors headers have. Malformed text is refused. */

#include "example.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *at;
    size_t depth;
} Parser;

static _Noreturn void malformed(void) { refuse("expected JSON", "malformed text"); }

static void skip_space(Parser *p) { p->at += strspn(p->at, " \t\r\n"); }

static bool accept(Parser *p, char expected) {
    skip_space(p);
    if (*p->at != expected) return false;
    p->at++;
    return true;
}

static unsigned long hexadecimal(Parser *p) {
    char digits[5] = {0};
    for (int i = 0; i < 4; i++) {
        if (!p->at[i] || !strchr("0123456789abcdefABCDEF", p->at[i])) malformed();
        digits[i] = p->at[i];
    }
    p->at += 4;
    return strtoul(digits, NULL, 16);
}

/* One escape as UTF-8, at most 3 bytes; beyond the basic plane no name of a case goes. */
static size_t escape(Parser *p, char *out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *found = *p->at ? strchr(from, *p->at) : NULL;
    if (found) {
        p->at++;
        *out = to[found - from];
        return 1;
    }
    if (*p->at++ != 'u') malformed();
    unsigned long code = hexadecimal(p);
    if (code == 0 || (code >= 0xD800 && code < 0xE000)) malformed();
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6), out[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    out[0] = (char)(0xE0 | code >> 12), out[1] = (char)(0x80 | (code >> 6 & 0x3F)), out[2] = (char)(0x80 | (code & 0x3F));
    return 3;
}

static char *parse_string(Parser *p) {
    if (!accept(p, '"')) malformed();
    size_t length = 0;
    for (const char *end = p->at; *end != '"'; end++, length++) {
        if ((unsigned char)*end < 0x20) malformed(); /* the end of the text, too */
        if (*end == '\\' && *++end == 0) malformed();
    }
    char *string = allocate(3 * length + 1, 1), *out = string; /* an escape of one character is read as 3 bytes at most */
    while (*p->at != '"') {
        if (*p->at != '\\') {
            *out++ = *p->at++;
            continue;
        }
        p->at++;
        out += escape(p, out);
    }
    p->at++;
    return string;
}

static double parse_number(Parser *p) {
    char digits[64] = {0}, *end;
    size_t length = strspn(p->at, "+-.0123456789eE");
    if (length == 0 || length >= sizeof digits) malformed();
    memcpy(digits, p->at, length);
    double number = strtod(digits, &end);
    if (*end) malformed();
    p->at += length;
    return number;
}

static bool literal(Parser *p, const char *word) {
    if (strncmp(p->at, word, strlen(word)) != 0) return false;
    p->at += strlen(word);
    return true;
}

static Json *parse_value(Parser *p);

static void parse_members(Parser *p, Json *owner, char close) {
    Json **last = &owner->first;
    if (++p->depth > DEEPEST) malformed();
    if (!accept(p, close)) {
        do {
            char *key = NULL;
            if (owner->kind == JSON_OBJECT) {
                key = parse_string(p);
                if (!accept(p, ':')) malformed();
            }
            *last = parse_value(p);
            (*last)->key = key;
            last = &(*last)->next;
        } while (accept(p, ','));
        if (!accept(p, close)) malformed();
    }
    p->depth--;
}

static Json *parse_value(Parser *p) {
    Json *value = allocate(1, sizeof *value);
    skip_space(p);
    if (accept(p, '{')) {
        value->kind = JSON_OBJECT;
        parse_members(p, value, '}');
    } else if (accept(p, '[')) {
        value->kind = JSON_ARRAY;
        parse_members(p, value, ']');
    } else if (*p->at == '"') {
        value->kind = JSON_STRING;
        value->string = parse_string(p);
    } else if (literal(p, "true")) {
        value->kind = JSON_BOOLEAN;
        value->number = 1;
    } else if (literal(p, "false")) {
        value->kind = JSON_BOOLEAN;
    } else if (!literal(p, "null")) {
        value->kind = JSON_NUMBER;
        value->number = parse_number(p);
    }
    return value;
}

Json *json_parse(const char *text) {
    Parser p = {text, 0};
    Json *value = parse_value(&p);
    skip_space(&p);
    if (*p.at) malformed();
    return value;
}

const Json *json_member(const Json *object, const char *key) {
    if (!object || object->kind != JSON_OBJECT) return NULL;
    for (const Json *member = object->first; member; member = member->next)
        if (strcmp(member->key, key) == 0) return member;
    return NULL;
}

size_t json_size(const Json *value) {
    if (!value || value->kind != JSON_NUMBER || !(value->number >= 0 && value->number <= LARGEST_FILE)) malformed();
    size_t size = (size_t)value->number;
    if ((double)size != value->number) malformed();
    return size;
}
