/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * System calls without libc: no errno, no cancellation point, no TLS, no lazy binding. All give the
 * kernel's result: >= 0, or -errno. Usable from a signal handler, before main and in the witness.
 */
#ifndef WPFS_PRELOAD_RAW_H
#define WPFS_PRELOAD_RAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#if defined(__x86_64__)
#define RAW_AUDIT_ARCH 0xc000003eu /* AUDIT_ARCH_X86_64 */

static inline long raw_call(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

/* The child calls fn(arg) on the stack that ends at `top` (aligned to 16); fn never returns. */
static inline long raw_clone(unsigned long flags, void *top, int *pidfd, void (*fn)(void *),
			     void *arg)
{
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;
	void **stack = top;
	long ret;

	*--stack = arg;
	*--stack = (void *)fn;
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "pop %%rax\n\t"
			 "pop %%rdi\n\t"
			 "call *%%rax\n\t"
			 "hlt\n"
			 "1:"
			 : "=a"(ret)
			 : "0"((long)SYS_clone), "D"(flags), "S"(stack), "d"(pidfd), "r"(r10),
			   "r"(r8)
			 : "rcx", "r11", "memory", "cc");
	return ret;
}
#elif defined(__aarch64__)
#define RAW_AUDIT_ARCH 0xc00000b7u /* AUDIT_ARCH_AARCH64 */

static inline long raw_call(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory", "cc");
	return x0;
}

static inline long raw_clone(unsigned long flags, void *top, int *pidfd, void (*fn)(void *),
			     void *arg)
{
	void **stack = top;
	register long x8 __asm__("x8") = SYS_clone;
	register long x0 __asm__("x0");
	register long x1 __asm__("x1");
	register long x2 __asm__("x2") = (long)pidfd;
	register long x3 __asm__("x3") = 0;
	register long x4 __asm__("x4") = 0;

	*--stack = arg;
	*--stack = (void *)fn;
	x0 = (long)flags;
	x1 = (long)stack;
	__asm__ volatile("svc 0\n\t"
			 "cbnz x0, 1f\n\t"
			 "mov x29, xzr\n\t"
			 "ldp x1, x0, [sp], #16\n\t"
			 "blr x1\n\t"
			 "brk #1\n"
			 "1:"
			 : "+r"(x0), "+r"(x1)
			 : "r"(x8), "r"(x2), "r"(x3), "r"(x4)
			 : "x30", "memory", "cc");
	return x0;
}
#else
#error "raw system calls are written for x86-64 and aarch64"
#endif

#define RAW_PICK_(_0, _1, _2, _3, _4, _5, _6, name, ...) name
#define RAW_0(nr)					 raw_call(nr, 0, 0, 0, 0, 0, 0)
#define RAW_1(nr, a)					 raw_call(nr, (long)(a), 0, 0, 0, 0, 0)
#define RAW_2(nr, a, b)					 raw_call(nr, (long)(a), (long)(b), 0, 0, 0, 0)
#define RAW_3(nr, a, b, c)				 raw_call(nr, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define RAW_4(nr, a, b, c, d)				 raw_call(nr, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define RAW_5(nr, a, b, c, d, e)                                                                   \
	raw_call(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define RAW_6(nr, a, b, c, d, e, f)                                                                \
	raw_call(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* raw(close, fd): the arguments are cast to long one by one. */
#define raw(name, ...)                                                                             \
	RAW_PICK_(SYS_##name, ##__VA_ARGS__, RAW_6, RAW_5, RAW_4, RAW_3, RAW_2, RAW_1, RAW_0)      \
	(SYS_##name, ##__VA_ARGS__)

static inline int raw_failed(long ret)
{
	return (unsigned long)ret >= (unsigned long)-4095L;
}

/* Reads the program's memory without the risk of a fault: a bad pointer is the kernel's to refuse.
 */
static inline bool raw_peek(const void *from, void *to, size_t len)
{
	struct iovec local = {.iov_base = to, .iov_len = len};
	struct iovec remote = {.iov_base = (void *)from, .iov_len = len};
	long self = raw(gettid); /* a first thread that has ended has no memory */

	return raw(process_vm_readv, self, &local, 1, &remote, 1, 0) == (long)len;
}

#define RAW_SIGSET_BYTES 8 /* sizeof the kernel's sigset_t */

#endif
