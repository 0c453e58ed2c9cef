// The ISA variants of the kernels.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace octavo {

// The ISA variants of the kernels that this processor can run, best first.
std::vector<std::string> isa_names();

// The kernels of one of isa_names(), or of the best if `isa` is empty. Throws std::invalid_argument.
const Kernels* choose_kernels(const std::string& isa);

}  // namespace octavo
