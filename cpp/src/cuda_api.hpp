// The CUDA runtime's functions that are called here, loaded at run time; their types are of its
// headers. Struct layouts that differ between its releases are not used.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace destseg_core {

#define DESTSEG_CUDA_CALLS(X)                                                                      \
  X(cudaGetLastError) X(cudaGetErrorString) X(cudaGetDeviceCount) X(cudaGetDevice)                 \
  X(cudaSetDevice) X(cudaDeviceGetAttribute) X(cudaMalloc) X(cudaFree) X(cudaHostAlloc)            \
  X(cudaFreeHost) X(cudaStreamCreateWithFlags) X(cudaStreamDestroy) X(cudaStreamSynchronize)       \
  X(cudaMemcpyAsync) X(cudaStreamBeginCapture) X(cudaStreamEndCapture)                             \
  X(cudaGraphInstantiateWithFlags) X(cudaGraphLaunch) X(cudaGraphDestroy) X(cudaGraphExecDestroy)

struct CudaApi {
#define DESTSEG_MEMBER(name) decltype(&::name) name;
  DESTSEG_CUDA_CALLS(DESTSEG_MEMBER)
#undef DESTSEG_MEMBER
  cudaError_t (*get_properties)(void *, int);  // whose struct begins with the GPU's name
};

// Loads the CUDA runtime at the first call. Throws Error (backend) where there is none.
const CudaApi &cuda();

// The GPU's name, such as "NVIDIA L4".
std::string gpu_name(int device);

}  // namespace destseg_core
