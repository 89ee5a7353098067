// For WebAssembly, whose C++ library is built without exceptions: a throw ends the program.
#include <cstddef>
#include <cstdlib>

extern "C" {
void* __cxa_allocate_exception(size_t) noexcept { std::abort(); }
void __cxa_throw(void*, void*, void (*)(void*)) { std::abort(); }
}
