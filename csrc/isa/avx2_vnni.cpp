// The kernels for avx2 with the dot products of VNNI; see CMakeLists.txt for the flags.
#include "simd/avx2.h"
#include "simd/dot_vnni_avx2.h"

#include "isa/kernel_table.h"

namespace octavo {

const Kernels* avx2_vnni_kernels() {
    static constexpr Kernels kernels = make_kernels("avx2_vnni");
    return &kernels;
}

}  // namespace octavo
