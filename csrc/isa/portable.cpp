// The kernels for portable; see CMakeLists.txt for the flags.
#include "simd/portable.h"
#include "simd/dot_portable.h"

#include "isa/kernel_table.h"

namespace octavo {

const Kernels* portable_kernels() {
    static constexpr Kernels kernels = make_kernels("portable");
    return &kernels;
}

}  // namespace octavo
