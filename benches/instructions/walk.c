// Frees and allocates N blocks of a size in turn, R times: a block lies at every place that it can.
#include <stdlib.h>

int main(int count, char **arguments) {
    if (count != 4)
        return 2;
    size_t size = atol(arguments[1]);
    long n = atol(arguments[2]), rounds = atol(arguments[3]);
    void **block = malloc(n * sizeof *block);
    for (long i = 0; i < n; i++)
        block[i] = malloc(size);
    for (long r = 0; r < rounds; r++)
        for (long i = 0; i < n; i++) {
            free(block[i]);
            block[i] = malloc(size);
        }
    return 0;
}
