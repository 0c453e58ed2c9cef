// The kernels for avx2; see CMakeLists.txt for the flags.
#include "isa/kernel_table.h"

const octavo::Kernels* octavo::avx2_kernels() {
    static constexpr Kernels kernels = make_kernels("avx2");
    return &kernels;
}
