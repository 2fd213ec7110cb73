/* What glibc 2.36 has not, or under other names: C23's frees, glibc's aliases, and the report on standard error. */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void free_sized(void *, size_t);
void free_aligned_sized(void *, size_t, size_t);
void cfree(void *);
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

int main(int count, char **arguments) {
    if (count > 1) {
        malloc_stats();
        return 0;
    }
    size_t sizes[] = {0, 1, 100, 1000, 5000, 100000, 5000000};
    for (int round = 0; round < 1000; round++)
        for (int i = 0; i < 7; i++) {
            errno = 7;
            free_sized(malloc(sizes[i]), sizes[i]);
            free_aligned_sized(aligned_alloc(256, sizes[i]), 256, sizes[i]);
            cfree(__libc_memalign(64, sizes[i]));
            __libc_free(__libc_realloc(__libc_calloc(1, sizes[i] / 2 + 1), sizes[i] + 1));
            free(__libc_malloc(sizes[i]));
            if (errno != 7)
                return 1;
        }
    free_sized(0, 5);
    free_aligned_sized(0, 16, 5);
    /* All that was made is gone: what is left is the buffer of standard output, if there is one yet. */
    struct mallinfo2 info = mallinfo2();
    return info.uordblks > 4096 || puts("good") < 0;
}
