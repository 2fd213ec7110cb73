/* Threads that a C library makes, whose blocks others free; keys whose destructors allocate; forks among all of that, with
 * handlers of the program's own that allocate; and a child that starts threads. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 4, SLOTS = 512, ROUNDS = 20000 };

static _Atomic(char *) shared[SLOTS];
static pthread_key_t key;
static int handled[3];

static void check(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "wrong: %s\n", what);
        _exit(3);
    }
}

static void at_end(void *block) {
    free(block);
    free(calloc(1, 3000));
}

static void *work(void *seed) {
    unsigned random = (unsigned)(size_t)seed;
    pthread_setspecific(key, malloc(100));
    for (int i = 0; i < ROUNDS; i++) {
        random = random * 1664525 + 1013904223;
        size_t size = 1 + (random >> 8) % ((random >> 4) % 50 == 0 ? 300000 : 700);
        char *block = (random >> 3) % 8 == 0 ? aligned_alloc(64, size) : malloc(size);
        check(block != 0, "a block");
        block[0] = (char)size;
        block[size - 1] = (char)size;
        if (size >= 2 + sizeof size)
            memcpy(block + 1, &size, sizeof size);
        if ((random >> 5) % 4 == 0) {
            block = realloc(block, size + 50);
            check(block[0] == (char)size && block[size - 1] == (char)size, "what realloc kept");
        }
        free(atomic_exchange(&shared[random % SLOTS], block));
    }
    return 0;
}

static void prepare(void) { free(malloc(5000)); handled[0]++; }
static void parent(void) { free(malloc(5000)); handled[1]++; }
static void child(void) { free(malloc(5000)); handled[2]++; }

static void run(int threads) {
    pthread_t ids[THREADS];
    for (int i = 0; i < threads; i++)
        check(pthread_create(&ids[i], 0, work, (void *)(size_t)(i + 1)) == 0, "a thread");
    for (int i = 0; i < threads; i++)
        pthread_join(ids[i], 0);
}

static void *forks(void *unused) {
    for (int i = 0; i < 40; i++) {
        pid_t pid = fork();
        check(pid >= 0, "a fork");
        if (pid == 0) {
            alarm(30);
            for (int s = 0; s < SLOTS; s++)
                free(atomic_exchange(&shared[s], 0));
            run(2);
            _exit(handled[2] == 1 ? 0 : 4);
        }
        int status;
        check(waitpid(pid, &status, 0) == pid && status == 0, "a child");
    }
    return unused;
}

int main(void) {
    alarm(120);
    pthread_key_create(&key, at_end);
    pthread_atfork(prepare, parent, child);
    pthread_t forking;
    pthread_create(&forking, 0, forks, 0);
    for (int i = 0; i < 6; i++)
        run(THREADS);
    pthread_join(forking, 0);
    check(handled[0] == 40 && handled[1] == 40, "handlers");
    puts("good");
    return 0;
}
