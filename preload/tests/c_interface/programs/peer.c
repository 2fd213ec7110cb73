/* C's half of a program in two languages. */
#include <stdlib.h>
#include <string.h>

void *peer_make(size_t size) { return memset(malloc(size), 7, size); }
void *peer_grow(void *block, size_t size) { return realloc(block, size); }
void peer_free(void *block) { free(block); }
