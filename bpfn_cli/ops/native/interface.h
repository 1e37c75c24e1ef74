/* SPDX-License-Identifier: MIT
 *
 * What both C files share.
 */

/* VECTORIZED compiles a function for several instruction sets; the best that the machine has runs. OpenMP takes the body
 * of a parallel region out of its function before that: such a function is called from the region, and holds none. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 11
#define VECTORIZED __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORIZED
#endif

/* How the functions are called. The Python side calls only what carries its number: raise both with any change. */
#define BPFN_INTERFACE 1
int bpfn_interface(void) { return BPFN_INTERFACE; }
