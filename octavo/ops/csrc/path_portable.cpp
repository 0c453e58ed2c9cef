// The kernels for portable; see CMakeLists.txt for the flags.
#include "path.h"

const octavo::Kernels* octavo::portable_kernels() {
    static constexpr Kernels kernels = make_kernels("portable");
    return &kernels;
}
