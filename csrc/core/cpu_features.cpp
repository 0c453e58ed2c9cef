// How each row of the table of CPU features is asked for.

#include "core/cpu_features.h"

#if defined(OCTAVO_X86)
#include <cpuid.h>
#endif

#if defined(OCTAVO_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace octavo {

#if defined(OCTAVO_X86)

CpuidRegisters cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
    CpuidRegisters r{};
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

namespace {

bool bit(std::uint64_t word, int index) { return (word >> index) & 1; }

// XCR0: which register states the operating system saves. Zero without OSXSAVE.
std::uint64_t saved_states() {
    if (!bit(cpuid(1).ecx, 27)) return 0;
    std::uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32) | low;
}

std::uint32_t word_of(CpuidWord word) {
    switch (word) {
        case CpuidWord::leaf1_ecx: return cpuid(1).ecx;
        case CpuidWord::leaf7_ebx: return cpuid(7).ebx;
        case CpuidWord::leaf7_ecx: return cpuid(7).ecx;
        case CpuidWord::leaf7_edx: return cpuid(7).edx;
        case CpuidWord::leaf7_1_eax: return cpuid(7, 1).eax;
    }
    return 0;
}

// Bits of XCR0: Intel SDM volume 1, 13.1. The processor's part is the bit of the first feature that has the registers.
bool has_registers(RegisterFile registers, std::uint64_t saved) {
    const auto saves = [saved](std::uint64_t mask) { return (saved & mask) == mask; };
    switch (registers) {
        case RegisterFile::sse: return true;
        case RegisterFile::avx: return saves(0x6) && bit(word_of(CpuidWord::leaf1_ecx), 28);  // XMM, YMM
        case RegisterFile::avx512: return saves(0xe6) && bit(word_of(CpuidWord::leaf7_ebx), 16);  // + opmask, ZMM
        case RegisterFile::amx: return saves(0x60000) && bit(word_of(CpuidWord::leaf7_edx), 24);  // configuration, data
    }
    return false;
}

bool is_present(const CpuFeature& feature) {
    static const std::uint64_t saved = saved_states();
    return has_registers(feature.registers, saved) && bit(word_of(feature.word), feature.bit);
}

bool is_allowed(const CpuFeature& feature) {
    if (feature.registers != RegisterFile::amx) return true;
#if defined(__linux__)
    // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return false;
#endif
}

}  // namespace

#elif defined(__aarch64__)

namespace {

bool is_present(const CpuFeature& feature) {
#if defined(__linux__)
    return (getauxval(feature.word == 1 ? AT_HWCAP : AT_HWCAP2) >> feature.bit) & 1;
#elif defined(__APPLE__)
    int value = 0;
    std::size_t length = sizeof value;
    return sysctlbyname(feature.sysctl, &value, &length, nullptr, 0) == 0 && value != 0;
#else
    return feature.name == "neon";  // which every such processor has
#endif
}

bool is_allowed(const CpuFeature&) { return true; }

}  // namespace

#else

namespace {

bool is_present(const CpuFeature&) { return false; }
bool is_allowed(const CpuFeature&) { return true; }

}  // namespace

#endif

CpuFeatureSet present_cpu_features() {
    static const CpuFeatureSet found = [] {
        CpuFeatureSet set = 0;
        for (std::size_t row = 0; row < std::size(kCpuFeatures); ++row)
            if (is_present(kCpuFeatures[row])) set |= CpuFeatureSet{1} << row;
        return set;
    }();
    return found;
}

bool enable_cpu_features(CpuFeatureSet needed) {
    if ((needed & present_cpu_features()) != needed) return false;
    for (std::size_t row = 0; row < std::size(kCpuFeatures); ++row)
        if ((needed >> row & 1) && !is_allowed(kCpuFeatures[row])) return false;
    return true;
}

}  // namespace octavo
