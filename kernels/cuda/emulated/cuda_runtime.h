#pragma once
// CUDA C++ for a host compiler: kernels run on the CPU, every thread of a block as a fiber. For tests on
// machines without a GPU.
#include "cuda/emulated/api.h"
#include "cuda/emulated/half.h"
#include "cuda/emulated/intrinsics.h"
#include "cuda/emulated/threads.h"
#include "cuda/emulated/types.h"
