// The kernels for avx512 with the dot products of VNNI; see CMakeLists.txt for the flags.
#define OCTAVO_VNNI 1
#include "isa/kernel_table.h"

const octavo::Kernels* octavo::avx512_vnni_kernels() {
    static constexpr Kernels kernels = make_kernels("avx512_vnni");
    return &kernels;
}
