// The kernels for avx512; see CMakeLists.txt for the flags.
#include "simd/avx512.h"
#include "simd/dot_avx512.h"

#include "isa/kernel_table.h"

namespace octavo {

const Kernels* avx512_kernels() {
    static constexpr Kernels kernels = make_kernels("avx512");
    return &kernels;
}

}  // namespace octavo
