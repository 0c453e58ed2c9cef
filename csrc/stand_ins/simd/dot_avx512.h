// A stand-in for AVX-512's integer dot products: those of AVX2, on both halves.
#pragma once

#include "simd/dot_avx2.h"
