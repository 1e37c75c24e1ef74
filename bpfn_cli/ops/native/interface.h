/* SPDX-License-Identifier: MIT
 *
 * What both C files share.
 */
#include <stdint.h>

/* VECTORIZED compiles a function for several instruction sets; the best that the machine has runs. OpenMP takes the body
 * of a parallel region out of its function before that: such a function is called from the region, and holds none. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 12
#define VECTORIZED __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORIZED
#endif

/* Of which sources this was built, from setup.py: the Python side calls nothing that was built of others. */
#ifndef BPFN_SOURCES
#define BPFN_SOURCES 0
#endif
int64_t bpfn_sources(void) { return BPFN_SOURCES; }
