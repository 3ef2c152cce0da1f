// Handles of CUDA with an owner that frees them. Calls run on the device that a DeviceScope chose.
#pragma once

#include <cstddef>
#include <string>

#include "cuda_api.hpp"
#include "error.hpp"
#include "memory.hpp"
#include "owned.hpp"

namespace destseg_core {

inline void check_cuda(cudaError_t code, const std::string &what) {
  if (code == cudaSuccess) return;
  cuda().cudaGetLastError();  // clears the error, which the next call would report again
  const std::string reason = cuda().cudaGetErrorString(code);
  if (lacks_memory(reason)) throw memory_error(what, reason);
  throw backend_error(what + ": CUDA failed (" + reason +
                      "). Check the driver and the GPU's free memory.");
}

// Makes a device current in this thread, and restores the host's own device when it is destroyed.
class DeviceScope {
 public:
  explicit DeviceScope(int index) {
    check_cuda(cuda().cudaGetDevice(&before_), "device");
    if (before_ != index)
      check_cuda(cuda().cudaSetDevice(index), "device 'cuda:" + std::to_string(index) + "'");
    changed_ = before_ != index;
  }
  ~DeviceScope() {
    if (changed_) cuda().cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope &) = delete;
  DeviceScope &operator=(const DeviceScope &) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <typename T, auto release>
using CudaOwned = Owned<cuda, T, release>;
using CudaStream = CudaOwned<cudaStream_t, &CudaApi::cudaStreamDestroy>;
using CudaGraph = CudaOwned<cudaGraph_t, &CudaApi::cudaGraphDestroy>;
using CudaGraphExec = CudaOwned<cudaGraphExec_t, &CudaApi::cudaGraphExecDestroy>;

// Memory on the GPU, and page-locked memory of the host of the same size.
class CudaPair {
 public:
  explicit CudaPair(std::size_t bytes) {
    check_cuda(cuda().cudaMalloc(device_.receive(), bytes), "memory");
    check_cuda(cuda().cudaHostAlloc(host_.receive(), bytes, cudaHostAllocDefault), "pinned memory");
  }
  void *device() const { return device_.get(); }
  void *host() const { return host_.get(); }

  cudaError_t copy_in(std::size_t bytes, cudaStream_t stream) const {
    return cuda().cudaMemcpyAsync(device(), host(), bytes, cudaMemcpyHostToDevice, stream);
  }
  cudaError_t copy_out(std::size_t bytes, cudaStream_t stream) const {
    return cuda().cudaMemcpyAsync(host(), device(), bytes, cudaMemcpyDeviceToHost, stream);
  }

 private:
  CudaOwned<void *, &CudaApi::cudaFree> device_;
  CudaOwned<void *, &CudaApi::cudaFreeHost> host_;
};

}  // namespace destseg_core
