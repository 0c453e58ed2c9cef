// What this processor is: instruction sets that are safe to use, its name, its caches, the cores we may run on.
//
// "Safe to use" means that the processor has the instructions (CPUID) and that the operating system saves the
// registers they touch (XGETBV). Knows nothing of kernels: core/context.cpp decides which ISA variant of them runs.

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#define OCTAVO_X86 1
#include <cpuid.h>
#endif

#if defined(__linux__)
#include <sched.h>
#include <sys/auxv.h>
#include <unistd.h>
#endif

#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace {

#if OCTAVO_X86

struct Registers {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero where the processor does not have the leaf.
Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf = 0) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

bool bit(std::uint64_t word, int index) { return (word >> index) & 1; }

// XCR0: which register states the operating system saves. Zero without OSXSAVE.
std::uint64_t saved_states() {
    if (!bit(cpuid(1).ecx, 27)) return 0;
    std::uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32) | low;
}

// Bit numbers: Intel SDM volume 2A, CPUID, leaves 1 and 7; volume 1, 13.1 for XCR0.
std::vector<std::string> find_features() {
    const Registers one = cpuid(1), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
    const std::uint64_t saved = saved_states();
    const auto all = [saved](std::uint64_t mask) { return (saved & mask) == mask; };
    const bool avx = all(0x6) && bit(one.ecx, 28);         // XMM, YMM
    const bool avx512 = all(0xe6) && bit(seven.ebx, 16);   // + opmask, ZMM low and high
    const bool amx = all(0x60000) && bit(seven.edx, 24);   // tile configuration and data

    const struct { const char* name; bool present; } table[] = {
        {"sse4.2", bit(one.ecx, 20)},
        {"avx", avx},
        {"f16c", avx && bit(one.ecx, 29)},
        {"fma", avx && bit(one.ecx, 12)},
        {"avx2", avx && bit(seven.ebx, 5)},
        {"avx_vnni", avx && bit(seven_one.eax, 4)},
        {"avx512f", avx512},
        {"avx512dq", avx512 && bit(seven.ebx, 17)},
        {"avx512bw", avx512 && bit(seven.ebx, 30)},
        {"avx512vl", avx512 && bit(seven.ebx, 31)},
        {"avx512_vnni", avx512 && bit(seven.ecx, 11)},
        {"avx512_bf16", avx512 && bit(seven_one.eax, 5)},
        {"avx512_fp16", avx512 && bit(seven.edx, 23)},
        {"amx_tile", amx},
        {"amx_bf16", amx && bit(seven.edx, 22)},
        {"amx_int8", amx && bit(seven.edx, 25)},
        {"amx_fp16", amx && bit(seven_one.eax, 21)},
    };
    std::vector<std::string> names;
    for (const auto& row : table)
        if (row.present) names.emplace_back(row.name);
    return names;
}

std::string find_brand() {
    if (cpuid(0x80000000u).eax < 0x80000004u) return "";
    char text[49] = {};
    for (std::uint32_t i = 0; i < 3; ++i) {
        const Registers r = cpuid(0x80000002u + i);
        std::memcpy(text + 16 * i, &r, 16);
    }
    const std::string brand(text);
    const auto first = brand.find_first_not_of(' ');
    if (first == std::string::npos) return "";
    return brand.substr(first, brand.find_last_not_of(' ') - first + 1);
}

// Leaf 4 (Intel) and 0x8000001D (AMD) list the caches in one format: size = ways x partitions x line x sets.
std::map<std::string, std::int64_t> find_caches() {
    const bool is_amd_leaf = bit(cpuid(0x80000001u).ecx, 22) && cpuid(0x80000000u).eax >= 0x8000001du;
    const std::uint32_t leaf = is_amd_leaf ? 0x8000001du : 4u;
    std::map<std::string, std::int64_t> sizes;
    for (std::uint32_t i = 0; i < 16; ++i) {
        const Registers r = cpuid(leaf, i);
        const std::uint32_t kind = r.eax & 0x1f, level = (r.eax >> 5) & 0x7;  // kind: 0 end, 1 data, 2 code, 3 both
        if (kind == 0) break;
        if (kind == 2) continue;
        const std::int64_t ways = (r.ebx >> 22) + 1, partitions = ((r.ebx >> 12) & 0x3ff) + 1;
        const std::int64_t line = (r.ebx & 0xfff) + 1, sets = std::int64_t{r.ecx} + 1;
        sizes[level == 1 ? "l1d" : "l" + std::to_string(level)] = ways * partitions * line * sets;
    }
    return sizes;
}

#else  // Arm and others

std::vector<std::string> find_features() {
    std::vector<std::string> names;
#if defined(__aarch64__) && defined(__linux__)
    // Bit numbers: arch/arm64/include/uapi/asm/hwcap.h of the Linux kernel.
    const unsigned long one = getauxval(AT_HWCAP), two = getauxval(AT_HWCAP2);
    const struct { const char* name; unsigned long word; int bit; } table[] = {
        {"neon", one, 1}, {"fp16", one, 10}, {"dotprod", one, 20}, {"sve", one, 22},
        {"sve2", two, 1}, {"i8mm", two, 13}, {"bf16", two, 14},
    };
    for (const auto& row : table)
        if ((row.word >> row.bit) & 1) names.emplace_back(row.name);
#elif defined(__aarch64__)
    names.emplace_back("neon");
#endif
    return names;
}

std::string find_brand() {
#if defined(__APPLE__)
    char text[128] = {};
    std::size_t length = sizeof text - 1;
    if (sysctlbyname("machdep.cpu.brand_string", text, &length, nullptr, 0) == 0) return text;
#endif
    return "";
}

std::map<std::string, std::int64_t> find_caches() { return {}; }

#endif

// The processor's own list, completed by what the C library knows (a hypervisor may hide the one or the other).
std::map<std::string, std::int64_t> caches() {
    std::map<std::string, std::int64_t> sizes = find_caches();
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    const struct { const char* name; int key; } table[] = {
        {"l1d", _SC_LEVEL1_DCACHE_SIZE}, {"l2", _SC_LEVEL2_CACHE_SIZE}, {"l3", _SC_LEVEL3_CACHE_SIZE}};
    for (const auto& row : table) {
        const long size = sysconf(row.key);
        if (size > 0) sizes.emplace(row.name, size);
    }
#endif
    return sizes;
}

// Cores that this process may be scheduled on; a container's CPU quota is not looked at here.
int usable_cores() {
#if defined(__linux__)
    for (int most = 1024; most <= 65536; most *= 2) {
        cpu_set_t* set = CPU_ALLOC(most);
        if (set == nullptr) break;
        const std::size_t size = CPU_ALLOC_SIZE(most);
        const int count = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (count > 0) return count;
    }
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

NB_MODULE(_hardware, m) {
    m.doc() = "What this processor is; see octavo.ops.hardware.";
    m.def("features", &find_features, "Instruction sets that processor and operating system both support.");
    m.def("brand", &find_brand, "The processor's name, empty where it does not tell.");
    m.def("caches", &caches, "Bytes of each data cache, as far as known: l1d, l2, l3.");
    m.def("usable_cores", &usable_cores, "Cores that this process may be scheduled on.");
}
