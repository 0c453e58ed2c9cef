// The table of ISA variants, and which of them is taken: the best that the processor has, or the one asked for.

#include "core/isa_variants.h"

#include <stdexcept>

#include "core/cpu_features.h"

namespace octavo {

namespace {

struct IsaVariant {
    const char* name;
    const Kernels* (*kernels)();
    CpuFeatureSet needs;
};

#if defined(OCTAVO_ISAS_x86_64)

// What a variant needs beside the one it is made from; nothing in a build with stand-ins for its instructions.
constexpr CpuFeatureSet beside(CpuFeatureSet base, std::initializer_list<std::string_view> names) {
    return OCTAVO_STAND_INS ? base : base | cpu_feature_set(names);
}

constexpr CpuFeatureSet kAvx2 = cpu_feature_set({"avx2", "fma", "f16c"});
constexpr CpuFeatureSet kAvx2Vnni = beside(kAvx2, {"avx_vnni"});
constexpr CpuFeatureSet kAvx512 = beside(kAvx2, {"avx512f", "avx512bw", "avx512dq", "avx512vl"});
constexpr CpuFeatureSet kAvx512Vnni = beside(kAvx512, {"avx512_vnni"});
constexpr CpuFeatureSet kAvx512Bf16 = beside(kAvx512Vnni, {"avx512_bf16"});
constexpr CpuFeatureSet kAmx = beside(kAvx512Bf16, {"amx_tile", "amx_bf16", "amx_int8"});

#endif

}  // namespace

// A row of the table, with the declaration of octavo::<name>_kernels, which isa/<name>.cpp defines. It is called only
// on a processor that has what the variant needs.
#define ISA_VARIANT(name, needs)                    \
    {                                               \
        #name,                                      \
        [] {                                        \
            extern const Kernels* name##_kernels(); \
            return name##_kernels();                \
        },                                          \
        needs                                       \
    }

// Best first. What is built is said in CMakeLists.txt, in lines of the same names.
static constexpr IsaVariant kIsaVariants[] = {
#if defined(OCTAVO_ISAS_x86_64) && !OCTAVO_SANITIZE
    ISA_VARIANT(amx, kAmx),
    ISA_VARIANT(avx512_bf16, kAvx512Bf16),
    ISA_VARIANT(avx512_vnni, kAvx512Vnni),
    ISA_VARIANT(avx512, kAvx512),
    ISA_VARIANT(avx2_vnni, kAvx2Vnni),
#endif
#if defined(OCTAVO_ISAS_x86_64)
    ISA_VARIANT(avx2, kAvx2),
#endif
#if defined(OCTAVO_ISAS_aarch64)
    // none yet
#endif
    ISA_VARIANT(portable, CpuFeatureSet{}),
};

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (const IsaVariant& variant : kIsaVariants)
        if (enable_cpu_features(variant.needs)) names.emplace_back(variant.name);
    return names;
}

const Kernels* choose_kernels(const std::string& isa) {
    for (const IsaVariant& variant : kIsaVariants)
        if ((isa.empty() || isa == variant.name) && enable_cpu_features(variant.needs)) return variant.kernels();
    throw std::invalid_argument("this processor has no instruction set " + isa);
}

}  // namespace octavo
