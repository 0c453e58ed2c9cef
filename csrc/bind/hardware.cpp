// What this processor is: the CPU features of the table that are safe to use, its name, its caches, the cores we may
// run on.

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "core/cpu_features.h"

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace {

#if defined(OCTAVO_X86)

using octavo::cpuid;
using octavo::CpuidRegisters;

std::string find_brand() {
    if (cpuid(0x80000000u).eax < 0x80000004u) return "";
    char text[49] = {};
    for (std::uint32_t i = 0; i < 3; ++i) {
        const CpuidRegisters r = cpuid(0x80000002u + i);
        std::memcpy(text + 16 * i, &r, 16);
    }
    const std::string brand(text);
    const auto first = brand.find_first_not_of(' ');
    if (first == std::string::npos) return "";
    return brand.substr(first, brand.find_last_not_of(' ') - first + 1);
}

// Leaf 4 (Intel) and 0x8000001D (AMD) list the caches in one format: size = ways x partitions x line x sets.
std::map<std::string, std::int64_t> find_caches() {
    const bool is_amd_leaf = ((cpuid(0x80000001u).ecx >> 22) & 1) && cpuid(0x80000000u).eax >= 0x8000001du;
    const std::uint32_t leaf = is_amd_leaf ? 0x8000001du : 4u;
    std::map<std::string, std::int64_t> sizes;
    for (std::uint32_t i = 0; i < 16; ++i) {
        const CpuidRegisters r = cpuid(leaf, i);
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

std::vector<std::string> features() {
    const octavo::CpuFeatureSet present = octavo::present_cpu_features();
    std::vector<std::string> names;
    for (std::size_t row = 0; row < std::size(octavo::kCpuFeatures); ++row)
        if ((present >> row) & 1) names.emplace_back(octavo::kCpuFeatures[row].name);
    return names;
}

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
    m.def("features", &features, "Instruction sets that processor and operating system both support.");
    m.def("brand", &find_brand, "The processor's name, empty where it does not tell.");
    m.def("caches", &caches, "Bytes of each data cache, as far as known: l1d, l2, l3.");
    m.def("usable_cores", &usable_cores, "Cores that this process may be scheduled on.");
}
