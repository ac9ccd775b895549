// Half precision by the compiler's own type.
#pragma once

using __half = _Float16;
using half = __half;

struct __attribute__((aligned(4))) __half2 {
  half x, y;
};
using half2 = __half2;

inline half2 make_half2(half x, half y) { return {x, y}; }
inline float __half2float(half value) { return value; }
inline half __float2half(float value) { return value; }
inline bool __hgt(half a, half b) { return a > b; }
inline bool __hlt(half a, half b) { return a < b; }
