// The kernels for avx512 with the dot products of VNNI; see CMakeLists.txt for the flags.
#include "simd/avx512.h"
#include "simd/dot_vnni_avx512.h"

#include "isa/kernel_table.h"

namespace octavo {

const Kernels* avx512_vnni_kernels() {
    static constexpr Kernels kernels = make_kernels("avx512_vnni");
    return &kernels;
}

}  // namespace octavo
