// A stand-in for the dot products of VNNI in their form for AVX2.
#pragma once

#include "simd/dot_vnni_avx512.h"
