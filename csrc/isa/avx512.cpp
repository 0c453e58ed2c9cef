// The kernels for avx512; see CMakeLists.txt for the flags.
#include "isa/kernel_table.h"

const octavo::Kernels* octavo::avx512_kernels() {
    static constexpr Kernels kernels = make_kernels("avx512");
    return &kernels;
}
