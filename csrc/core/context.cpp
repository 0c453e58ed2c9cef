// What a context is made of, and its scratch memory.

#include "core/context.h"

#include "core/isa_variants.h"

namespace octavo {

ExecutionContext::ExecutionContext(const std::string& isa, int num_threads, bool widens)
    : pool(num_threads),
      kernels(choose_kernels(isa)),
      widens(widens),
      scratch(static_cast<std::size_t>(num_threads)) {}

void ExecutionContext::reserve_scratch(std::int64_t num_floats) {
    for (Memory& memory : scratch) memory.reserve(num_floats * 4);
}

}  // namespace octavo
