/* Leaks five blocks of 200 bytes and two of 3000, and frees others. */
#include <stdlib.h>

static void *volatile hidden;

int main(void) {
    for (int i = 0; i < 5; i++)
        hidden = malloc(200);
    for (int i = 0; i < 2; i++)
        hidden = calloc(3, 1000);
    hidden = malloc(50);
    free(hidden);
    return 0;
}
