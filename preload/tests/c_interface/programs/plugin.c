/* A library that allocates in its constructor and its destructor, and hands blocks over. */
#include <stdlib.h>
#include <string.h>

static char *made;

__attribute__((constructor)) static void begin(void) { made = strdup("made before main"); }
__attribute__((destructor)) static void end(void) { free(made); }

char *plugin_block(size_t size) { return memset(malloc(size), 7, size); }
void plugin_free(void *block) { free(block); }
