// Arithmetic that several files need. Not for the files that are compiled once for each instruction set: the linker
// keeps one copy of an inline function, which must not be one that some processor cannot run.
#pragma once

namespace octavo {

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

}  // namespace octavo
