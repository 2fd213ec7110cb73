/* Gives back what is no block, in every way there is. Prints the address first, so that the line can be compared whole. */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static char here[64] __attribute__((aligned(16)));

static void *volatile hidden;

static void *hide(void *block) {
    hidden = block;
    return hidden;
}

int main(int argc, char **argv) {
    char local[64] __attribute__((aligned(16)));
    const char *what = argv[1], *how = argc > 2 ? argv[2] : "free";
    static char buffer[4096];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer); /* or it takes the place of what was freed */
    void *at = 0;
    /* Neighbours on both sides, and a heap that has been used. */
    char *small = malloc(96);
    char *other = malloc(96), *large = malloc(10000), *span = malloc(200000), *huge = malloc(4 << 20);
    hide(other);
    free(hide(malloc(24)));
    if (!strcmp(what, "stack"))
        at = local;
    else if (!strcmp(what, "static"))
        at = here;
    else if (!strcmp(what, "small_integer"))
        at = (void *)16;
    else if (!strcmp(what, "odd_integer"))
        at = (void *)3;
    else if (!strcmp(what, "far"))
        at = (void *)0xdead000000000010;
    else if (!strcmp(what, "minus_one"))
        at = (void *)-1;
    else if (!strcmp(what, "mapping"))
        at = mmap(0, 8 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    else if (!strcmp(what, "unaligned"))
        at = small + 8;
    else if (!strcmp(what, "inside_small"))
        at = small + 16;
    else if (!strcmp(what, "inside_large"))
        at = large + 4096;
    else if (!strcmp(what, "inside_span"))
        at = span + 65536;
    else if (!strcmp(what, "inside_huge"))
        at = huge + 65536;
    else if (!strcmp(what, "span_twice"))
        free(at = span);
    else if (!strcmp(what, "huge_twice"))
        free(at = huge);
    else if (!strcmp(what, "small_twice")) {
        free(at = small);
        malloc_trim(0);
    } else if (!strcmp(what, "nothing"))
        at = small;
    at = hide(at);
    printf("%#zx\n", (uintptr_t)at);
    fflush(stdout);
    if (!strcmp(how, "free"))
        free(at);
    else if (!strcmp(how, "realloc"))
        hide(realloc(at, 100));
    else if (!strcmp(how, "usable"))
        printf("%zu\n", malloc_usable_size(at));
    return 0;
}
