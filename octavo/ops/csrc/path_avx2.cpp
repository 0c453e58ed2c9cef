// The kernels for avx2; see CMakeLists.txt for the flags.
#include "path.h"

const octavo::Kernels* octavo::avx2_kernels() {
    static constexpr Kernels kernels = make_kernels("avx2");
    return &kernels;
}
