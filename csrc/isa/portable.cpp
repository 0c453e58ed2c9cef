// The kernels for portable; see CMakeLists.txt for the flags.
#include "isa/kernel_table.h"

const octavo::Kernels* octavo::portable_kernels() {
    static constexpr Kernels kernels = make_kernels("portable");
    return &kernels;
}
