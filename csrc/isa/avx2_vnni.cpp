// The kernels for avx2 with the dot products of VNNI; see CMakeLists.txt for the flags.
#define OCTAVO_VNNI 1
#include "isa/kernel_table.h"

const octavo::Kernels* octavo::avx2_vnni_kernels() {
    static constexpr Kernels kernels = make_kernels("avx2_vnni");
    return &kernels;
}
