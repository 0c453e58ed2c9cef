// CPU features: one table of what we look for, and how the processor and the operating system tell it.
//
// A feature is present if the processor has the instructions and the operating system saves the registers that they
// touch. Knows nothing of kernels: core/isa_variants.cpp says what each ISA variant of them needs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <stdexcept>
#include <string_view>

namespace octavo {

#if defined(__x86_64__) || defined(__i386__)

#define OCTAVO_X86 1

struct CpuidRegisters {
    std::uint32_t eax, ebx, ecx, edx;
};

// All zero where the processor does not have the leaf.
CpuidRegisters cpuid(std::uint32_t leaf, std::uint32_t subleaf = 0);

enum class CpuidWord { leaf1_ecx, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax };

// The registers that a feature's instructions touch, beside those that every processor has.
enum class RegisterFile { sse, avx, avx512, amx };

struct CpuFeature {
    std::string_view name;
    CpuidWord word;
    int bit;
    RegisterFile registers;
};

// Bit numbers: Intel SDM volume 2A, CPUID, leaves 1 and 7.
constexpr CpuFeature kCpuFeatures[] = {
    {"sse4.2", CpuidWord::leaf1_ecx, 20, RegisterFile::sse},
    {"avx", CpuidWord::leaf1_ecx, 28, RegisterFile::avx},
    {"f16c", CpuidWord::leaf1_ecx, 29, RegisterFile::avx},
    {"fma", CpuidWord::leaf1_ecx, 12, RegisterFile::avx},
    {"avx2", CpuidWord::leaf7_ebx, 5, RegisterFile::avx},
    {"avx_vnni", CpuidWord::leaf7_1_eax, 4, RegisterFile::avx},
    {"avx512f", CpuidWord::leaf7_ebx, 16, RegisterFile::avx512},
    {"avx512dq", CpuidWord::leaf7_ebx, 17, RegisterFile::avx512},
    {"avx512bw", CpuidWord::leaf7_ebx, 30, RegisterFile::avx512},
    {"avx512vl", CpuidWord::leaf7_ebx, 31, RegisterFile::avx512},
    {"avx512_vnni", CpuidWord::leaf7_ecx, 11, RegisterFile::avx512},
    {"avx512_bf16", CpuidWord::leaf7_1_eax, 5, RegisterFile::avx512},
    {"avx512_fp16", CpuidWord::leaf7_edx, 23, RegisterFile::avx512},
    {"amx_tile", CpuidWord::leaf7_edx, 24, RegisterFile::amx},
    {"amx_bf16", CpuidWord::leaf7_edx, 22, RegisterFile::amx},
    {"amx_int8", CpuidWord::leaf7_edx, 25, RegisterFile::amx},
    {"amx_fp16", CpuidWord::leaf7_1_eax, 21, RegisterFile::amx},
};

#elif defined(__aarch64__)

struct CpuFeature {
    std::string_view name;
    int word, bit;  // Linux: AT_HWCAP or AT_HWCAP2; arch/arm64/include/uapi/asm/hwcap.h has the bit numbers
    const char* sysctl;  // macOS
};

constexpr CpuFeature kCpuFeatures[] = {
    {"neon", 1, 1, "hw.optional.AdvSIMD"},
    {"fp16", 1, 10, "hw.optional.arm.FEAT_FP16"},
    {"dotprod", 1, 20, "hw.optional.arm.FEAT_DotProd"},
    {"sve", 1, 22, "hw.optional.arm.FEAT_SVE"},
    {"sve2", 2, 1, "hw.optional.arm.FEAT_SVE2"},
    {"i8mm", 2, 13, "hw.optional.arm.FEAT_I8MM"},
    {"bf16", 2, 14, "hw.optional.arm.FEAT_BF16"},
};

#else

struct CpuFeature {
    std::string_view name;
};

constexpr std::array<CpuFeature, 0> kCpuFeatures{};

#endif

using CpuFeatureSet = std::uint64_t;  // bit i: row i of the table

constexpr CpuFeatureSet cpu_feature_set(std::initializer_list<std::string_view> names) {
    CpuFeatureSet set = 0;
    for (const std::string_view name : names) {
        std::size_t row = 0;
        while (row < std::size(kCpuFeatures) && kCpuFeatures[row].name != name) ++row;
        // Of a constant set: does not compile.
        if (row == std::size(kCpuFeatures)) throw std::invalid_argument("no CPU feature of the table");
        set |= CpuFeatureSet{1} << row;
    }
    return set;
}

CpuFeatureSet present_cpu_features();

// Whether all of them are present and this process may use them: Linux gives it the tile registers of AMX on request,
// which this makes.
bool enable_cpu_features(CpuFeatureSet needed);

}  // namespace octavo
