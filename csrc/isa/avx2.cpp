// The kernels for avx2; see CMakeLists.txt for the flags.
#include "simd/avx2.h"
#include "simd/dot_avx2.h"

#include "isa/kernel_table.h"

namespace octavo {

const Kernels* avx2_kernels() {
    static constexpr Kernels kernels = make_kernels("avx2");
    return &kernels;
}

}  // namespace octavo
