/* SPDX-License-Identifier: MIT
 *
 * Shared by both C files.
 */
#include <stdint.h>

/* VECTORIZED compiles a function for several instruction sets; the best one available is used. OpenMP outlines the body
 * of a parallel region before that, so such a function is called from a region and contains none. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 12
#define VECTORIZED __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define WIDE_PROCESSOR /* the best one may have 32 registers of 64 bytes */
#else
#define VECTORIZED
#endif

/* Fingerprint of the sources, from setup.py: the Python side does not call a library built from other sources. */
#ifndef BPFN_SOURCES
#define BPFN_SOURCES 0
#endif
int64_t bpfn_sources(void) { return BPFN_SOURCES; }
