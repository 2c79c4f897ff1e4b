//# Scenario: go-on, restart
//# Checkpoints: 5
//# Level: quick
// Registers held live, by assembly that does nothing for a while: general, SSE, AVX2, AVX-512 with its masks, the x87 stack,
// x87 and MXCSR modes. Each thread has its own values; AVX and AVX-512 where the processor has them.
#include "check.h"
#include <cpuid.h>
#include <immintrin.h>

enum { SPINS = 3000000 };
static atomic_long rounds[8];
static atomic_int stopping;

// Loads the pattern, spins, stores what is there then.
static void general(uint64_t seed) {
    uint64_t in[6], out[6];
    for (int i = 0; i < 6; i++) in[i] = mix(seed + i);
    __asm__ volatile("mov 0(%0), %%r8; mov 8(%0), %%r9; mov 16(%0), %%r12; mov 24(%0), %%r13; mov 32(%0), %%r14;"
                     "mov 40(%0), %%r15; mov %2, %%ecx; 1: dec %%ecx; jnz 1b;"
                     "mov %%r8, 0(%1); mov %%r9, 8(%1); mov %%r12, 16(%1); mov %%r13, 24(%1); mov %%r14, 32(%1);"
                     "mov %%r15, 40(%1)"
                     :
                     : "r"(in), "r"(out), "i"(SPINS)
                     : "r8", "r9", "r12", "r13", "r14", "r15", "rcx", "memory", "cc");
    CHECK(memcmp(in, out, sizeof in) == 0, "general registers");
}

// Red zone: leaf code may keep 128 bytes below the stack pointer.
static void redzone(uint64_t seed) {
    uint64_t out;
    __asm__ volatile("mov %1, -128(%%rsp); mov %1, -8(%%rsp); mov %2, %%ecx; 1: dec %%ecx; jnz 1b; mov -128(%%rsp), %0;"
                     "cmp -8(%%rsp), %0; je 2f; xor %0, %0; 2:"
                     : "=&r"(out)
                     : "r"(seed), "i"(SPINS)
                     : "rcx", "memory", "cc");
    CHECK(out == seed, "red zone");
}

static void sse(uint64_t seed) {
    uint64_t in[32], out[32];
    for (int i = 0; i < 32; i++) in[i] = mix(seed + i);
#define L(n) "movdqu " #n "*16(%0), %%xmm" #n ";"
#define S(n) "movdqu %%xmm" #n ", " #n "*16(%1);"
#define ALL16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
    __asm__ volatile(ALL16(L) "mov %2, %%ecx; 1: dec %%ecx; jnz 1b;" ALL16(S)
                     :
                     : "r"(in), "r"(out), "i"(SPINS)
                     : "rcx", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#undef L
#undef S
    CHECK(memcmp(in, out, sizeof in) == 0, "SSE registers");
}

__attribute__((target("avx2"))) static void avx(uint64_t seed) {
    uint64_t in[64], out[64];
    for (int i = 0; i < 64; i++) in[i] = mix(seed + i);
#define L(n) "vmovdqu " #n "*32(%0), %%ymm" #n ";"
#define S(n) "vmovdqu %%ymm" #n ", " #n "*32(%1);"
    __asm__ volatile(ALL16(L) "mov %2, %%ecx; 1: dec %%ecx; jnz 1b;" ALL16(S)
                     :
                     : "r"(in), "r"(out), "i"(SPINS)
                     : "rcx", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#undef L
#undef S
    CHECK(memcmp(in, out, sizeof in) == 0, "AVX registers");
}

__attribute__((target("avx512f,avx512bw"))) static void avx512(uint64_t seed) {
    uint64_t in[264], out[264];
    for (int i = 0; i < 264; i++) in[i] = mix(seed + i);
#define L(n) "vmovdqu64 " #n "*64(%0), %%zmm" #n ";"
#define S(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%1);"
#define HIGH16(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)
#define ML(n) "kmovq 2048+" #n "*8(%0), %%k" #n ";"
#define MS(n) "kmovq %%k" #n ", 2048+" #n "*8(%1);"
#define ALL8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
    __asm__ volatile(ALL16(L) HIGH16(L) ALL8(ML) "mov %2, %%ecx; 1: dec %%ecx; jnz 1b;" ALL16(S) HIGH16(S) ALL8(MS)
                     :
                     : "r"(in), "r"(out), "i"(SPINS)
                     : "rcx", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19",
                       "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30",
                       "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7");
    CHECK(memcmp(in, out, sizeof in) == 0, "AVX-512 registers");
}

// The modes are those of this thread for its whole life: rounding down and precision of x87, rounding up of SSE.
static void modes(int set) {
    uint16_t control = 0x077f & ~0x0300; // round down, single precision
    uint32_t mxcsr = 0x1f80 | 0x4000 | 0x8000; // round up, flush to zero
    if (set) {
        __asm__ volatile("fldcw %0" ::"m"(control));
        __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
        return;
    }
    uint16_t c;
    uint32_t m;
    __asm__ volatile("fnstcw %0" : "=m"(c));
    __asm__ volatile("stmxcsr %0" : "=m"(m));
    CHECK((c & 0xf3f) == (control & 0xf3f), "x87 control word %x", c);
    CHECK((m & 0xffc0) == mxcsr, "MXCSR %x", m);
}

// Eight values on the x87 stack.
static void x87(uint64_t seed) {
    double in[8], out[8];
    for (int i = 0; i < 8; i++) in[i] = (double)(float)((seed % 1000) + i * 3);
    __asm__ volatile("fldl 0(%0); fldl 8(%0); fldl 16(%0); fldl 24(%0); fldl 32(%0); fldl 40(%0); fldl 48(%0); fldl 56(%0);"
                     "mov %2, %%ecx; 1: dec %%ecx; jnz 1b;"
                     "fstpl 56(%1); fstpl 48(%1); fstpl 40(%1); fstpl 32(%1); fstpl 24(%1); fstpl 16(%1); fstpl 8(%1); fstpl 0(%1)"
                     :
                     : "r"(in), "r"(out), "i"(SPINS)
                     : "rcx", "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
    CHECK(memcmp(in, out, sizeof in) == 0, "x87 stack");
}

static int has_avx512;
static void *hold(void *argument) {
    long me = (long)argument;
    if (me == 5) modes(1);
    for (uint64_t n = 0; !stopping; n++) {
        uint64_t seed = mix(me * 1000003 + n);
        switch (me) {
        case 0: general(seed); break;
        case 1: sse(seed); break;
        case 2: __builtin_cpu_supports("avx2") ? avx(seed) : sse(seed); break;
        case 3: has_avx512 ? avx512(seed) : sse(seed); break;
        case 4: x87(seed); break;
        case 5: modes(0); redzone(seed); break;
        }
        rounds[me]++;
    }
    return NULL;
}

int main(void) {
    has_avx512 = __builtin_cpu_supports("avx512bw");
    pthread_t threads[6];
    for (long i = 0; i < 6; i++) threads[i] = start(hold, (void *)i, 0);
    ready();
    long seen[6] = {0};
    do {
        for (int i = 0; i < 6; i++) {
            while (rounds[i] == seen[i]) sched_yield();
            seen[i] = rounds[i];
        }
    } while (beat());
    stopping = 1;
    for (int i = 0; i < 6; i++) join(threads[i]);
    return pass();
}
