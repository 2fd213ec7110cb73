/* One call of the malloc family, and everything that can be seen of it, on standard output. */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void seen(const char *what, void *block, size_t size, size_t align) {
    int error = errno;
    printf("%s: %s errno=%d", what, block ? "block" : "null", error);
    if (block) {
        printf(" aligned=%d fits=%d", (uintptr_t)block % align == 0, malloc_usable_size(block) >= size);
        memset(block, 0xa5, size);
    }
    printf("\n");
}

static int is_zero(const unsigned char *at, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (at[i])
            return 0;
    return 1;
}

/* A block with something in it that was in use before. */
static void *used(size_t size) {
    void *block = malloc(size);
    memset(block, 0x5a, size);
    free(block);
    block = malloc(size);
    memset(block, 0x5a, size);
    return block;
}

static int begins(const unsigned char *at, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (at[i] != 0x5a)
            return 0;
    return 1;
}

int main(int argc, char **argv) {
    const char *call = argv[1];
    size_t a = argc > 2 ? strtoull(argv[2], 0, 0) : 0;
    size_t b = argc > 3 ? strtoull(argv[3], 0, 0) : 0;
    void *block = 0;
    errno = 7;
    if (!strcmp(call, "malloc")) {
        seen(call, block = malloc(a), a, 16);
        free(block);
    } else if (!strcmp(call, "calloc")) {
        void *dirty = used(a * b < (64 << 20) ? a * b : 0);
        free(dirty);
        errno = 7;
        block = calloc(a, b);
        if (block)
            printf("zero=%d\n", is_zero(block, a * b));
        seen(call, block, a * b, 16);
        free(block);
    } else if (!strcmp(call, "realloc")) {
        void *old = used(a);
        errno = 7;
        block = realloc(old, b);
        if (block)
            printf("kept=%d\n", begins(block, a < b ? a : b));
        seen(call, block, b, 16);
        if (!block && b) {
            printf("old kept=%d\n", begins(old, a));
            free(old);
        }
        free(block);
    } else if (!strcmp(call, "realloc_null")) {
        seen(call, block = realloc(0, a), a, 16);
        free(block);
    } else if (!strcmp(call, "reallocarray")) {
        void *old = used(64);
        errno = 7;
        block = reallocarray(old, a, b);
        seen(call, block, a * b, 16);
        if (!block && a * b)
            printf("old kept=%d\n", begins(old, 64));
    } else if (!strcmp(call, "posix_memalign")) {
        block = (void *)3;
        int result = posix_memalign(&block, a, b);
        printf("result=%d place=%s\n", result, block == (void *)3 ? "untouched" : "written");
        seen(call, result ? 0 : block, b, a ? a : 1);
        if (!result)
            free(block);
    } else if (!strcmp(call, "aligned_alloc")) {
        seen(call, block = aligned_alloc(a, b), b, a ? a & -a : 1);
        free(block);
    } else if (!strcmp(call, "memalign")) {
        seen(call, block = memalign(a, b), b, a ? a & -a : 1);
        free(block);
    } else if (!strcmp(call, "memalign_up")) {
        seen(call, block = memalign(a, b), b, 64);
        free(block);
    } else if (!strcmp(call, "valloc")) {
        seen(call, block = valloc(a), a, 4096);
        free(block);
    } else if (!strcmp(call, "pvalloc")) {
        seen(call, block = pvalloc(a), a ? (a + 4095) & -4096 : 0, 4096);
        free(block);
    } else if (!strcmp(call, "usable_null")) {
        printf("%zu\n", malloc_usable_size(0));
    } else if (!strcmp(call, "free")) {
        block = malloc(a);
        errno = 7;
        free(block);
        printf("errno=%d\n", errno);
        free(0);
        printf("errno=%d\n", errno);
    } else if (!strcmp(call, "free_many")) {
        /* So many that they leave every cache, and memory goes back to the system. */
        enum { N = 20000 };
        static void *blocks[N];
        for (int i = 0; i < N; i++)
            blocks[i] = malloc(a);
        errno = 7;
        for (int i = 0; i < N; i++)
            free(blocks[i]);
        printf("errno=%d\n", errno);
    } else if (!strcmp(call, "mallopt")) {
        printf("%d\n", mallopt(M_MMAP_THRESHOLD, 1 << 20));
    } else if (!strcmp(call, "malloc_trim")) {
        block = malloc(8 << 20);
        memset(block, 1, 8 << 20);
        free(block);
        malloc_trim(0);
        printf("%d\n", malloc_trim(0) >= 0);
    } else if (!strcmp(call, "mallinfo2")) {
        struct mallinfo2 before = mallinfo2();
        block = malloc(100000);
        void *large = malloc(32 << 20);
        struct mallinfo2 after = mallinfo2();
        printf("in use=%d mapped=%d blocks=%d\n", after.uordblks - before.uordblks >= 100000,
               after.hblkhd - before.hblkhd >= 32 << 20, (int)(after.hblks - before.hblks));
        struct mallinfo narrow = mallinfo();
        printf("narrow=%d\n", narrow.hblkhd >= 32 << 20);
        free(block);
        free(large);
    } else {
        return 2;
    }
    return 0;
}
