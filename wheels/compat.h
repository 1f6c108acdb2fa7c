/* Included before all else when a wheel's libraries are compiled: what a newer g++ than that of
 * manylinux_2_28 (GCC 8, glibc 2.28) would ask of the machine's libstdc++ and glibc is done without.
 * The libraries share libstdc++ with the frameworks, so that exceptions and strings can pass. */
#if defined(__GLIBCXX__) || !defined(__linux__)
#error "it must be the first file that is included"
#endif

/* GLIBC_2.32: whether the process has one thread. Of several, where nobody knows. */
extern "C" __attribute__((weak, visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

/* GLIBCXX_3.4.29, called by allocators. Its caller in older ones was this. */
namespace std {
__attribute__((noreturn)) void __throw_bad_alloc();
__attribute__((noreturn, weak, visibility("hidden"))) void __throw_bad_array_new_length() {
  __throw_bad_alloc();
}
}  // namespace std

/* GLIBCXX_3.4.26, a constructor of string streams: instantiated here as all of <sstream>. */
#include <istream>
#include <ostream>
#pragma push_macro("_GLIBCXX_EXTERN_TEMPLATE")
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#include <sstream>
#pragma pop_macro("_GLIBCXX_EXTERN_TEMPLATE")

/* GLIBCXX_3.4.30: a newer version of a symbol that there is for long. */
#if defined(__GLIBCXX__) && _GLIBCXX_RELEASE >= 12
__asm__(
    ".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE,"
    "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");
#endif
