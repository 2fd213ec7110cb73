// Every form of operator new and delete; all of them are malloc's blocks.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <malloc.h>
#include <new>
#include <string>
#include <vector>

struct alignas(256) Wide { char bytes[300]; };
static int good = 1;

static void *seen(void *block, std::size_t size, std::size_t align) {
    good &= block && reinterpret_cast<std::uintptr_t>(block) % align == 0 && malloc_usable_size(block) >= size;
    return block;
}

int main() {
    auto wide = std::align_val_t(256);
    for (std::size_t size : {0, 1, 24, 300, 5000, 70000, 3000000}) {
        ::operator delete(seen(::operator new(size), size, 16));
        ::operator delete[](seen(::operator new[](size), size, 16));
        ::operator delete(seen(::operator new(size), size, 16), size);
        ::operator delete[](seen(::operator new[](size), size, 16), size);
        ::operator delete(seen(::operator new(size, std::nothrow), size, 16), std::nothrow);
        ::operator delete[](seen(::operator new[](size, std::nothrow), size, 16), std::nothrow);
        ::operator delete(seen(::operator new(size, wide), size, 256), wide);
        ::operator delete[](seen(::operator new[](size, wide), size, 256), wide);
        ::operator delete(seen(::operator new(size, wide), size, 256), size, wide);
        ::operator delete[](seen(::operator new[](size, wide), size, 256), size, wide);
        ::operator delete(seen(::operator new(size, wide, std::nothrow), size, 256), wide, std::nothrow);
        ::operator delete[](seen(::operator new[](size, wide, std::nothrow), size, 256), wide, std::nothrow);
    }
    volatile std::size_t most = SIZE_MAX / 2;
    try {
        ::operator delete(::operator new(most));
        good = 0;
    } catch (const std::bad_alloc &) {
    }
    good &= ::operator new(most, std::nothrow) == nullptr;
    std::vector<std::string> words;
    for (int i = 0; i < 100000; i++)
        words.push_back(std::string(i % 100, 'x'));
    delete new Wide;
    delete[] new Wide[3];
    std::puts(good ? "good" : "wrong");
    return !good;
}
