/* Loads a library, twice, and lets blocks cross between the two; then drops every handle on the allocator itself. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static char *early;
__attribute__((constructor)) static void begin(void) { early = malloc(77); }

int main(int argc, char **argv) {
    for (int i = 0; i < 2; i++) {
        void *plugin = dlopen(argv[1], RTLD_NOW);
        if (!plugin)
            return fprintf(stderr, "%s\n", dlerror()), 1;
        char *(*block)(size_t) = (char *(*)(size_t))dlsym(plugin, "plugin_block");
        void (*drop)(void *) = (void (*)(void *))dlsym(plugin, "plugin_free");
        free(block(100));
        drop(malloc(100));
        dlclose(plugin);
    }
    if (argc > 2) {
        void *self = dlopen(argv[2], RTLD_NOW);
        for (int i = 0; i < 4; i++)
            dlclose(self);
    }
    free(early);
    free(malloc(1000));
    puts("good");
    return 0;
}
