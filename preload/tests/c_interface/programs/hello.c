/* Allocates and ends. Linked with the library, or with it loaded before. */
#include <stdio.h>
#include <stdlib.h>

int main(void) {
    char *volatile block = malloc(1000);
    free(block);
    puts("hello");
    return 5;
}
