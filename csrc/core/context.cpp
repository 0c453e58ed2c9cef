// Which ISA variant of the kernels is taken: the best that the processor has, or the one asked for.

#include "core/context.h"

#include <stdexcept>

#if defined(OCTAVO_X86_ISAS) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(OCTAVO_X86_ISAS)
#include <cpuid.h>
#endif

namespace octavo {

namespace {

#if defined(OCTAVO_X86_ISAS) && !defined(OCTAVO_STAND_INS) && !defined(OCTAVO_AVX2_ONLY)

// gcc 12's __builtin_cpu_supports does not know amx; the operating system's part is asked for below.
bool has_amx() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !((d >> 24) & 1) || !((d >> 22) & 1)) return false;
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x60000u) != 0x60000u) return false;
#if defined(__linux__)
    // Linux gives a process the tile registers on request: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return false;
#endif
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// The dot products of VNNI in their form for AVX2, which gcc 12's __builtin_cpu_supports does not know either.
bool has_avx_vnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && ((a >> 4) & 1);
}

#endif

#if defined(OCTAVO_X86_ISAS)

bool has_avx2() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && ((c >> 29) & 1);
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#endif

std::vector<const Kernels*> find_isas() {
    std::vector<const Kernels*> found;
#if defined(OCTAVO_X86_ISAS)
    const bool avx2 = has_avx2();
#if !defined(OCTAVO_AVX2_ONLY)
#if defined(OCTAVO_STAND_INS)
    const bool amx = true, bf16 = true, avx512_vnni = true, avx512 = true, avx2_vnni = true;
#else
    const bool avx512 = avx2 && has_avx512(), avx512_vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool bf16 = avx512_vnni && __builtin_cpu_supports("avx512bf16"), amx = bf16 && has_amx();
    const bool avx2_vnni = avx2 && has_avx_vnni();
#endif
    if (amx) found.push_back(amx_kernels());
    if (bf16) found.push_back(avx512_bf16_kernels());
    if (avx512_vnni) found.push_back(avx512_vnni_kernels());
    if (avx512) found.push_back(avx512_kernels());
    if (avx2_vnni) found.push_back(avx2_vnni_kernels());
#endif
    if (avx2) found.push_back(avx2_kernels());
#endif
    found.push_back(portable_kernels());
    return found;
}

const Kernels* choose(const std::string& isa) {
    for (const Kernels* kernels : find_isas())
        if (isa.empty() || isa == kernels->name) return kernels;
    throw std::invalid_argument("this processor has no instruction set " + isa);
}

}  // namespace

ExecutionContext::ExecutionContext(const std::string& isa, int num_threads)
    : pool(num_threads), kernels(choose(isa)), scratch(static_cast<std::size_t>(num_threads)) {}

void ExecutionContext::reserve_scratch(std::int64_t num_floats) {
    for (Memory& memory : scratch) memory.reserve(num_floats * 4);
}

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (const Kernels* kernels : find_isas()) names.emplace_back(kernels->name);
    return names;
}

}  // namespace octavo
